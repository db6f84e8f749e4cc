"""What a batch costs, measured once at warm-up and then followed. Plain functions of values.

Decides nothing about a request: admission and batching do, with these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.errors import DeadlineExceeded

_SMOOTHING = 0.1  # weight of the newest measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTime:
    """What a batch costs: ``fixed_s + rows * per_row_s``, from warm-up, then followed as batches are measured."""

    fixed_s: float = 0.0
    per_row_s: float = 0.0

    def of(self, rows: int) -> float:
        """Expect this many seconds from dispatch to answer of a batch."""
        return self.fixed_s + rows * self.per_row_s

    def observed(self, rows: int, took_s: float) -> ServiceTime:
        """Move a tenth of the way towards a batch of ``rows`` that took ``took_s``; the line keeps its shape."""
        expected = self.of(rows)
        if expected <= 0.0:
            return replace(self, fixed_s=took_s)
        return self._scaled(1.0 + _SMOOTHING * (took_s / expected - 1.0))

    def corrected(self, rows: int, took_s: float) -> ServiceTime:
        """Believe a batch of ``rows`` that took ``took_s`` on its own, after refusals that rested on the estimate."""
        expected = self.of(rows)
        return self._scaled(took_s / expected) if expected > 0.0 else ServiceTime(fixed_s=took_s)

    def _scaled(self, factor: float) -> ServiceTime:
        return ServiceTime(fixed_s=self.fixed_s * factor, per_row_s=self.per_row_s * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What warm-up found out about a model; 0.0 stands for what could not be measured.

    Attributes:
        service: the line through the two measurements below.
        is_batchable: rows of different requests may share a batch, and a request's rows may be run in several.
        one_row_s: seconds for one row; where rows cannot be merged, for one request of the model's fixed size.
        full_batch_s: seconds for the largest batch.
    """

    service: ServiceTime
    is_batchable: bool
    one_row_s: float
    full_batch_s: float


def fitted(one_row_s: float, *, full_rows: int, full_s: float) -> ServiceTime:
    """Draw the line through two measurements, of one row and of a full batch; noise never makes a cost negative."""
    if full_rows <= 1:
        return ServiceTime(fixed_s=max(one_row_s, full_s))
    per_row_s = min(max(0.0, (full_s - one_row_s) / (full_rows - 1)), full_s / full_rows)
    return ServiceTime(fixed_s=full_s - full_rows * per_row_s, per_row_s=per_row_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is before a new chunk at one replica: rows that wait, and when the running batch should be done."""

    rows: int
    max_batch_rows: int
    busy_until: float | None = None


def expected_answer_at(backlog: Backlog, rows: int, service: ServiceTime, now: float) -> float:
    """Estimate when a chunk of ``rows`` that arrives now is answered: the running batch, those that wait, its own.

    The last batch ahead is counted only when it is full: the chunk joins it otherwise.
    """
    start = now if backlog.busy_until is None else max(now, backlog.busy_until)
    full_batches, left = divmod(backlog.rows, backlog.max_batch_rows)
    last = left + rows if left + rows <= backlog.max_batch_rows else rows
    ahead = full_batches * service.of(backlog.max_batch_rows) + (service.of(left) if last == rows and left else 0.0)
    return start + ahead + service.of(last)


def drained_after_s(backlog: Backlog, service: ServiceTime, now: float) -> float:
    """Estimate how long it takes until what waits and what runs is done."""
    start_s = 0.0 if backlog.busy_until is None else max(0.0, backlog.busy_until - now)
    full_batches, left = divmod(backlog.rows, backlog.max_batch_rows)
    return start_s + full_batches * service.of(backlog.max_batch_rows) + (service.of(left) if left else 0.0)


def check_deadline(answer_at: float, deadline: float, now: float, *, alone_s: float = 0.0) -> None:
    """Look whether a deadline can be met.

    Args:
        alone_s: what the answer would take if nothing were before it. A request with less time than that is told no
            time to try again: it would never be in time.

    Raises:
        DeadlineExceeded: it has passed, or the answer would come after it. Says when enough of what is before it
            should be done.
    """
    if deadline <= now:
        raise DeadlineExceeded("the deadline passed before the work could start; nothing was executed")
    if answer_at > deadline:
        raise DeadlineExceeded(
            f"the answer would take about {(answer_at - now) * 1e3:.1f} ms, and {(deadline - now) * 1e3:.1f} ms are "
            "left; nothing was executed",
            retry_after_s=answer_at - deadline if now + alone_s <= deadline else None,
        )
