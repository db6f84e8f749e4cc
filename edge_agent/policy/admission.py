"""Decides whether another request may enter. Pure: counts in, a refusal or nothing out.

Two looks: one on arrival, before the body is read (so that refusing costs nothing), and one when its rows are known.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, QueueFull, TooLarge, Unavailable
from penstock.policy.memory import MemoryLimit

RETRY_AFTER_S = 0.05
"""A queue on a device drains in milliseconds; a hint of a whole second would idle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Holds what a client may ask for; see ``edge_agent.settings.LimitsSettings``."""

    max_body_bytes: int
    max_queue_rows: int
    max_rows_per_request: int
    max_inflight_bytes: int


@dataclass(slots=True)
class Load:
    """Counts what was admitted and not answered yet. Mutable: the shell that admits owns the only one."""

    rows: int = 0
    requests: int = 0
    body_bytes: int = 0
    is_draining: bool = False


def on_arrival(load: Load, limits: Limits, *, content_length: int | None) -> PenstockError | None:
    """Refuse a request before its body is read; None lets it in.

    Args:
        content_length: as announced; None for a chunked body, which is then counted as the largest.
    """
    if load.is_draining:
        return Unavailable("the agent is stopping; try again when it is back", retry_after_s=1.0)
    if content_length is not None and content_length > limits.max_body_bytes:
        return TooLarge(
            f"the body has {content_length} bytes, the limit is {limits.max_body_bytes} (limits.max_body_bytes)",
            limit_bytes=limits.max_body_bytes,
        )
    if load.rows >= limits.max_queue_rows or load.requests >= limits.max_queue_rows:
        return QueueFull(
            f"{load.rows} rows are in flight, the limit is {limits.max_queue_rows} (limits.max_queue_rows)",
            retry_after_s=RETRY_AFTER_S,
        )
    asked = reserved_bytes(limits, content_length)
    if load.body_bytes + asked <= limits.max_inflight_bytes:
        return None
    memory = MemoryLimit(max_bytes=limits.max_inflight_bytes, setting="limits.max_inflight_bytes")
    return memory.refusal(asked, held=load.body_bytes, retry_after_s=RETRY_AFTER_S)


def reserved_bytes(limits: Limits, content_length: int | None) -> int:
    """Return what a body counts for while it is read."""
    return limits.max_body_bytes if content_length is None else content_length


def on_rows(load: Load, limits: Limits, *, rows: int) -> PenstockError | None:
    """Refuse a decoded request of ``rows`` rows; None lets it run."""
    if rows > limits.max_rows_per_request:
        return InvalidInput(
            f"inputs: {rows} rows, the limit is {limits.max_rows_per_request} per request "
            "(limits.max_rows_per_request); send them in several requests",
            field="inputs",
        )
    # a request that alone is larger than the queue could never run: it may when nothing else does
    if load.rows and load.rows + rows > limits.max_queue_rows:
        return QueueFull(
            f"{load.rows} rows are in flight and {rows} more would pass the limit of {limits.max_queue_rows} "
            "(limits.max_queue_rows)",
            retry_after_s=RETRY_AFTER_S,
        )
    return None


def on_deadline(deadline: float | None, now: float) -> PenstockError | None:
    """Refuse work whose deadline has passed; expired work is never executed."""
    return expired() if deadline is not None and now >= deadline else None


def expired() -> DeadlineExceeded:
    """Return the refusal of expired work."""
    return DeadlineExceeded("the deadline passed before the model ran; nothing was executed")
