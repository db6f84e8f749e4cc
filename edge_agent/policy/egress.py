"""Decides whether uncertain rows may go up to the cloud now, and how long to wait. Pure: values in, values out.

Which rows are uncertain is ``edge_agent.policy.cascade``. The order of the questions is the order of the reasons a
caller sees: privacy before anything else, then whether the cloud can be reached, then time, then the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.policy.cascade import Reason

WINDOW_S = 30.0
"""Round trips older than this say nothing about now. It also heals: an estimate that stops all escalation is forgotten
after this long, and the next row measures again."""

MAX_SAMPLES = 64
_FEWEST_SAMPLES = 4  # with fewer, one slow connection set-up would speak for all
_RESERVE_SHARE = 0.05
_RESERVE_S = (0.001, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrips:
    """Holds the latest round trips to the cloud.

    Attributes:
        samples: (when it ended, how long it took) in seconds, oldest first; bounded.
    """

    samples: tuple[tuple[float, float], ...] = ()

    def record(self, took_s: float, now: float) -> RoundTrips:
        """Add one more round trip; the oldest of too many is forgotten."""
        return RoundTrips(samples=(*self.samples[-(MAX_SAMPLES - 1) :], (now, took_s)))

    def p95_s(self, now: float) -> float:
        """Return the 95th percentile (nearest rank) of the window; 0.0 while too little is known, which is
        optimistic."""
        recent = sorted(took for at, took in self.samples if now - at <= WINDOW_S)
        if len(recent) < _FEWEST_SAMPLES:
            return 0.0
        return recent[math.ceil(0.95 * len(recent)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Says how many uncertain rows may go up.

    Attributes:
        rows: how many, the least confident first.
        reason: why the others may not.
    """

    rows: int
    reason: Reason = Reason.ESCALATED


def permit(
    *, rows: int, is_private: bool, is_reachable: bool, p95_s: float, remaining_s: float | None, free_rows: int
) -> Permit:
    """Decide about ``rows`` uncertain rows of one request.

    Args:
        is_private: the caller said ``local_only``.
        is_reachable: the circuit to the cloud is closed.
        p95_s: estimated round trip.
        remaining_s: until the request's deadline, None for none.
        free_rows: what the token bucket and the escalation queue have room for.
    """
    if is_private:
        return Permit(rows=0, reason=Reason.PRIVACY)
    if not is_reachable:
        return Permit(rows=0, reason=Reason.CLOUD_UNREACHABLE)
    if remaining_s is not None and call_timeout_s(remaining_s, math.inf) <= p95_s:
        return Permit(rows=0, reason=Reason.DEADLINE)
    if free_rows < rows:
        return Permit(rows=max(free_rows, 0), reason=Reason.BUDGET)
    return Permit(rows=rows)


def call_timeout_s(remaining_s: float, limit_s: float) -> float:
    """Say how long a call may take: ``limit_s`` or what remains, less a reserve in which the device's own answer is
    sent.

    Without the reserve a cloud slower than the deadline would turn every fallback into a missed deadline.
    """
    low, high = _RESERVE_S
    return min(limit_s, remaining_s - min(max(_RESERVE_SHARE * remaining_s, low), high))


def least_confident(scores: Sequence[float], candidates: Sequence[int], count: int) -> list[int]:
    """Return the ``count`` candidate rows with the lowest scores (NaN lowest of all), in row order."""
    if count >= len(candidates):
        return list(candidates)
    ranked = sorted(candidates, key=lambda row: -math.inf if math.isnan(scores[row]) else scores[row])
    return sorted(ranked[:count])
