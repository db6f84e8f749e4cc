"""One inference as values: what every transport decodes into and encodes from. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """What ``ModelMetadata`` of the OIP answers."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One line of the repository index. ``reason`` says why it is not READY, or what holds an answer back."""

    model: str
    version: str
    state: Readiness
    reason: str = ""
