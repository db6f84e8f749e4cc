"""One inference as values: what every transport decodes into and encodes from. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from penstock.wire.tensors import Array, TensorSpec

Parameter = bool | int | float | str
Readiness = Literal["READY", "LOADING", "UNAVAILABLE"]

EXTENSIONS = (
    "binary_tensor_data", "parameters", "schedule_policy", "classification", "model_configuration", "statistics",
)  # fmt: skip
"""What works of the protocol's extensions; ``schedule_policy`` is priority and timeout."""


MODEL_REPOSITORY = "model_repository"
"""The extension of servers that load and unload models when they are asked to."""


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


Names = Mapping[str, tuple[str, ...]]
"""Names by tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What ``ModelMetadata`` of the OIP answers.

    Attributes:
        properties: of the model: its default version, and the like.
        columns: for inputs that are made of a table's columns, their names in order.
        labels: for outputs whose last dimension is one of classes, their names in order.
        units: of inputs and outputs, one for each column, or one for all.

    What is said about a tensor by name travels as parameters of its metadata, ``columns``, ``labels`` and ``units``,
    each a list in JSON, where other servers keep parameters of tensors as well.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    properties: Mapping[str, str] = field(default_factory=dict)
    columns: Names = field(default_factory=dict)
    labels: Names = field(default_factory=dict)
    units: Names = field(default_factory=dict)


def input_parameters(metadata: ModelMetadata, name: str) -> dict[str, str]:
    """Return what the metadata of an input says by parameters."""
    return _texts(columns=metadata.columns.get(name), units=metadata.units.get(name))


def output_parameters(metadata: ModelMetadata, name: str) -> dict[str, str]:
    """Return what the metadata of an output says by parameters."""
    return _texts(labels=metadata.labels.get(name), units=metadata.units.get(name))


def names_from(parameters: Mapping[str, Mapping[str, object]], parameter: str) -> dict[str, tuple[str, ...]]:
    """Read one parameter of each tensor that has it; anything but a list of names only means that none are told."""
    found = {}
    for name, given in parameters.items():
        try:
            found[name] = msgspec.json.decode(str(given.get(parameter, "")), type=tuple[str, ...])
        except msgspec.MsgspecError:
            continue
    return {name: names for name, names in found.items() if names}


def _texts(**lists: Sequence[str] | None) -> dict[str, str]:
    return {name: msgspec.json.encode(names).decode() for name, names in lists.items() if names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How many requests ended in one way, or went through one stage, and how long they took together."""

    requests: int
    seconds: float


NOTHING = Ended(requests=0, seconds=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics:
    """Batches of one size.

    Attributes:
        rows: of each of them.
        runs: how many there were.
        seconds: that they ran, together.
    """

    rows: int
    runs: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """What one version has answered since the server began.

    Attributes:
        rows: that were answered.
        succeeded: requests that were answered; None where only rows are counted.
        failed: requests that were not; None where only rows are counted.
        queued: how long requests waited; None where that is not counted.
        computed: how long the batches of requests ran, each request's counted whole; None where that is not counted.
        cached: requests that were given the answer of an equal one. What a look-up took is not measured.
        uncached: that were not, of a model whose answers are cached.
        runs: batches that ran; None where that is not counted. Versions that share a variant share its batches.
        batches: the same by their size.
        last_at_ms: when a request was let in last, in milliseconds since 1970; 0 for never, or nobody knows.
        outcomes: rows by what became of them, where that is told.
    """

    model: str
    version: str
    rows: int
    succeeded: Ended | None = None
    failed: Ended | None = None
    queued: Ended | None = None
    computed: Ended | None = None
    cached: Ended = NOTHING
    uncached: Ended = NOTHING
    runs: int | None = None
    batches: tuple[BatchStatistics, ...] = ()
    last_at_ms: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """How a version is run, as far as clients look at it.

    Attributes:
        max_batch_rows: how many rows one run takes; 0 where an input or output has no free first dimension, so that
            nothing can be joined.
        instances: engines that answer; 1 where none is loaded yet.
        on_gpu: whether they run on a GPU.
        max_delay_s: how long rows wait for others.
        in_parts: whether one request may be answered in several parts.
        versions: which versions are served: ``all``, ``latest 2``, or others by name.
        facts: what else is known, by name.
    """

    metadata: ModelMetadata
    backend: str
    max_batch_rows: int
    instances: int = 1
    on_gpu: bool = False
    max_delay_s: float = 0.0
    in_parts: bool = False
    versions: str = "all"
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One line of the repository index.

    Attributes:
        reason: why it is not READY, or what holds an answer back.
        is_default: whether requests that name no version are meant for it; None where that is not told.
        percent: of the requests that name no version, how many go to it; None where nobody divides them.
        is_certified: whether there is a promise about its cascade; None where nobody knows.
    """

    model: str
    version: str
    state: Readiness
    reason: str = ""
    is_default: bool | None = None
    percent: float | None = None
    is_certified: bool | None = None


def noted(state: ModelState) -> str:
    """Say in one text what a line of the index has no field for over gRPC: reason, default, share, and no promise."""
    facts = [state.reason, "default" if state.is_default else ""]
    facts.append("" if state.percent is None else f"{state.percent:g}% of the traffic")
    facts.append("not certified" if state.is_certified is False else "")
    return "; ".join(fact for fact in facts if fact)
