"""The power of the sequential tests: compared with counting, and with what was asked for."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.power import binomial_tail, detectable_rate, detectable_share, detection_power, rows_needed
from penstock.policy.sequential import crossed


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0, 1))
def test_a_binomial_tail_is_the_sum_of_its_terms(k: int, n: int, rate: float) -> None:
    terms = [math.comb(n, h) * rate**h * (1 - rate) ** (n - h) for h in range(k, n + 1)]
    assert binomial_tail(k, n, rate) == pytest.approx(math.fsum(terms), abs=1e-9)


def test_power_is_how_often_a_test_crosses() -> None:
    source = random.Random(7)
    n, rate, bound, alpha = 200, 0.06, 0.02, 0.05
    crossings = sum(crossed(sum(source.random() < rate for _ in range(n)), n, bound, alpha) for _ in range(4000))
    assert detection_power(n, rate, bound, alpha) == pytest.approx(crossings / 4000, abs=0.03)


@given(st.floats(0.001, 0.2), st.floats(2, 10), st.floats(1e-4, 0.2), st.floats(0.5, 0.99))
def test_the_rows_that_are_needed_see_the_rate(bound: float, ratio: float, alpha: float, power: float) -> None:
    rate = min(bound * ratio, (1 + bound) / 2)
    n = rows_needed(rate, bound, alpha, power)
    assert detection_power(n, rate, bound, alpha) >= power
    seen = detectable_rate(n, bound, alpha, power)
    assert bound < seen <= rate + 1e-6


@pytest.mark.parametrize("rows", [0, 1, 10**6, 2**62])
def test_any_number_of_rows_has_an_answer(rows: int) -> None:
    for bound in (0.0, 1e-9, 0.02, 0.85, 1.0):
        assert bound <= detectable_rate(rows, bound, 0.01, 0.9) <= 1
    assert 0.05 <= detectable_share(rows, 0.05, 0.9) <= 1


def test_a_canary_of_one_sees_only_what_nearly_always_happens() -> None:
    assert detectable_share(1, 0.05, 0.9) == pytest.approx(0.9)
    assert detectable_share(500, 0.05, 0.9) == pytest.approx(0.065, abs=0.001)
