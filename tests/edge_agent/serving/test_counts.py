"""Counts of rows: nothing is counted twice, nothing is lost between two drains."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.serving.counts import Outcomes
from penstock.wire.outcomes import NOTHING, OutcomeCounts

COUNT = st.integers(0, 1000)


def clock(start: float = 100.0) -> Callable[[], float]:
    now = [start - 1]

    def tick() -> float:
        now[0] += 1
        return now[0]

    return tick


def test_an_interval_is_what_happened_since_the_last_drain() -> None:
    outcomes = Outcomes(now=clock())
    tally = outcomes.open("m", "d1")
    tally.record(kept=3, escalated=1)
    tally.record(unreachable=2, failed=1)
    tally.record(audited=2, audit_harm=1)
    (interval,) = outcomes.drain()
    assert (interval.model, interval.artifact_digest) == ("m", "d1")
    assert interval.counts.requests == 7
    assert interval.counts == OutcomeCounts(kept=3, escalated=1, unreachable=2, failed=1, audited=2, audit_harm=1)
    assert (interval.started_at, interval.ended_at) == (100.0, 101.0)
    assert outcomes.drain() == []
    tally.record(kept=1)
    assert outcomes.drain()[0].started_at == 102.0
    assert tally.total == OutcomeCounts(kept=4, escalated=1, unreachable=2, failed=1, audited=2, audit_harm=1)


@given(st.lists(st.one_of(st.tuples(COUNT, COUNT, COUNT, COUNT), st.just("drain")), max_size=30))
def test_drained_intervals_add_up_to_the_total(steps: list[object]) -> None:
    outcomes = Outcomes(now=lambda: 0.0)
    tally = outcomes.open("m", "d")
    drained = 0
    entered = 0
    for step in steps:
        if isinstance(step, tuple):
            kept, escalated, unreachable, failed = step
            tally.record(kept=kept, escalated=escalated, unreachable=unreachable, failed=failed)
            entered += sum(step)
        else:
            drained += sum(interval.counts.requests for interval in outcomes.drain())
    drained += sum(interval.counts.requests for interval in outcomes.drain())
    assert drained == entered == tally.total.requests


def test_counts_from_before_a_restart_are_in_the_total_and_not_drained_again() -> None:
    outcomes = Outcomes(now=lambda: 0.0)
    tally = outcomes.open("m", "d", OutcomeCounts(kept=10))
    tally.record(kept=1)
    assert tally.total == OutcomeCounts(kept=11)
    assert [interval.counts.kept for interval in outcomes.drain()] == [1]


def test_the_same_artifact_keeps_its_tally_and_another_has_its_own() -> None:
    outcomes = Outcomes(now=lambda: 0.0)
    outcomes.open("m", "d1").record(kept=1)
    outcomes.open("m", "d2").record(failed=1)
    outcomes.open("m", "d1").record(kept=1)
    drained = {interval.artifact_digest: interval.counts for interval in outcomes.drain()}
    assert drained == {"d1": OutcomeCounts(kept=2), "d2": OutcomeCounts(failed=1)}


def test_a_retired_artifact_is_forgotten_once_its_last_counts_are_out() -> None:
    outcomes = Outcomes(now=lambda: 0.0)
    tally = outcomes.open("m", "d")
    tally.record(kept=1)
    outcomes.retire("m", "d")
    outcomes.retire("m", "unknown")
    assert [interval.counts.kept for interval in outcomes.drain()] == [1]
    tally.record(audited=1, audit_harm=0)  # a late audit
    assert [interval.counts.audited for interval in outcomes.drain()] == [1]
    assert outcomes.drain() == []
    assert outcomes.open("m", "d").total == NOTHING
