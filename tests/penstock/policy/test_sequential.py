"""E-processes: that they are fair bets, depend on totals alone, rarely cry wolf, and see real harm soon."""

from __future__ import annotations

import json
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.policy.sequential import STAKES, crossed, e_value_above

bounds = st.floats(1e-4, 0.9)
totals = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def first_crossings(bound: float, alpha: float, longest: int) -> np.ndarray:
    """Entry n - 1 is the least harm among n outcomes at which the test crosses (n + 1 when none does)."""
    table, least = np.empty(longest, dtype=np.int64), 0
    for n in range(1, longest + 1):
        while least <= n and not crossed(least, n, bound, alpha):
            least += 1  # harmless outcomes only lower the value, so the least never falls
        table[n - 1] = least
    return table


def crossing_times(rate: float, bound: float, alpha: float, *, runs: int, longest: int, seed: int) -> list[int]:
    """After how many outcomes each run that crosses does so first, looking after every outcome."""
    rng = np.random.default_rng(seed)
    table = first_crossings(bound, alpha, longest)
    above = np.cumsum(rng.random((runs, longest)) < rate, axis=1) >= table
    return [int(row.argmax()) + 1 for row in above if row.any()]


@given(totals, bounds)
def test_at_the_bound_the_bet_is_exactly_fair_and_below_it_it_loses(total: tuple[int, int], bound: float) -> None:
    harm, n = total
    now, worse, better = (e_value_above(k, m, bound) for k, m in ((harm, n), (harm + 1, n + 1), (harm, n + 1)))
    assume(worse < 1e290)  # beyond, evidence is cut off before it overflows, and the bet no longer fair
    assert bound * worse + (1 - bound) * better == pytest.approx(now, rel=1e-6)
    for rate in (0.0, bound / 2, bound * 0.99):
        assert rate * worse + (1 - rate) * better <= now * (1 + 1e-9)


@given(totals, bounds)
def test_more_harm_is_more_evidence_and_more_harmless_outcomes_are_less(total: tuple[int, int], bound: float) -> None:
    harm, n = total
    here = e_value_above(harm, n, bound)
    assert e_value_above(harm, n + 1, bound) <= here
    assert e_value_above(harm + 1, n + 1, bound) >= here
    if harm < n:
        assert e_value_above(harm + 1, n, bound) >= here


@given(st.lists(st.booleans(), max_size=60), bounds, st.randoms(use_true_random=False))
def test_order_and_batches_do_not_matter(outcomes: list[bool], bound: float, shuffle: random.Random) -> None:
    shuffle.shuffle(outcomes)
    wealth = [1.0] * len(STAKES)
    for is_harm in outcomes:  # one at a time, in this order, each stake reinvested
        wealth = [w * (1 + s * ((1 if is_harm else 0) - bound) / bound) for w, s in zip(wealth, STAKES, strict=True)]
    cut = shuffle.randint(0, len(outcomes))
    batches = [outcomes[:cut], outcomes[cut:]]
    harm, n = sum(sum(batch) for batch in batches), sum(len(batch) for batch in batches)
    assert e_value_above(harm, n, bound) == pytest.approx(statistics.fmean(wealth), rel=1e-6)


@given(totals, bounds, st.floats(1e-6, 0.5))
def test_crossing_is_the_value_reaching_one_over_alpha(total: tuple[int, int], bound: float, alpha: float) -> None:
    value = e_value_above(*total, bound)
    if not math.isclose(value * alpha, 1.0, rel_tol=1e-9):
        assert crossed(*total, bound, alpha) == (value >= 1 / alpha)


@pytest.mark.parametrize(("bound", "alpha"), [(0.05, 0.05), (0.02, 0.05), (0.05, 0.01), (0.3, 0.05)])
def test_looking_after_every_outcome_cries_wolf_with_probability_at_most_alpha(bound: float, alpha: float) -> None:
    runs = 4000
    false_alarms = len(crossing_times(bound, bound, alpha, runs=runs, longest=1500, seed=20)) / runs
    assert false_alarms <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    assert false_alarms > alpha / 10  # the test is no coward either, or power is thrown away


def test_the_simulation_would_notice_a_test_that_is_not_anytime_valid() -> None:
    """The same monitoring with a fixed-sample p-value of 5% alarms far too often: the simulation can fail."""
    rng = np.random.default_rng(20)
    n = np.arange(1, 1501)
    harm = np.cumsum(rng.random((1000, 1500)) < 0.05, axis=1)
    z = (harm - n * 0.05) / np.sqrt(n * 0.05 * 0.95)
    assert (z[:, 50:] > 1.645).any(axis=1).mean() > 0.2


@pytest.mark.parametrize(
    ("rate", "share", "median_at_most"),
    [(0.15, 1.0, 90), (0.30, 1.0, 20), (1.00, 1.0, 3)],
)
def test_harm_above_a_bound_of_5_percent_is_seen_soon(rate: float, share: float, median_at_most: int) -> None:
    times = crossing_times(rate, 0.05, 0.01, runs=300, longest=1000, seed=4)
    assert len(times) / 300 >= share
    assert statistics.median(times) <= median_at_most


def test_a_healthy_fleet_is_not_stopped() -> None:
    assert crossing_times(0.02, 0.05, 0.01, runs=300, longest=1000, seed=4) == []


def test_nothing_seen_is_no_evidence() -> None:
    assert e_value_above(0, 0, 0.05) == 1.0
    assert not crossed(0, 0, 0.05, 0.99)


def test_a_bound_of_zero_is_refuted_by_one_case_and_a_bound_of_one_never() -> None:
    assert not crossed(0, 10**6, 0.0, 0.01)
    assert crossed(1, 10**6, 0.0, 0.01)
    assert not crossed(10**6, 10**6, 1.0, 0.01)


@pytest.mark.parametrize("harm", [0, 10**8, 10**9])
@pytest.mark.parametrize("bound", [0.0, 1e-12, 0.02, 1.0])
def test_values_stay_finite_and_fit_into_json(harm: int, bound: float) -> None:
    value = e_value_above(harm, 10**9, bound)
    assert json.loads(json.dumps(value, allow_nan=False)) == value >= 0


@pytest.mark.parametrize(
    ("harm", "n", "bound"), [(-1, 5, 0.1), (6, 5, 0.1), (1, -1, 0.1), (1, 5, -0.1), (1, 5, 1.1), (1, 5, math.nan)]
)
def test_counts_and_bounds_that_cannot_be_are_refused(harm: int, n: int, bound: float) -> None:
    with pytest.raises(InvalidInput):
        e_value_above(harm, n, bound)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_that_is_no_probability_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidInput, match="alpha"):
        crossed(1, 5, 0.1, alpha)
