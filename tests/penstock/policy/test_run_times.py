from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.run_times import IMMEDIATE_BELOW_S, PREEMPTED_S, Place, RunTimes

LIMIT_S = 3e-4
WORK = st.integers(1, 2**40)
SECONDS = st.floats(1e-7, 100.0)


def seen(*runs: tuple[int, float]) -> RunTimes:
    times = RunTimes()
    for work, took_s in runs:
        times.observe(work, took_s)
    return times


def place(times: RunTimes, work: int) -> Place:
    return times.place(work, on_loop_below_s=LIMIT_S)


@given(WORK)
def test_what_was_never_seen_runs_elsewhere(work: int) -> None:
    assert RunTimes().expected_s(work) == math.inf
    assert place(RunTimes(), work) is Place.ELSEWHERE


@given(st.lists(st.tuples(WORK, SECONDS), max_size=30), WORK, SECONDS)
def test_a_run_that_took_long_counts_at_once(before: list[tuple[int, float]], work: int, took_s: float) -> None:
    times = seen(*before, (work, took_s))
    if took_s < PREEMPTED_S:
        times.observe(work, took_s)  # it may have been the machine: the second time it is the model
    assert times.expected_s(work) >= took_s
    if took_s >= LIMIT_S:
        assert place(times, work) is Place.ELSEWHERE


@given(st.floats(LIMIT_S, PREEMPTED_S, exclude_max=True))
def test_a_process_that_lost_the_cpu_for_a_moment_stays_on_the_loop(hiccup_s: float) -> None:
    times = seen((64, 1e-5), (64, hiccup_s))
    assert place(times, 64) is Place.AT_ONCE
    times.observe(64, 1e-5)
    times.observe(64, hiccup_s)
    assert place(times, 64) is Place.AT_ONCE


@given(WORK, SECONDS, st.integers(1, 2**20))
def test_more_work_than_was_seen_takes_longer_in_proportion(work: int, took_s: float, factor: int) -> None:
    # sizes within a power of two share an estimate, so a factor of two may go unnoticed and no more
    assert seen((work, took_s)).expected_s(work * factor) >= took_s * factor / 2


@given(WORK, SECONDS, SECONDS)
def test_work_between_two_sizes_takes_no_longer_than_the_larger(work: int, small_s: float, large_s: float) -> None:
    assert seen((work, small_s), (work * 8, large_s)).expected_s(work * 2) <= large_s


@given(st.floats(PREEMPTED_S, 2.0))
def test_a_single_slow_run_is_forgiven_after_a_few_quick_ones(slow_s: float) -> None:
    times = seen((64, 1e-5), (64, slow_s))
    runs = 0
    while place(times, 64) is Place.ELSEWHERE:
        times.observe(64, 1e-5)
        runs += 1
    assert 1 <= runs <= 40


def test_a_model_measured_at_one_element_is_not_short_for_six_thousand() -> None:
    times = seen((1, 2e-5))
    assert place(times, 1) is Place.ON_LOOP
    assert place(times, 6000) is Place.ELSEWHERE


def test_what_a_longer_run_really_took_brings_it_back_onto_the_loop() -> None:
    times = seen((1, 2e-5), (6000, 1e-4))
    assert place(times, 6000) is Place.ON_LOOP


@pytest.mark.parametrize(
    ("took_s", "expected"),
    [
        (IMMEDIATE_BELOW_S / 2, Place.AT_ONCE),
        (IMMEDIATE_BELOW_S, Place.ON_LOOP),
        (LIMIT_S / 2, Place.ON_LOOP),
        (LIMIT_S, Place.ELSEWHERE),
    ],
)
def test_where_a_run_goes(took_s: float, expected: Place) -> None:
    assert place(seen((64, took_s)), 64) is expected


def test_a_limit_of_zero_sends_everything_elsewhere() -> None:
    assert seen((64, 1e-9)).place(64, on_loop_below_s=0.0) is Place.ELSEWHERE


def test_it_shows_what_was_seen() -> None:
    assert repr(seen((1, 2e-5), (64, 1e-4))) == "RunTimes(1+: 20 us, 64+: 100 us)"
