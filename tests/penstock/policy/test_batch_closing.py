from __future__ import annotations

import pytest

from penstock.policy.batch_closing import MEANINGS, ClosedBy, closed_by
from penstock.policy.batching import BatchLimits, Queued
from tests.penstock.policy.plain_planner import plan_batch


@pytest.mark.parametrize(
    ("rows", "left", "delay_s", "waited_s", "reason"),
    [
        (8, 5, 0.0, 0.0, "full"),
        (9, 0, 0.01, 0.0, "full"),  # a request that is larger than a batch goes alone
        (3, 6, 0.0, 0.0, "no more fitted"),
        (3, 0, 0.0, 5.0, "replica free"),
        (3, 0, 0.01, 0.02, "delay over"),
        (3, 0, 0.01, 0.001, "deadline near"),
    ],
)
def test_a_batch_has_one_reason(rows: int, left: int, delay_s: float, waited_s: float, reason: ClosedBy) -> None:
    assert closed_by(rows, left, BatchLimits(max_rows=8, max_delay_s=delay_s), waited_s) == reason
    assert MEANINGS[reason]


def test_what_the_planner_left_is_what_did_not_fit() -> None:
    limits = BatchLimits(max_rows=8)
    queue = [Queued(rows=5, arrived_at=0.0), Queued(rows=5, arrived_at=0.0)]
    plan = plan_batch(queue, limits, 1.0)
    assert plan.dispatch == (0,)
    assert closed_by(5, 5, limits, 1.0) == "no more fitted"
