"""Targets: which integer types a device's processor multiplies well, and whether this machine can vouch for them.

Source of the types: ONNX Runtime's quantization guide, and our own measurements: on x86 signed activations leave
convolutions in float, and without VNNI full-range u8s8 products saturate and cost up to eleven points of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock import machine
from penstock.config import nearest
from penstock.errors import CompileError, ConfigError

HOST = "host"

IntegerType = Literal["QUInt8", "QInt8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerTypes:
    """Types for static 8-bit quantization; ``reduce_range`` keeps weights to 7 bits so that sums cannot saturate."""

    activations: IntegerType
    weights: IntegerType
    reduce_range: bool = False

    def __str__(self) -> str:
        short = {"QUInt8": "u8", "QInt8": "s8"}
        return f"{short[self.activations]}{short[self.weights]}" + (" reduced range" if self.reduce_range else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of device. ``integers`` is None where none is right everywhere, so that only fp32 is offered."""

    name: str
    integers: IntegerTypes | None


_TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(name=machine.X86_VNNI, integers=IntegerTypes(activations="QUInt8", weights="QInt8")),
        Target(name=machine.X86, integers=IntegerTypes(activations="QUInt8", weights="QInt8", reduce_range=True)),
        Target(name=machine.ARM64, integers=IntegerTypes(activations="QInt8", weights="QInt8")),
        Target(name=machine.ANY, integers=None),
    )
}


def resolve(name: str, *, here: str | None = None) -> Target:
    """The target of that name; ``host`` is ``here``, by default this machine's.

    Raises:
        ConfigError: no such target.
        CompileError: this machine does not run that target's variants, so that nothing measured or certified here
            would be true there.
    """
    here = machine.edge_target() if here is None else here
    name = here if name == HOST else name
    if name not in _TARGETS:
        raise ConfigError(f"edge.target: unknown target {name!r}; {nearest(name, (HOST, *_TARGETS))}")
    if name not in machine.runnable_targets(here):
        raise CompileError(
            f"edge.target: this machine ({here}) does not compute what {name} does, so that accuracy, golden outputs "
            f"and certificate would not hold there; compile on such a device, or choose one of "
            f"{', '.join(machine.runnable_targets(here))}"
        )
    return _TARGETS[name]


def integer_types(target: Target) -> IntegerTypes:
    """
    Raises:
        CompileError: no integer types are right for every device of this target.
    """
    if target.integers is None:
        raise CompileError(
            f"edge.precision: int8 is not the same on every processor, and target {target.name} means all of them; "
            'set precision = "fp32", or name a target'
        )
    return target.integers
