"""What a batch costs, measured once at warm-up and then followed. Plain functions of values.

Decides nothing about a request: admission and batching do, with these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_SMOOTHING = 0.1  # weight of the newest measurement
_DOUBT = 0.98  # what a refusal leaves of an estimate


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

    def doubted(self) -> ServiceTime:
        """Trust this estimate a little less, after a refusal that rests on it.

        Refused work is never measured: without this, one slow spell could keep everything out for good.
        """
        return self._scaled(_DOUBT)

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
