from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.tenant_limits import (
    UNLIMITED,
    TenantLimits,
    TenantState,
    begin,
    end,
    opened,
    priority_within,
    take_rows,
)
from penstock.errors import InvalidInput, PenstockError, QuotaExceeded, TooLarge
from penstock.policy.token_bucket import TokenBucket
from penstock.policy.token_budget import Moment

DAY_S = 86_400
ROWS = TenantLimits(rows=TokenBucket(rate=10.0, burst=20.0))


def at(now: float) -> Moment:
    return Moment(now=now, at=1000 * DAY_S + now)


def test_a_tenant_over_its_rate_is_told_when_to_come_back() -> None:
    state = take_rows(ROWS, opened(ROWS, 0.0), 20, at(0.0), "shop")
    with pytest.raises(QuotaExceeded) as caught:
        take_rows(ROWS, state, 5, at(0.1), "shop")
    error = caught.value
    assert (error.limit, error.remaining, error.reason) == (20, 1, "rejected-quota")
    assert error.reset_s == pytest.approx(0.4)
    later = take_rows(ROWS, state, 5, at(0.1 + error.reset_s), "shop")
    assert later.rows is not None
    assert later.rows.tokens == pytest.approx(0.0, abs=1e-6)


def test_more_rows_than_a_burst_are_a_bad_request_since_waiting_would_not_help() -> None:
    with pytest.raises(InvalidInput, match="20 at once"):
        take_rows(ROWS, opened(ROWS, 0.0), 21, at(0.0), "shop")


def test_more_bytes_than_a_burst_are_too_large_and_bytes_of_unknown_number_are_refused() -> None:
    limits = TenantLimits(bytes=TokenBucket(rate=100.0, burst=1000.0))
    with pytest.raises(TooLarge) as caught:
        begin(limits, opened(limits, 0.0), 1001, at(0.0), "shop")
    assert caught.value.limit_bytes == 1000
    with pytest.raises(InvalidInput, match="Content-Length"):
        begin(limits, opened(limits, 0.0), None, at(0.0), "shop")
    state = begin(limits, opened(limits, 0.0), 1000, at(0.0), "shop")
    with pytest.raises(QuotaExceeded, match="bytes a second"):
        begin(limits, state, 1, at(0.0), "shop")


def test_a_refusal_takes_nothing_of_the_other_limits() -> None:
    limits = TenantLimits(requests=TokenBucket(rate=1.0, burst=2.0), bytes=TokenBucket(rate=1.0, burst=10.0))
    state = begin(limits, opened(limits, 0.0), 10, at(0.0), "shop")
    with pytest.raises(QuotaExceeded, match="bytes"):
        begin(limits, state, 10, at(0.0), "shop")
    assert begin(limits, state, 0, at(0.0), "shop").requests == TokenBucket(rate=1.0, burst=2.0).take(
        TokenBucket(rate=1.0, burst=2.0).full(0.0), 2, 0.0
    )[0]  # fmt: skip


def test_requests_in_flight_are_counted_down_at_their_end() -> None:
    limits = TenantLimits(max_inflight=2)
    state = opened(limits, 0.0)
    for _ in range(2):
        state = begin(limits, state, None, at(0.0), "shop")
    with pytest.raises(QuotaExceeded) as caught:
        begin(limits, state, None, at(0.0), "shop")
    assert (caught.value.limit, caught.value.remaining) == (2, 0)
    assert begin(limits, end(state), None, at(0.0), "shop").inflight == 2


def test_a_day_ends_at_midnight_and_a_clock_that_steps_back_begins_no_new_one() -> None:
    limits = TenantLimits(requests_per_day=2, rows_per_day=10)
    state = opened(limits, 0.0, day=1000, requests=1, rows=9)
    state = begin(limits, state, None, at(60.0), "shop")
    with pytest.raises(QuotaExceeded) as caught:
        begin(limits, state, None, at(60.0), "shop")
    assert (caught.value.limit, caught.value.remaining) == (2, 0)
    assert caught.value.reset_s == pytest.approx(DAY_S - 60)
    with pytest.raises(QuotaExceeded, match="1 of its 10 rows a day left"):
        take_rows(limits, state, 2, at(60.0), "shop")
    assert begin(limits, state, None, at(DAY_S), "shop").day_requests == 1
    with pytest.raises(QuotaExceeded):
        begin(limits, state, None, at(-DAY_S), "shop")
    with pytest.raises(InvalidInput, match="10 a day"):
        take_rows(limits, state, 11, at(DAY_S), "shop")


@pytest.mark.parametrize(
    ("best", "asked", "gets"), [(1, 1, 1), (2, 1, 2), (2, 0, 0), (2, 2, 2), (3, 0, 3), (3, 1, 3), (3, 9, 9)]
)
def test_nobody_gets_a_better_priority_than_the_best_of_the_tenant(best: int, asked: int, gets: int) -> None:
    assert priority_within(TenantLimits(best_priority=best), asked) == gets


def test_a_tenant_without_limits_is_not_limited() -> None:
    state = opened(UNLIMITED, 0.0)
    for _ in range(3):
        state = take_rows(UNLIMITED, begin(UNLIMITED, state, None, at(0.0), "free"), 10**9, at(0.0), "free")
    assert (state.inflight, state.requests, state.rows, state.bytes) == (3, None, None, None)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["begin", "end", "rows", "wait"]), st.integers(0, 400)), max_size=60),
    most=st.integers(1, 4),
)
def test_whatever_comes_no_limit_is_passed(steps: list[tuple[str, int]], most: int) -> None:
    limits = TenantLimits(
        rows=TokenBucket(rate=50.0, burst=100.0), max_inflight=most, requests_per_day=20, rows_per_day=300
    )
    state: TenantState = opened(limits, 0.0, day=1000)
    now, open_now, requests, rows = 0.0, 0, 0, 0
    for what, n in steps:
        before = state
        try:
            if what == "begin":
                state = begin(limits, state, n, at(now), "shop")
                open_now, requests = open_now + 1, requests + 1
            elif what == "rows":
                state = take_rows(limits, state, n, at(now), "shop")
                rows += n
            elif what == "end" and open_now:
                state, open_now = end(state), open_now - 1
            elif what == "wait":
                now += n / 100
        except PenstockError:
            assert state is before
        assert state.inflight == open_now <= most
        assert requests <= 20
        assert rows <= min(300, 100 + 50 * now + 1e-3)
