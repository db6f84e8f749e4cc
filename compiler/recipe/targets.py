"""Targets: kinds of devices, the numbers each multiplies well, what is tried for it, and whether it can be run here.

Source of the integer types: ONNX Runtime's quantization guide, and our own measurements: on x86 signed activations
leave convolutions in float, and without VNNI full-range u8s8 products saturate and cost up to eleven points of
accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from penstock.errors import CompileError, ConfigError
from penstock.process import machine
from penstock.process.config import nearest

HOST = "host"
CUDA = machine.CUDA
TENSORRT, TENSORRT_RTX, GENAI_CPU, GENAI_CUDA = "tensorrt", "tensorrt-rtx", "genai-cpu", "genai-cuda"

IntegerType = Literal["QUInt8", "QInt8"]
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "none"]
"""What a candidate computes in. ``int8`` is static (QDQ); ``-weights`` keeps activations in float; ``none`` passes a
model that is no neural network through as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerTypes:
    """Types for static 8-bit quantization; ``reduce_range`` keeps weights to 7 bits so that sums cannot saturate."""

    activations: IntegerType
    weights: IntegerType
    reduce_range: bool = False
    symmetric: bool = False

    def __str__(self) -> str:
        short = {"QUInt8": "u8", "QInt8": "s8"}
        marks = (" symmetric" if self.symmetric else "") + (" reduced range" if self.reduce_range else "")
        return f"{short[self.activations]}{short[self.weights]}{marks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of device.

    Attributes:
        integers: None where none is right everywhere, so that int8 is not offered.
        engine: what runs the variant there (``penstock.runtime``).
        provider: its execution provider.
        precisions: candidates tried when a recipe names none, the careful first.
        runs_here: this machine's answers, latency and memory are the target's own.
    """

    name: str
    integers: IntegerTypes | None
    engine: Literal["onnx", "tensorrt", "tensorrt-rtx", "genai"] = "onnx"
    provider: Literal["cpu", "cuda", "tensorrt", "openvino", "qnn", "coreml", "xnnpack"] = "cpu"
    precisions: tuple[Precision, ...] = ("fp32", "int8", "int8-dynamic")
    runs_here: bool = False


_U8S8 = IntegerTypes(activations="QUInt8", weights="QInt8")
_U8S8_REDUCED = IntegerTypes(activations="QUInt8", weights="QInt8", reduce_range=True)
_S8S8 = IntegerTypes(activations="QInt8", weights="QInt8")
_S8S8_SYMMETRIC = IntegerTypes(activations="QInt8", weights="QInt8", symmetric=True)

_TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(name=machine.X86_VNNI, integers=_U8S8),
        Target(name=machine.X86, integers=_U8S8_REDUCED),
        Target(name=machine.ARM64, integers=_S8S8),
        Target(name=machine.ANY, integers=None, precisions=("fp32",)),
        Target(name=CUDA, integers=None, provider="cuda", precisions=("fp32", "fp16")),
        Target(name=machine.OPENVINO, integers=_U8S8, provider="openvino", precisions=("fp32", "fp16", "int8")),
        Target(name=machine.QNN, integers=_U8S8, provider="qnn", precisions=("fp32", "fp16", "int8")),
        Target(name=machine.COREML, integers=None, provider="coreml", precisions=("fp32", "fp16")),
        Target(name=machine.XNNPACK, integers=_S8S8, provider="xnnpack", precisions=("fp32", "int8")),
        Target(
            name=TENSORRT,
            integers=_S8S8_SYMMETRIC,
            engine="tensorrt",
            provider="tensorrt",
            precisions=("fp32", "fp16", "int8"),
        ),
        Target(
            name=TENSORRT_RTX,
            integers=_S8S8_SYMMETRIC,
            engine="tensorrt-rtx",
            provider="tensorrt",
            precisions=("fp32", "fp16", "int8"),
        ),
        Target(name=GENAI_CPU, integers=None, engine="genai", precisions=("int4-weights",)),
        Target(name=GENAI_CUDA, integers=None, engine="genai", provider="cuda", precisions=("int4-weights", "fp16")),
    )
}

_ALSO_CALLED: Mapping[str, str] = {
    "edge-x86-vnni": machine.X86_VNNI,
    "edge-x86": machine.X86,
    "edge-arm64": machine.ARM64,
    "edge-any": machine.ANY,
}
"""Names with the role in front, as people write them on a command line."""


def names() -> tuple[str, ...]:
    """Return every target's name, ``host`` first."""
    return (HOST, *_TARGETS)


def resolve(name: str, *, here: str | None = None) -> Target:
    """Find the target of that name; ``host`` is ``here``, by default this machine's.

    Raises:
        ConfigError: no such target.
    """
    here = machine.edge_target() if here is None else here
    name = here if name == HOST else _ALSO_CALLED.get(name, name)
    if name not in _TARGETS:
        raise ConfigError(f"target: unknown target {name!r}; {nearest(name, names())}")
    target = _TARGETS[name]
    runs_here = name in machine.runnable_targets(here) or name == GENAI_CPU
    return replace(target, runs_here=runs_here)


def integer_types(target: Target) -> IntegerTypes:
    """Return the integer types of a target.

    Raises:
        CompileError: no integer types are right for every device of this target.
    """
    if target.integers is None:
        raise CompileError(
            f"precision: int8 is not the same on every processor, and target {target.name} means all of them; "
            'set precisions = ["fp32"], or name a target'
        )
    return target.integers
