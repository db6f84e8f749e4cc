"""The batch planner as a plain function of a list: what ``penstock.policy.batch_line`` does, written to be read.

It looks at everything each time. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from penstock.policy.batching import BatchLimits, Queued, level_of


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
    return sorted(indices, key=lambda i: queue[i].arrived_at + level_of(queue[i].priority) * limits.ageing_s)


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
