"""One inference as values: what every transport decodes into and encodes from. Knows no transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.errors import DeadlineExceeded, InvalidInput
from penstock.wire.tensors import Array, TensorSpec

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
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
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """An OIP inference response; ``parameters`` carry the cascade's account of itself when an agent answers."""

    model: str
    version: str = ""
    id: str = ""
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """What ``ModelMetadata`` of the OIP answers."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """What travels beside a request. ``deadline`` is on the clock of the process that holds this object."""

    deadline: float | None = None
    priority: int = 0
    request_id: str = ""
    traceparent: str = ""
    tenant: str = ""


def earliest_timeout_s(request: InferRequest, *others_s: float | None) -> float | None:
    """The smallest of the request's ``timeout`` parameter (microseconds) and the transport's own limits (seconds).

    An expired limit stays expired: it is never clamped to 0 and so to "most urgent".

    Raises:
        InvalidInput: ``timeout`` is not a number of microseconds.
        DeadlineExceeded: the earliest limit is already over.
    """
    limits = [s for s in others_s if s is not None]
    micros = request.parameters.get("timeout")
    if micros is not None:
        if isinstance(micros, bool) or not isinstance(micros, int | float):
            raise InvalidInput(
                f"parameters.timeout: {micros!r} is not a number of microseconds", field="parameters.timeout"
            )
        if micros != 0:  # Triton's convention: 0 means no timeout
            limits.append(micros / 1e6)
    if not limits:
        return None
    earliest = min(limits)
    if earliest <= 0:
        raise DeadlineExceeded("the deadline had passed on arrival; nothing was executed")
    return earliest


def priority_of(request: InferRequest) -> int:
    """The request's ``priority`` parameter: 0 is the default, 1 the highest, larger numbers lower.

    Raises:
        InvalidInput: not a non-negative integer.
    """
    priority = request.parameters.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int) or priority < 0:
        raise InvalidInput(
            f"parameters.priority: {priority!r} is not a non-negative integer (1 is highest, 0 default)",
            field="parameters.priority",
        )
    return priority
