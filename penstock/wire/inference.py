"""One inference as values: what every transport decodes into and encodes from. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from penstock.wire.tensors import Array, TensorSpec

Parameter = bool | int | float | str
Readiness = Literal["READY", "LOADING", "UNAVAILABLE"]

EXTENSIONS = ("binary_tensor_data", "parameters", "schedule_policy")
"""What works of the protocol's extensions; ``schedule_policy`` is priority and timeout."""


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):  # a frozen dataclass costs a microsecond each
    """A decoded OIP inference request.

    Attributes:
        version: "" for the default version.
        inputs: arrays by input name, in request order; dimension 0 is the batch.
        outputs: names wanted, in order; empty for all.
        parameters: request parameters, reserved ones included (``timeout`` in microseconds, ``priority``).
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = {}


class InferResponse(msgspec.Struct, frozen=True, kw_only=True):
    """An OIP inference response; ``parameters`` carry the cascade's account of itself when an agent answers."""

    model: str
    version: str = ""
    id: str = ""
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What ``ModelMetadata`` of the OIP answers.

    Attributes:
        columns: for inputs that are made of a table's columns, their names in order. They travel as the parameter
            ``columns`` of the input's metadata, a list in JSON, where others keep parameters of tensors as well.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def columns_text(names: Sequence[str]) -> str:
    """Write the names of an input's columns as a parameter."""
    return msgspec.json.encode(names).decode()


def columns_from(text: object) -> tuple[str, ...]:
    """Undo :func:`columns_text`; () for anything else, which only means that the server names no columns."""
    try:
        return msgspec.json.decode(text, type=tuple[str, ...]) if isinstance(text, str) else ()
    except msgspec.MsgspecError:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One line of the repository index. ``reason`` says why it is not READY, or what holds an answer back."""

    model: str
    version: str
    state: Readiness
    reason: str = ""
