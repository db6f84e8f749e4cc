"""The gate: budgets, objectives, refusals in words, and the bisection that sends operators back to float.

What is passed was shown to be good: at a true loss above the budget nothing passes more often than is said.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compiler.artifact.evaluation import Drop, Speedup
from compiler.measure import gate
from compiler.measure.gate import Budget, Measured

SPEED, SIZE = Budget(max_drop=0.01, objective="speed"), Budget(max_drop=0.01, objective="size")


def drop(lost: int, won: int = 0, *, n: int = 1000) -> Drop:
    return gate.paired_drop(np.arange(n) >= won, np.arange(n) < n - lost)


def measured(
    name: str,
    *,
    size: int = 100,
    cost: int | None = 0,
    ms: float | None = 1.0,
    quantized: int | None = 50,
    speedup: float | None = None,
) -> Measured:
    """A candidate that loses ``cost`` of 1000 rows, and whose speedup is known to a tenth."""
    return Measured(
        name=name,
        size_bytes=size,
        drop=None if cost is None else drop(max(cost, 0), max(-cost, 0)),
        latency_ms=ms,
        speedup=None if speedup is None else Speedup(value=speedup, low=speedup - 0.1, high=speedup + 0.1),
        quantized_bytes=quantized,
    )


PARENT = measured("fp32", size=400, cost=None, ms=2.0, quantized=None)


def test_the_fastest_candidate_within_the_budget_ships_and_every_other_is_told_why():
    candidates = [
        PARENT,
        measured("int8 minmax", ms=0.5, cost=50),
        measured("int8 entropy", ms=0.8),
        measured("int8-dynamic", ms=2.5),
        measured("int4", ms=0.9, quantized=0),
    ]
    verdict = gate.choose(candidates, PARENT, SPEED)
    assert verdict.chosen == 2
    assert verdict.reasons == (
        "fits, but int8 entropy is 2.50x as fast",
        "costs 5.00 points (50 rows lost and 0 won of 1000), 1.00 points allowed",
        "ships",
        "slower than its parent (0.80x of its speed)",
        "no weight was quantized",
    )


def test_nothing_slower_than_its_parent_ships_unless_size_is_asked_for():
    slow = measured("int8", ms=9.0, size=10)
    assert gate.choose([PARENT, slow], PARENT, SPEED).chosen == 0
    assert gate.choose([PARENT, slow], PARENT, SIZE).chosen == 1


def test_a_byte_more_decides_nothing():
    """Zero points of other ranges take a byte more or less: what costs less ships, whatever is asked for."""
    small, better = measured("int8 minmax", size=65_345, cost=5), measured("int8 entropy", size=65_346, cost=1)
    parent = measured("fp32", size=90_000, cost=None, ms=2.0, quantized=None)
    for budget in (SPEED, SIZE):
        verdict = gate.choose([small, better], parent, replace(budget, max_drop=0.02))
        assert verdict.chosen == 1
        assert "no larger" in verdict.reasons[0] or "as small and costs no more" in verdict.reasons[0]


def test_a_candidate_that_is_no_smaller_is_refused_when_size_is_asked_for():
    large = measured("int8", size=500)
    verdict = gate.choose([large], PARENT, SIZE)
    assert verdict.chosen is None
    assert verdict.reasons == ("no smaller than its parent (500 bytes, parent 400)",)


def test_among_equally_fast_ones_the_smaller_ships_then_the_one_that_costs_less():
    near = [
        measured("a", ms=1.0, size=100),
        measured("b", ms=1.03, size=80),
        measured("c", ms=1.04, size=80, cost=-100),
    ]
    assert gate.choose(near, PARENT, SPEED).chosen == 2


def test_where_nothing_can_be_timed_the_last_that_fits_is_taken():
    untimed = [measured("fp32", ms=None, quantized=None), measured("int8", ms=None), measured("x", cost=500)]
    verdict = gate.choose(untimed, measured("fp32", ms=None, cost=None, quantized=None), SPEED)
    assert verdict.chosen == 1
    assert verdict.reasons[0] == "fits, but int8 was asked for after it"


@given(
    costs=st.lists(st.integers(-100, 100), min_size=1, max_size=6),
    times=st.lists(st.floats(0.1, 5), min_size=6, max_size=6),
)
def test_whatever_ships_keeps_the_budget_and_is_no_slower(costs, times):
    candidates = [measured(str(i), cost=c, ms=t) for i, (c, t) in enumerate(zip(costs, times, strict=False))]
    verdict = gate.choose(candidates, PARENT, SPEED)
    fit = [c for c in candidates if c.drop.bound <= 0.01 and c.latency_ms <= 1.02 * PARENT.latency_ms]
    assert (verdict.chosen is None) == (not fit)
    if verdict.chosen is not None:
        assert candidates[verdict.chosen] in fit
        assert candidates[verdict.chosen].latency_ms <= 1.05 * min(c.latency_ms for c in fit)
    assert all(verdict.reasons)


def test_what_is_not_faster_beyond_the_clocks_noise_does_not_ship():
    budget = Budget(max_drop=0.01, objective="speed", clock_noise=1.05)
    candidates = [
        PARENT,
        measured("int8 minmax", ms=1.75, speedup=1.14),
        measured("int8 entropy", ms=2.5, speedup=0.8),
        measured("int4", ms=1.7, speedup=1.16),
    ]
    verdict = gate.choose(candidates, PARENT, budget)
    assert verdict.chosen == 3
    assert verdict.reasons[1:3] == (
        "not faster than its parent beyond the clock's noise: 1.14x as fast (1.04x to 1.24x), and up to 1.05x is noise",
        "slower than its parent: 0.80x as fast (0.70x to 0.90x)",
    )
    assert gate.choose(candidates[:3], PARENT, budget).chosen == 0


def test_a_candidate_that_few_rows_cannot_judge_is_refused_with_the_rows_that_could():
    few = Measured(name="int8", size_bytes=10, drop=drop(0, n=100), latency_ms=0.1, quantized_bytes=50)
    verdict = gate.choose([few], PARENT, SIZE)
    assert verdict.chosen is None
    assert verdict.reasons == (
        "not shown to keep the budget: 0 rows lost and 0 won of 100 leave up to 3.05 points, 1.00 points allowed; "
        "309 rows like these would show it",
    )
    assert gate.fewest_rows(0.01, 0.05) == 309
    assert gate.fewest_rows(0.0, 0.05) is None


@settings(max_examples=30)
@given(lost=st.integers(0, 8), won=st.integers(0, 4), n=st.integers(20, 600), max_drop=st.floats(0.005, 0.1))
def test_the_rows_that_are_named_would_do_and_no_fewer(lost, won, n, max_drop):
    found = drop(lost, won, n=n)
    needed = gate.rows_needed(found, max_drop)
    if found.bound <= max_drop or needed is None:
        return

    def bound(rows: int) -> float:
        return gate.drop_bound(-(-lost * rows // n), won * rows // n, rows, found.level)

    assert needed > n
    assert bound(needed) <= max_drop < bound(needed - 1)
    assert str(needed) in gate.over_budget(found, max_drop)


def test_levels_share_delta_among_all_looks():
    five = gate.levels(0.05, listed=4, restores=True)
    assert 4 * five.listed + gate.MAX_PROBES * five.probe == pytest.approx(0.05)
    assert gate.levels(0.05, listed=1, restores=False).listed == 0.05


@pytest.mark.parametrize(("lost", "won"), [(0.03, 0.0), (0.04, 0.01), (0.08, 0.05)])
def test_at_a_true_loss_above_the_budget_the_gate_passes_as_rarely_as_it_says(lost: float, won: float):
    """Five candidates at a true loss of 3% with a budget of 2%: one of them passed 47% to 74% of the time by points."""
    source, level = np.random.default_rng(11), gate.levels(0.05, listed=5, restores=False).listed
    for rows in (100, 300, 1000):
        counts = source.multinomial(rows, [lost, won, 1 - lost - won], size=(400, 5))
        by_points = counts[..., 0] - counts[..., 1] <= 0.02 * rows  # a bound lies above the point
        bound = {
            pair: gate.drop_bound(*pair, rows, level) for pair in set(map(tuple, counts[by_points][:, :2].tolist()))
        }
        passed = np.zeros_like(by_points)
        passed[by_points] = [bound[tuple(pair)] <= 0.02 for pair in counts[by_points][:, :2].tolist()]
        assert passed.any(axis=1).mean() <= 0.05
        assert by_points.any(axis=1).mean() > passed.any(axis=1).mean()


@given(n=st.integers(1, 400), level=st.floats(0.001, 0.2), data=st.data())
def test_a_bound_is_exact_in_each_of_its_halves(n, level, data):
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    up = 1.0 if lost == n else stats.beta.ppf(1 - 0.9 * level, lost + 1, n - lost)
    down = 0.0 if won == 0 else stats.beta.ppf(0.1 * level, won, n - won + 1)
    assert gate.drop_bound(lost, won, n, level) == pytest.approx(up - down, abs=1e-9)


def test_rows_that_are_scored_are_bounded_by_hoeffding_and_zeros_as_exactly_as_counted_ones():
    parent = np.full(300, 0.75)
    same = gate.paired_drop(parent, parent.copy(), level=0.01)
    assert (same.is_counted, same.value, same.lost, same.won) == (False, 0, 0, 0)
    assert same.bound == pytest.approx(gate.drop_bound(0, 0, 300, 0.01), abs=1e-9)
    worse = gate.paired_drop(parent, parent - 0.02, level=0.01)
    assert worse.value == pytest.approx(0.02)
    assert 0.02 < gate.drop_bound(6, 0, 300, 0.01) < worse.bound < 0.08
    assert gate.rows_needed(worse, 0.04) > 300
    assert "6 rows lost and 0 won of 300 leave" in gate.over_budget(worse, 0.04)
    elsewhere = msgspec.structs.replace(worse, at="width 16")
    assert "6 rows lost and 0 won of 300 at width 16 leave" in gate.over_budget(elsewhere, 0.04)


@pytest.mark.parametrize("truth", [0.02, 0.25])
def test_the_bound_of_scored_rows_holds_as_often_as_it_says(truth):
    source, missed = np.random.default_rng(3), 0
    for _ in range(400):
        parent = source.uniform(0.5, 1, 200)
        candidate = parent - source.uniform(0, 2 * truth, 200)
        missed += gate.paired_drop(parent, candidate, level=0.05).bound < truth
    assert missed <= 0.05 * 400


def test_copies_of_a_row_show_no_more_than_the_row_does():
    parent, candidate = np.ones(100), (np.arange(100) >= 1).astype(float)
    copies = np.repeat(np.arange(100), 30)
    once = gate.paired_drop(gate.by_cluster(parent, None), gate.by_cluster(candidate, None))
    many = gate.paired_drop(gate.by_cluster(parent[copies], copies), gate.by_cluster(candidate[copies], copies))
    assert many == once


@given(count=st.integers(1, 200), data=st.data())
def test_bisection_finds_the_smallest_number_that_fits_in_few_probes(count, data):
    enough = data.draw(st.integers(1, count + 1))  # count + 1: nothing fits
    tried = {0: False}
    probes = 0
    while (k := gate.next_probe(tried, count)) is not None:
        assert 1 <= k <= count
        assert k not in tried
        tried[k] = k >= enough
        probes += 1
    fits = [k for k, fitted in tried.items() if fitted]
    assert bool(fits) == (enough <= count)
    if fits:
        assert enough <= min(fits) <= max(enough, 1 + 4 * enough // 3)
    assert probes <= gate.MAX_PROBES


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_a_paired_drop_is_the_difference_of_shares_and_lies_in_its_interval(rows):
    parent, candidate = (np.array(column) for column in zip(*rows, strict=True))
    found = gate.paired_drop(parent, candidate)
    assert found.value == pytest.approx(parent.mean() - candidate.mean())
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_the_interval_of_a_paired_drop_covers_the_truth_as_often_as_it_says():
    source = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        parent = source.random(600) < 0.9
        candidate = np.where(source.random(600) < 0.05, source.random(600) < 0.6, parent)
        truth = 0.9 - (0.95 * 0.9 + 0.05 * 0.6)
        found = gate.paired_drop(parent, candidate)
        hits += found.low <= truth <= found.high
    assert hits >= 0.92 * 400
