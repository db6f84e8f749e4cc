"""Whether uncertain rows may go up, how long a call may take, and what is known of the way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.policy import egress
from edge_agent.policy.cascade import Reason
from edge_agent.policy.egress import Permit, RoundTrips, permit

OPEN = {
    "rows": 3, "is_private": False, "is_reachable": True, "p95_s": 0.0, "remaining_s": 1.0, "free_rows": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Permit(rows=3)),
        ({"remaining_s": None, "p95_s": 9.0}, Permit(rows=3)),
        ({"is_private": True, "is_reachable": False}, Permit(rows=0, reason=Reason.PRIVACY)),
        ({"is_reachable": False, "free_rows": 0}, Permit(rows=0, reason=Reason.CLOUD_UNREACHABLE)),
        ({"p95_s": 1.0, "free_rows": 0}, Permit(rows=0, reason=Reason.DEADLINE)),
        ({"p95_s": 0.9}, Permit(rows=3)),
        ({"remaining_s": 0.0}, Permit(rows=0, reason=Reason.DEADLINE)),
        ({"remaining_s": -1.0}, Permit(rows=0, reason=Reason.DEADLINE)),
        ({"free_rows": 2}, Permit(rows=2, reason=Reason.BUDGET)),
        ({"free_rows": 0}, Permit(rows=0, reason=Reason.BUDGET)),
        ({"free_rows": -4}, Permit(rows=0, reason=Reason.BUDGET)),
    ],
)
def test_permit(changes: dict[str, object], expected: Permit) -> None:
    assert permit(**{**OPEN, **changes}) == expected  # type: ignore[arg-type]  # a table of arguments


@given(st.floats(0.002, 1e4), st.floats(0.01, 100))
def test_a_call_ends_before_the_deadline_and_within_the_limit(remaining_s: float, limit_s: float) -> None:
    timeout_s = egress.call_timeout_s(remaining_s, limit_s)
    assert timeout_s <= limit_s
    assert 0 < timeout_s < remaining_s
    assert timeout_s >= min(limit_s, remaining_s - 0.05, remaining_s * 0.5)


@given(
    scores=st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=20),
    count=st.integers(0, 25),
    data=st.data(),
)
def test_the_least_confident_rows_go_first(scores: list[float], count: int, data: st.DataObject) -> None:
    candidates = sorted(data.draw(st.sets(st.integers(0, len(scores) - 1))))
    chosen = egress.least_confident(scores, candidates, count)
    assert chosen == sorted(chosen)
    assert len(chosen) == min(count, len(candidates))
    left = [scores[row] for row in candidates if row not in chosen]
    worst = max((scores[row] for row in chosen if not math.isnan(scores[row])), default=-1.0)
    assert all(score >= worst for score in left if not math.isnan(score))
    assert not (any(math.isnan(score) for score in left) and any(not math.isnan(scores[row]) for row in chosen))


@given(st.lists(st.floats(0, 10), max_size=200))
def test_round_trips_are_bounded_and_p95_is_one_of_them(took: list[float]) -> None:
    trips = RoundTrips()
    for each in took:
        trips = trips.record(each, now=0.0)
    assert len(trips.samples) <= egress.MAX_SAMPLES
    recent = took[-egress.MAX_SAMPLES :]
    if len(recent) < 4:
        assert trips.p95_s(0.0) == 0.0
    else:
        estimate = trips.p95_s(0.0)
        assert estimate in recent
        assert sum(each <= estimate for each in recent) >= 0.95 * len(recent)


def test_an_estimate_is_forgotten_so_that_a_slow_minute_does_not_end_escalation_for_ever() -> None:
    trips = RoundTrips()
    for _ in range(10):
        trips = trips.record(5.0, now=100.0)
    assert trips.p95_s(100.0 + egress.WINDOW_S) == 5.0
    assert trips.p95_s(100.1 + egress.WINDOW_S) == 0.0
