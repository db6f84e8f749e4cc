"""Token bucket and concurrency limit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.policy.token_bucket import SLACK, BucketState, TokenBucket

buckets = st.builds(TokenBucket, rate=st.floats(0.01, 1e4), burst=st.floats(0.5, 1e4))
starts = st.sampled_from([0.0, 1.7e9, -5.0])  # a fresh clock, one that has run for long, one below zero
steps = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 200)), max_size=40)


@given(buckets, starts, steps)
def test_no_window_ever_gets_more_than_burst_plus_rate(
    bucket: TokenBucket, start: float, steps: list[tuple[float, float]]
) -> None:
    state, now, taken = bucket.full(start), start, []
    for pause_s, n in steps:
        now += pause_s
        state, wait_s = bucket.take(state, n, now)
        if wait_s == 0:
            taken.append((now, n))
    for first, (begin, _) in enumerate(taken):
        total = 0.0
        for end, n in taken[first:]:
            total += n
            rounding = 1e-9 * bucket.burst + 1e-6 * bucket.rate  # of a clock that reads 1.7e9 seconds
            assert total <= bucket.burst + bucket.rate * (end - begin) + SLACK + rounding


@given(buckets, starts, steps)
def test_waiting_as_long_as_told_is_enough(bucket: TokenBucket, start: float, steps: list[tuple[float, float]]) -> None:
    state, now = bucket.full(start), start
    for pause_s, n in steps:
        now += pause_s
        state, wait_s = bucket.take(state, n, now)
        assert wait_s == 0 or state.tokens <= bucket.burst
        for _ in range(3):  # a coarse clock may need a last tick, but never a spin
            if wait_s in (0.0, math.inf):
                break
            now = max(now + wait_s, math.nextafter(now, math.inf))
            state, wait_s = bucket.take(state, n, now)
        assert wait_s == (math.inf if n > bucket.burst + SLACK else 0.0)


@given(buckets, st.floats(0, 1e6), st.floats(0, 1e4))
def test_a_refusal_takes_nothing(bucket: TokenBucket, idle_s: float, n: float) -> None:
    state = BucketState(tokens=0.0, at=0.0)
    after, wait_s = bucket.take(state, n, idle_s)
    if wait_s > 0:
        assert after.tokens == min(bucket.burst, idle_s * bucket.rate)


def test_a_burst_passes_at_once_and_then_the_rate_holds() -> None:
    bucket = TokenBucket(rate=2.0, burst=4.0)
    state = bucket.full(10.0)
    for _ in range(4):
        state, wait_s = bucket.take(state, 1, 10.0)
        assert wait_s == 0
    state, wait_s = bucket.take(state, 1, 10.0)
    assert wait_s == 0.5
    state, wait_s = bucket.take(state, 1, 10.25)
    assert wait_s == 0.25
    state, wait_s = bucket.take(state, 1, 10.5)
    assert wait_s == 0


def test_more_than_a_full_bucket_can_never_pass_and_says_so() -> None:
    bucket = TokenBucket(rate=1.0, burst=4.0)
    state, wait_s = bucket.take(bucket.full(0.0), 5, 0.0)
    assert wait_s == math.inf
    assert state.tokens == 4.0


def test_a_clock_that_steps_back_neither_gives_nor_takes_tokens() -> None:
    bucket = TokenBucket(rate=1.0, burst=4.0)
    state, _ = bucket.take(bucket.full(100.0), 4, 100.0)
    state, wait_s = bucket.take(state, 1, 50.0)
    assert (state.tokens, wait_s) == (0.0, 1.0)
    state, wait_s = bucket.take(state, 1, 100.5)
    assert wait_s == 0.5


def test_slack_is_a_debt_and_not_a_gift() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0)
    state, wait_s = bucket.take(BucketState(tokens=1 - SLACK / 2, at=0.0), 1, 0.0)
    assert wait_s == 0
    assert state.tokens < 0


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (math.inf, 1), (1, math.inf), (math.nan, 1)])
def test_a_bucket_without_a_positive_rate_and_burst_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ConfigError, match="positive rate and burst"):
        TokenBucket(rate=rate, burst=burst)
