"""Why a batch had the rows that it had, for whoever asks afterwards."""

from __future__ import annotations

from typing import Literal

from penstock.policy.batching import BatchLimits

ClosedBy = Literal["full", "no more fitted", "replica free", "delay over", "deadline near"]

MEANINGS: dict[ClosedBy, str] = {
    "full": "it had as many rows as a batch may have",
    "no more fitted": "others waited, but the next one had too many rows, or another shape or other outputs",
    "replica free": "the replica was free, and everybody who waited went",
    "delay over": "its oldest request had waited for max_delay_s",
    "deadline near": "waiting longer would have cost one of its requests its deadline",
}


def closed_by(rows: int, left_rows: int, limits: BatchLimits, waited_s: float) -> ClosedBy:
    """Say why a batch was closed.

    Args:
        rows: that it has.
        left_rows: of requests that go on waiting.
        waited_s: of its oldest request.
    """
    if rows >= limits.max_rows:
        return "full"
    if left_rows:
        return "no more fitted"
    if limits.max_delay_s == 0:
        return "replica free"
    return "delay over" if waited_s >= limits.max_delay_s else "deadline near"
