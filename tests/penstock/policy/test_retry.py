"""Back-off and circuit breaker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.policy.retry import Backoff, CircuitBreaker, Phase

backoffs = st.builds(
    lambda base_s, factor, ratio: Backoff(base_s=base_s, factor=factor, max_s=base_s * ratio),
    st.floats(1e-3, 10),
    st.floats(1, 10),
    st.floats(1, 1e4),
)
draws = st.floats(0, 1, exclude_max=True)
hints = st.none() | st.floats(-1, 1e9)


@given(backoffs, st.integers(0, 10**9), draws, hints)
def test_a_delay_is_never_negative_and_never_above_the_limit(
    backoff: Backoff, attempt: int, random: float, hint: float | None
) -> None:
    assert 0 <= backoff.delay_s(attempt, random, retry_after_s=hint) <= backoff.max_s


@given(backoffs, st.integers(0, 50), draws)
def test_the_jitter_is_full_and_its_range_grows_until_the_limit(backoff: Backoff, attempt: int, random: float) -> None:
    ceiling = min(backoff.max_s, backoff.base_s * backoff.factor**attempt)
    assert backoff.delay_s(attempt, 0.0) == 0.0
    assert backoff.delay_s(attempt, random) == pytest.approx(random * ceiling, rel=1e-9)


@given(backoffs, st.integers(0, 50), draws, st.floats(0, 1e9))
def test_what_the_server_asked_for_is_waited_at_least_up_to_the_limit(
    backoff: Backoff, attempt: int, random: float, hint: float
) -> None:
    assert backoff.delay_s(attempt, random, retry_after_s=hint) >= min(hint, backoff.max_s)


def test_clients_told_the_same_do_not_return_at_once() -> None:
    backoff = Backoff(base_s=1.0, factor=2.0, max_s=60.0)
    assert backoff.delay_s(0, 0.25, retry_after_s=5.0) == 5.25
    assert backoff.delay_s(0, 0.75, retry_after_s=5.0) == 5.75


@pytest.mark.parametrize(
    "bad", [{"base_s": 0.0}, {"base_s": 31.0}, {"factor": 0.5}, {"max_s": math.inf}, {"base_s": math.nan}]
)
def test_a_backoff_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="back-off"):
        Backoff(**bad)


AT = 10.0
CLOSED = CircuitBreaker(failure_limit=2, open_s=5.0)
TROUBLED = replace(CLOSED, failures=1)
OPEN = replace(CLOSED, phase="open", failures=2, since=AT)
HALF = replace(CLOSED, phase="half_open", failures=2, since=AT)
Event = Literal["success", "failure", "asks early", "asks late"]


@pytest.mark.parametrize(
    ("before", "event", "phase", "failures", "since", "allowed"),
    [
        (CLOSED, "success", "closed", 0, 0.0, None),
        (CLOSED, "failure", "closed", 1, 0.0, None),
        (CLOSED, "asks early", "closed", 0, 0.0, True),
        (CLOSED, "asks late", "closed", 0, 0.0, True),
        (TROUBLED, "success", "closed", 0, 0.0, None),
        (TROUBLED, "failure", "open", 2, 11.0, None),
        (TROUBLED, "asks early", "closed", 1, 0.0, True),
        (OPEN, "success", "open", 2, 10.0, None),  # of a call from before it opened
        (OPEN, "failure", "open", 2, 10.0, None),  # likewise: must not keep it open longer
        (OPEN, "asks early", "open", 2, 10.0, False),
        (OPEN, "asks late", "half_open", 2, 15.0, True),
        (HALF, "success", "closed", 0, 0.0, None),
        (HALF, "failure", "open", 3, 11.0, None),
        (HALF, "asks early", "half_open", 2, 10.0, False),  # one probe at a time
        (HALF, "asks late", "half_open", 2, 15.0, True),  # the first probe was lost
    ],
)
def test_breaker_table(
    before: CircuitBreaker, event: Event, phase: Phase, failures: int, since: float, allowed: bool | None
) -> None:
    answer: bool | None = None
    match event:
        case "asks early":
            after, answer = before.allows(14.999)
        case "asks late":
            after, answer = before.allows(15.0)
        case _:
            after = before.record(event == "success", 11.0)
    assert (after.phase, after.failures, after.since, answer) == (phase, failures, since, allowed)
    assert (after.failure_limit, after.open_s) == (2, 5.0)


events = st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["ask", "success", "failure"])), max_size=60)


@given(events, st.integers(1, 4))
def test_while_not_closed_at_most_one_call_per_open_period_gets_through(
    events: list[tuple[float, str]], failure_limit: int
) -> None:
    breaker, now, last_probe = CircuitBreaker(failure_limit=failure_limit, open_s=2.0), 0.0, -math.inf
    for pause_s, event in events:
        now += pause_s
        if event == "ask":
            was_closed = breaker.phase == "closed"
            opened_at = breaker.since
            breaker, allowed = breaker.allows(now)
            assert allowed == (was_closed or now - opened_at >= 2.0)
            assert (breaker.wait_s(now) == 0) == was_closed
            if allowed and not was_closed:
                assert now - last_probe >= 2.0
                last_probe = now
        else:
            breaker = breaker.record(event == "success", now)
        assert (breaker.phase == "closed") == (breaker.failures < failure_limit)


@given(events)
def test_a_peer_that_is_back_always_closes_the_breaker_within_one_period(events: list[tuple[float, str]]) -> None:
    breaker, now = CircuitBreaker(failure_limit=2, open_s=2.0), 0.0
    for pause_s, event in events:
        now += pause_s
        breaker = breaker.allows(now)[0] if event == "ask" else breaker.record(event == "success", now)
    now += breaker.wait_s(now)
    breaker, allowed = breaker.allows(math.nextafter(now, math.inf))
    assert allowed
    assert breaker.record(True, now).phase == "closed"


def test_each_probe_that_fails_doubles_the_wait_up_to_the_limit_and_a_success_ends_that() -> None:
    breaker, now, waits = replace(OPEN, max_open_s=30.0), AT, []
    for _ in range(100):
        waits.append(breaker.wait_s(now))
        now += waits[-1]
        breaker, allowed = breaker.allows(now)
        assert allowed
        breaker = breaker.record(False, now)
    assert waits[:5] == [5.0, 10.0, 20.0, 30.0, 30.0]
    assert waits[-1] == 30.0
    breaker = breaker.allows(now + 30.0)[0].record(True, now + 30.0)
    assert (breaker.phase, breaker.failed_probes) == ("closed", 0)


def test_the_wait_is_what_is_left_of_the_open_period() -> None:
    assert (OPEN.wait_s(11.0), OPEN.wait_s(20.0), CLOSED.wait_s(11.0)) == (4.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [{"failure_limit": 0}, {"open_s": -1.0}, {"open_s": math.inf}, {"max_open_s": 1.0}])
def test_a_breaker_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="breaker"):
        CircuitBreaker(**bad)  # type: ignore[arg-type]
