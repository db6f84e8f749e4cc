"""Which queued chunks run together, which are too late, and when to look again.

A chunk is one request's rows; it is never split. Pure: the caller owns queue, clock and device, and calls
:func:`plan_batch` when the device can take work. Chunks that arrive while it is busy simply stay queued, so a batch
grows until it is picked up and no fixed delay is needed (``max_delay_s=0``: whatever is there goes at once).
Does not decide admission: ``max_queue_rows`` is here so that one value describes a queue, its owner enforces it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from penstock.errors import ConfigError

DEFAULT_LEVEL = 2
"""The level of priority 0, one step below an explicit 1: the order is 1, then 0 and 2 alike, then 3, 4, ..."""

LOWEST_LEVEL = 100
"""Larger priorities count as this one, so that the bound on overtaking is finite for everybody."""


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen: made for each request, and freezing costs a microsecond
class Queued:
    """One chunk in the queue.

    Attributes:
        rows: at least 1.
        arrived_at: when it came, in seconds on the caller's clock.
        deadline: when its answer is of no use any more, on the same clock; None for never.
        priority: as in the Open Inference Protocol's extensions: 1 highest, larger lower, 0 the default.
        shape_key: only chunks with equal keys are merged (input names, datatypes and shapes without the batch).
    """

    rows: int
    arrived_at: float
    deadline: float | None = None
    priority: int = 0
    shape_key: Hashable = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Limits of one queue.

    Attributes:
        max_rows: rows of one batch; a larger chunk goes alone.
        max_delay_s: how long an idle device waits for a fuller batch; 0 dispatches at once.
        max_queue_rows: rows that may wait; enforced by the queue's owner.
        ageing_s: seconds of waiting that are worth one level of priority. A chunk of level L is overtaken only by
            chunks of a higher level that arrive within (L - 1) * ageing_s after it, so nothing starves.
    """

    max_rows: int
    max_delay_s: float = 0.0
    max_queue_rows: int = 1024
    ageing_s: float = 1.0

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_queue_rows < 1:
            raise ConfigError(
                f"max_rows ({self.max_rows}) and max_queue_rows ({self.max_queue_rows}) must be at least 1"
            )
        if not (self.max_delay_s >= 0 and self.ageing_s >= 0):
            raise ConfigError(f"max_delay_s ({self.max_delay_s}) and ageing_s ({self.ageing_s}) must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What to do now, as indices into the queue that was given.

    Attributes:
        dispatch: chunks of one batch, in the order in which they run; empty to wait.
        expire: chunks that are too late to be answered in time; never among ``dispatch``.
        wake_at: when to plan again if nothing arrives: the end of the delay or the moment the next chunk that stays
            becomes too late, whichever is first; None when nothing that stays is waiting for a time.
    """

    dispatch: tuple[int, ...]
    expire: tuple[int, ...]
    wake_at: float | None


def plan_batch(queue: Sequence[Queued], limits: BatchLimits, now: float, *, service_time_s: float = 0.0) -> BatchPlan:
    """Choose the next batch from a queue in order of arrival.

    Chunks are ordered by priority, with ageing, and by position within one priority. The first one chooses the
    ``shape_key``; chunks with the same key join in order until the next one does not fit, and none jumps over it. With
    a delay, the first key that is *ready* goes: its batch is full, its oldest chunk has waited ``max_delay_s``, or
    waiting that long would cost a chunk its deadline.

    Linear in the queue while all priorities are equal; otherwise one sort.

    Args:
        now: on the clock of ``arrived_at`` and ``deadline``.
        service_time_s: expected time from dispatch to answer; a chunk that cannot be answered by its deadline expires.
    """
    expire = overdue(queue, now, service_time_s=service_time_s)
    late = set(expire)
    order = _order(queue, [i for i in range(len(queue)) if i not in late] if late else range(len(queue)), limits)
    if limits.max_delay_s == 0:
        dispatch, wake_at = _first_batch(queue, order, limits), None
    else:
        dispatch, wake_at = _first_ready(queue, order, limits, now, service_time_s)
    staying = None if len(dispatch) == len(order) else _earliest_limit(queue, order, dispatch, service_time_s)
    return BatchPlan(dispatch=dispatch, expire=expire, wake_at=_earlier(wake_at, staying))


def overdue(queue: Sequence[Queued], now: float, *, service_time_s: float = 0.0) -> tuple[int, ...]:
    """Indices of chunks whose deadline has passed, or would before an answer that takes ``service_time_s``.

    For callers whose device is busy: what is late can be refused without planning a batch.
    """
    return tuple(
        [i for i, item in enumerate(queue) if item.deadline is not None and item.deadline - service_time_s <= now]
    )


def _order(queue: Sequence[Queued], indices: Sequence[int], limits: BatchLimits) -> Sequence[int]:
    if len({queue[i].priority for i in indices}) <= 1:
        return indices
    # arrival shifted by the level: a fixed key, so ageing needs no clock and two calls never disagree
    return sorted(indices, key=lambda i: queue[i].arrived_at + _level(queue[i].priority) * limits.ageing_s)


def _level(priority: int) -> int:
    return DEFAULT_LEVEL if priority == 0 else min(priority, LOWEST_LEVEL)


def _first_batch(queue: Sequence[Queued], order: Sequence[int], limits: BatchLimits) -> tuple[int, ...]:
    if not order:
        return ()
    key, rows = queue[order[0]].shape_key, 0
    taken: list[int] = []
    for i in order:
        item = queue[i]
        if item.shape_key != key:
            continue
        if taken and rows + item.rows > limits.max_rows:
            break
        taken.append(i)
        rows += item.rows
    return tuple(taken)


def _first_ready(
    queue: Sequence[Queued], order: Sequence[int], limits: BatchLimits, now: float, service_time_s: float
) -> tuple[tuple[int, ...], float | None]:
    """Find the batch of the first key that need not wait; else return () and the end of the earliest delay."""
    by_key: dict[Hashable, list[int]] = {}
    for i in order:
        by_key.setdefault(queue[i].shape_key, []).append(i)
    wake_at = None
    for indices in by_key.values():
        closes_at = min(queue[i].arrived_at for i in indices) + limits.max_delay_s
        limit = _earliest_limit(queue, indices, (), service_time_s)
        is_full = sum(queue[i].rows for i in indices) >= limits.max_rows
        if is_full or closes_at <= now or (limit is not None and limit <= closes_at):
            return _first_batch(queue, indices, limits), None
        wake_at = _earlier(wake_at, closes_at)
    return (), wake_at


def _earliest_limit(
    queue: Sequence[Queued], indices: Iterable[int], without: Sequence[int], service_time_s: float
) -> float | None:
    """Say when the first of these chunks becomes overdue."""
    skipped = set(without)
    deadlines = [d for i in indices if (d := queue[i].deadline) is not None and i not in skipped]
    return min(deadlines) - service_time_s if deadlines else None


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
