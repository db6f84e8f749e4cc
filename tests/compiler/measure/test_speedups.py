"""Which model is faster by a clock that is not quiet: what is no faster is not called so, and what is, is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from compiler.measure import speedups


def calls(seed: int, rounds: int, *, seconds: float = 1.0, weather: np.ndarray | None = None) -> np.ndarray:
    """Times of one model: heavy tails, as clocks have them, and the weather of the round."""
    noise = np.random.default_rng(seed).lognormal(0, 0.1, rounds)
    return np.asarray(seconds * noise * (1 if weather is None else weather))


def test_the_interval_holds_the_truth_as_often_as_it_says_whatever_else_the_machine_does():
    missed = 0
    for seed in range(300):
        weather = np.exp(np.cumsum(np.random.default_rng(1000 + seed).normal(0, 0.2, 200)))
        found = speedups.speedup(
            calls(2 * seed, 200, seconds=1.14, weather=weather), calls(2 * seed + 1, 200, weather=weather)
        )
        missed += not found.low <= 1.14 <= found.high
    assert missed <= 0.03 * 300


def test_a_machine_that_stalls_in_one_round_changes_nothing():
    parent, candidate = calls(1, 400, seconds=2.0), calls(2, 400)
    before = speedups.speedup(parent, candidate)
    candidate[200:210] *= 50
    after = speedups.speedup(parent, candidate)
    assert after.value == pytest.approx(before.value, rel=0.02)
    assert after.low > 1.8


@given(rounds=st.integers(1, 60), seed=st.integers(0, 1000))
def test_an_interval_is_ordered_and_turned_round_when_the_models_are(rounds, seed):
    one, other = calls(seed, rounds), calls(seed + 1, rounds, seconds=0.7)
    found, turned = speedups.speedup(one, other), speedups.speedup(other, one)
    assert found.low <= found.value <= found.high
    assert turned.low == pytest.approx(1 / found.high, rel=1e-3)


@pytest.mark.parametrize("count", [8, 12, 20, 50])
def test_the_ends_are_the_order_statistics_of_an_interval_for_the_median(count):
    rank = speedups._rank(count)
    assert stats.binom.cdf(rank, count, 0.5) <= 0.005 < stats.binom.cdf(rank + 1, count, 0.5)


def test_noise_is_what_a_model_seems_to_gain_on_itself_in_either_direction():
    twin = speedups.Speedup(value=0.97, low=0.8, high=1.1)
    assert speedups.noise(twin) == 1.25
    assert speedups.noise(speedups.speedup(np.ones(40), np.ones(40))) == 1.0
