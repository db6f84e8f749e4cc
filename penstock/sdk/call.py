"""What both clients share, as plain functions and values: inputs to arrays, the result, when another try is worth it.

No transport, no clock, no randomness: those belong to ``penstock.sdk.client`` and ``penstock.sdk.aio``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from penstock.errors import Conflict, DeadlineExceeded, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.policy.retry import Backoff
from penstock.sdk import frames
from penstock.sdk.casting import cast, is_unchosen, listed
from penstock.wire.context import MAX_TIMEOUT_S
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata, Parameter
from penstock.wire.tensors import Array, TensorSpec, check_inputs

DEFAULT_TIMEOUT_S = 30.0
MAX_KNOWN_MODELS = 256  # metadata kept per client


class Frame(Protocol):
    """A table with named columns: of pandas, polars, pyarrow, or another library that gives a column by its name."""

    def __getitem__(self, name: Any, /) -> Any: ...


Inputs = Array | Sequence[Any] | Frame | Mapping[str, Array | Sequence[Any] | Frame]

_BACKOFF = Backoff(base_s=0.05, factor=2.0, max_s=30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResult:
    """An answer. The arrays may be read-only views, and rows of a merged request share one buffer: copy to keep one.

    Attributes:
        outputs: arrays by output name; dimension 0 is the batch.
        version: what answered: the artifact's tag, or whatever the server calls its version.
        parameters: everything that the server said beside the outputs; the properties below read from it.
        labels: names of the classes by output, where they were asked for and the server tells them.
    """

    outputs: Mapping[str, Array]
    model: str
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Parameter]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Name the class with the highest score for each row; () without labels."""
        for name, labels in self.labels.items():
            scores = self.outputs.get(name)
            if scores is not None and scores.ndim == 2 and scores.shape[1] == len(labels):
                return tuple(labels[best] for best in scores.argmax(axis=1).tolist())
        return ()

    @property
    def served_by(self) -> str:
        """Say who answered: ``edge``, ``cloud`` or ``mixed``; "" when the server does not say (it is not an agent)."""
        return str(self.parameters.get("served_by", ""))

    @property
    def confidence(self) -> float | None:
        """Return the lowest confidence of the rows, in [0, 1]; None when the server does not say."""
        return number_of(self.parameters.get("confidence"))

    @property
    def threshold(self) -> float | None:
        """Return the certified threshold that confidence was held against; None when there is none."""
        return number_of(self.parameters.get("threshold"))

    @property
    def certificate(self) -> str:
        """Digest of the certificate in force, or ""."""
        return str(self.parameters.get("certificate", ""))

    @property
    def reason(self) -> str:
        """Say why this one answered (``confident``, ``escalated``, ...); "" from anything but an agent."""
        return str(self.parameters.get("reason", ""))

    @property
    def rows(self) -> int:
        """Count the rows of the first output."""
        return next((a.shape[0] for a in self.outputs.values() if a.ndim), 1)


def result_of(response: InferResponse) -> InferResult:
    """Make the result that a response stands for."""
    return InferResult(
        outputs=response.outputs,
        model=response.model,
        version=response.version,
        id=response.id,
        parameters=response.parameters,
    )


def needs_metadata(inputs: Inputs) -> bool:
    """Say whether inputs can only be sent once the model's input names, datatypes and columns are known: all but
    arrays by name that may not be columns, with a dtype that somebody chose.
    """
    if not isinstance(inputs, Mapping):
        return True
    return not all(
        isinstance(value, np.ndarray) and value.ndim != 1 and not is_unchosen(value) for value in inputs.values()
    )


def is_table(inputs: Inputs, known: ModelMetadata) -> bool:
    """Say whether inputs hold a table or a dict of columns, which are matched by name."""
    by_name = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return any(map(frames.is_frame, by_name)) or frames.is_by_column(inputs, known.inputs, known.columns)


def arrays_of(
    inputs: Inputs, specs: Sequence[TensorSpec], columns: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Array]:
    """Inputs as arrays by name. Lists, and arrays with a dtype that nobody chose, get the datatype that the model asks
    for (:mod:`penstock.sdk.casting`); other arrays are taken as they are. A table, and a dict of columns, give their
    columns by name.

    Args:
        specs: the model's inputs; may be empty when :func:`needs_metadata` says so.
        columns: the columns that make each input, as far as the model says.

    Raises:
        InvalidInput: a bare array for a model with several inputs, a value that does not fit, or a table whose columns
            are not the model's.
    """
    if frames.is_frame(inputs) or frames.is_by_column(inputs, specs, columns or {}):
        return frames.inputs_of(inputs, specs, columns or {})
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InvalidInput(f"inputs: the model has {len(specs)} ({names}); give a dict by name", field="inputs")
        return {specs[0].name: _array(inputs, specs[0])}
    by_name = {spec.name: spec for spec in specs}
    return {name: _named(name, value, by_name.get(name), columns or {}) for name, value in inputs.items()}


def fitting(inputs: Inputs, known: ModelMetadata) -> dict[str, Array]:
    """Return inputs as arrays that fit a model.

    Raises:
        InvalidInput: they do not.
    """
    arrays = arrays_of(inputs, known.inputs, known.columns)
    check_inputs(arrays, known.inputs)
    return arrays


def seconds_left(deadline: float, now: float, timeout_s: float) -> float:
    """Return the seconds that are left until ``deadline``.

    Raises:
        DeadlineExceeded: nothing. It is never clamped to 0, which servers read as "no limit".
    """
    left = deadline - now
    if left <= 0:
        raise too_late(timeout_s)
    return left


def too_late(timeout_s: float) -> DeadlineExceeded:
    """Make the error for a call that took longer than its caller allowed."""
    if timeout_s <= 0:  # what was left of the time of a request that waited to be merged
        return DeadlineExceeded("the time for the call was over before it could be sent; give it a longer timeout")
    return DeadlineExceeded(f"no answer within {timeout_s:.4g} s")


def closed(client: str) -> Conflict:
    """Make the error for a call on a client that was closed."""
    return Conflict(f"{client} is closed, so it takes no further calls; make another client")


def check_timeout(timeout_s: float) -> float:
    """Return a limit that every transport can hold: what is longer than anybody waits is ``MAX_TIMEOUT_S``.

    Raises:
        InvalidInput: not a positive number of seconds.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise InvalidInput(f"timeout: {timeout_s!r} is not a positive number of seconds", field="timeout")
    return min(float(timeout_s), MAX_TIMEOUT_S)


def make_request(
    model: str,
    arrays: Mapping[str, Array],
    *,
    version: str = "",
    outputs: Sequence[str] = (),
    priority: int = 0,
    parameters: Mapping[str, Parameter] | None = None,
    request_id: str = "",
) -> InferRequest:
    """Make a request without its timeout, which each try adds for itself (:func:`with_timeout`).

    Raises:
        InvalidInput: ``timeout`` among the parameters, or a priority that is not a non-negative integer.
    """
    return InferRequest(
        model=model,
        version=version,
        id=request_id,
        inputs=arrays,
        outputs=tuple(outputs),
        parameters=checked_parameters(parameters, priority),
    )


def checked_parameters(parameters: Mapping[str, Parameter] | None, priority: int) -> dict[str, Parameter]:
    """Return the parameters of a request with its priority, where that is not the default.

    Raises:
        InvalidInput: ``timeout`` among the parameters, or a priority that is not a non-negative integer.
    """
    checked: dict[str, Parameter] = dict(parameters or {})
    if "timeout" in checked:
        raise InvalidInput("parameters.timeout: pass timeout= in seconds instead", field="parameters.timeout")
    if isinstance(priority, bool) or not isinstance(priority, int) or priority < 0:
        raise InvalidInput(f"priority: {priority!r} is not a non-negative integer", field="priority")
    if priority:
        checked["priority"] = priority
    return checked


def with_timeout(request: InferRequest, timeout_s: float) -> InferRequest:
    """Add the *remaining* time as the parameter ``timeout`` (microseconds, reserved by the protocol)."""
    return InferRequest(
        model=request.model,
        version=request.version,
        id=request.id,
        inputs=request.inputs,
        outputs=request.outputs,
        parameters={**request.parameters, "timeout": max(1, int(timeout_s * 1e6))},
    )


def next_try_after_s(error: PenstockError, *, attempt: int, retries: int, left_s: float, random: float) -> float | None:
    """Decide how long to wait before another try; None is to give up.

    Only what was refused before any work is tried again, and only when the server said when: a target without a
    server fails at once instead. The server's hint is kept, and jitter spreads the callers that got the same hint.

    Args:
        attempt: tries so far, from 1.
        random: uniform in [0, 1).
    """
    if attempt > retries or error.retry_after_s is None or not isinstance(error, Unavailable | QueueFull):
        return None
    wait_s = _BACKOFF.delay_s(attempt - 1, random, retry_after_s=error.retry_after_s)
    return wait_s if wait_s < left_s else None


def _named(name: str, value: Any, spec: TensorSpec | None, columns: Mapping[str, Sequence[str]]) -> Array:
    if spec is not None and frames.is_frame(value):
        return frames.inputs_of(value, (spec,), columns, field=f"inputs.{name}")[name]
    return _array(value, spec)


def _array(value: Any, spec: TensorSpec | None) -> Array:
    if not isinstance(value, np.ndarray):
        return listed(value, spec.datatype if spec else "", f"inputs.{spec.name}" if spec else "inputs")
    if spec is None:  # a name that the model does not have: the server says which it has
        return value
    field = f"inputs.{spec.name}"
    return cast(value, spec.datatype, field) if is_unchosen(value) else value


def number_of(value: Parameter | None) -> float | None:
    """Return a parameter that is a number; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
