"""Tokens of a request: room in the model, and what a tenant may spend, whatever clients do."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, Conflict, InvalidInput, QuotaExceeded
from penstock.policy.token_budget import Moment, TokenLimits, TokenQuota

limits = st.builds(
    TokenLimits,
    context_tokens=st.integers(2, 60),
    max_input_tokens=st.none() | st.integers(1, 80),
    max_output_tokens=st.none() | st.integers(1, 80),
)


@given(limits, st.integers(0, 100), st.none() | st.integers(-1, 100))
def test_an_answer_fits_or_is_refused_with_the_numbers(limit: TokenLimits, prompt: int, asked: int | None) -> None:
    fits = prompt < limit.context_tokens and prompt <= (limit.max_input_tokens or math.inf)
    if asked is not None:
        fits = fits and 1 <= asked <= (limit.max_output_tokens or math.inf)
        fits = fits and prompt + asked <= limit.context_tokens
    if not fits:
        with pytest.raises(InvalidInput) as raised:
            limit.answer_tokens(prompt, asked)
        numbers = [word.strip(";,") for word in raised.value.message.split()]
        assert str(prompt) in numbers or str(asked) in numbers
        assert raised.value.field in ("prompt", "max_tokens")
        return
    granted = limit.answer_tokens(prompt, asked)
    assert granted >= 1
    assert asked in (None, granted)
    assert prompt + granted <= limit.context_tokens
    assert granted <= (limit.max_output_tokens or math.inf)


@given(limits, st.lists(st.integers(1, 7), max_size=100))
def test_no_text_that_would_fit_is_refused_for_its_bytes(limit: TokenLimits, token_sizes: list[int]) -> None:
    try:
        limit.check_bytes(sum(token_sizes), longest_token_bytes=7)
    except InvalidInput:
        with pytest.raises(InvalidInput):
            limit.answer_tokens(len(token_sizes), None)


def test_a_text_far_over_the_limit_is_refused_before_it_is_tokenized() -> None:
    limit = TokenLimits(context_tokens=101)
    limit.check_bytes(1600, longest_token_bytes=16)
    with pytest.raises(InvalidInput, match="1601 bytes, which are at least 101 tokens; this model reads at most 100"):
        limit.check_bytes(1601, longest_token_bytes=16)
    limit.check_bytes(10**9, longest_token_bytes=0)


class Tenant:
    """An account with what was truly used of it, by the clock of the test."""

    def __init__(self, quota: TokenQuota) -> None:
        self.quota = quota
        self.moment = Moment(now=5.0, at=86_000.0)
        self.account = quota.account(self.moment)
        self.used_in_all = 0
        self.used_on: dict[int, int] = {}
        self.began_on: dict[str, int] = {}
        self.elapsed = 0.0

    def do(self, action: tuple[str, int, int]) -> None:
        kind, name, number = action
        if kind == "wait":
            self.elapsed += number
            self.moment = Moment(now=self.moment.now + number, at=self.moment.at + number)
        elif kind == "reserve":
            with contextlib.suppress(QuotaExceeded, InvalidInput, Conflict):
                self.account = self.quota.reserve(self.account, str(name), number, self.moment)
                self.began_on[str(name)] = self.account.day
        else:
            reserved = self.account.open.get(str(name))
            self.account = self.quota.settle(self.account, str(name), number, self.moment)
            if reserved:
                used = min(number, reserved.tokens)
                day = self.began_on.pop(str(name))
                self.used_in_all += used
                self.used_on[day] = self.used_on.get(day, 0) + used


actions = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 400)),
        st.tuples(st.just("reserve"), st.integers(0, 3), st.integers(0, 120)),
        st.tuples(st.just("settle"), st.integers(0, 3), st.integers(0, 150)),
    ),
    max_size=40,
)


@given(st.none() | st.integers(1, 150), st.none() | st.integers(1, 200), actions)
def test_nothing_is_spent_twice_and_nothing_is_lost(per_minute: Any, per_day: Any, todo: Any) -> None:
    tenant = Tenant(TokenQuota(per_minute=per_minute, per_day=per_day))
    for action in todo:
        tenant.do(action)
        account, quota = tenant.account, tenant.quota
        reserved = sum(one.tokens for one in account.open.values())
        if account.bucket is not None and per_minute is not None:
            assert -1e-5 <= account.bucket.tokens <= per_minute
            allowed = per_minute * (1 + tenant.elapsed / 60)
            assert tenant.used_in_all + reserved + account.bucket.tokens <= allowed + 1e-5
        if per_day is not None:
            left = quota.left_today(account, tenant.moment)
            day = max(account.day, tenant.moment.day)
            open_today = sum(one.tokens for one in account.open.values() if one.day == day)
            assert left == per_day - tenant.used_on.get(day, 0) - open_today
            assert left >= 0
            assert all(used <= per_day for used in tenant.used_on.values())


@given(st.integers(1, 100), st.integers(0, 150))
def test_what_was_not_used_can_be_used_at_once(tokens: int, used: int) -> None:
    quota, moment = TokenQuota(per_minute=100, per_day=100), Moment(now=0.0, at=0.0)
    account = quota.reserve(quota.account(moment), "a", tokens, moment)
    account = quota.settle(account, "a", used, moment)
    quota.reserve(account, "b", 100 - min(used, tokens), moment)
    again = quota.settle(account, "a", 100, moment)  # a disconnect that is seen twice
    assert again == account


def test_what_cannot_be_reserved_now_says_what_is_left_and_when_there_is_more() -> None:
    quota, moment = TokenQuota(per_minute=60, per_day=100), Moment(now=0.0, at=86_390.0)
    account = quota.reserve(quota.account(moment), "a", 50, moment)
    with pytest.raises(QuotaExceeded, match="20 tokens asked for .* 10 of 60 a minute") as rate:
        quota.reserve(account, "b", 20, moment)
    assert (rate.value.limit, rate.value.remaining, rate.value.reset_s) == (60, 10, pytest.approx(10))
    later = Moment(now=9.0, at=86_399.0)
    with pytest.raises(QuotaExceeded, match="60 tokens asked for .* 50 of 100 a day") as daily:
        quota.reserve(account, "b", 60, later)
    assert (daily.value.limit, daily.value.remaining, daily.value.reset_s) == (100, 50, 1.0)
    tomorrow = Moment(now=60.0, at=86_450.0)
    assert quota.left_today(account, tomorrow) == 100
    assert quota.settle(account, "a", 50, tomorrow).spent == 0  # yesterday's


def test_what_can_never_be_reserved_is_no_matter_of_waiting() -> None:
    quota, moment = TokenQuota(per_minute=60, per_day=50), Moment(now=0.0, at=0.0)
    for tokens, says in ((61, "61 tokens asked for .* 60 a minute"), (55, "55 tokens asked for .* 50 a day")):
        with pytest.raises(InvalidInput, match=says):
            quota.reserve(quota.account(moment), "a", tokens, moment)


def test_a_request_reserves_once() -> None:
    quota, moment = TokenQuota(per_day=50), Moment(now=0.0, at=0.0)
    account = quota.reserve(quota.account(moment), "a", 5, moment)
    with pytest.raises(Conflict):
        quota.reserve(account, "a", 5, moment)


def test_a_clock_that_steps_back_gives_no_new_day() -> None:
    quota, noon = TokenQuota(per_day=50), Moment(now=0.0, at=86_400.0)
    account = quota.settle(quota.reserve(quota.account(noon), "a", 50, noon), "a", 50, noon)
    assert quota.left_today(account, Moment(now=1.0, at=10.0)) == 0


def test_no_limits_are_no_limits() -> None:
    quota, moment = TokenQuota(), Moment(now=0.0, at=0.0)
    account = quota.reserve(quota.account(moment), "a", 10**9, moment)
    assert quota.settle(account, "a", 10**9, moment).open == {}
    for name in ("per_minute", "per_day"):
        with pytest.raises(ConfigError, match=name):
            TokenQuota(**{name: 0})
