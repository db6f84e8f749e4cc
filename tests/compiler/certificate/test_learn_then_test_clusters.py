"""A promise over clusters: against the test written the plain way, its refusals, and how often it is broken."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.simulate import clusters as simulated
from compiler.certificate import betting, score_choice, units
from compiler.certificate.binomial import samples_needed
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, Certified, certify, check_enough, risk_coverage
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError


def data_of(rows: list[tuple[float, bool, int]], groups: list[str] | None = None) -> CertifyData:
    zero = np.zeros(len(rows), dtype=np.int64)
    return CertifyData(
        scores=np.array([score for score, _, _ in rows]),
        edge_predictions=np.array([int(harm) for _, harm, _ in rows]),
        cloud_predictions=zero,
        labels=zero,
        groups=None if groups is None else np.array(groups),
        clusters=np.array([cluster for _, _, cluster in rows]),
    )


def outcome(data: CertifyData, max_harm: float = 0.2, delta: float = 0.2) -> Certified | None:
    """None for a refusal."""
    try:
        return certify(data, max_harm=max_harm, delta=delta)
    except CalibrationError:
        return None


scores = st.one_of(st.floats(0, 1), st.sampled_from(THRESHOLDS), st.just(math.nan))
samples = st.lists(
    st.tuples(scores, st.sampled_from([True] + [False] * 8), st.integers(0, 30)), min_size=1, max_size=80
)


def reference(data: CertifyData, max_harm: float, delta: float) -> tuple[float, int, float] | None:
    """Betting on clusters' shares, one threshold after the other: (threshold, clusters with harm, coverage)."""
    assert data.clusters is not None
    names = sorted(set(data.clusters.tolist()))
    n, found = len(names), None
    # the bet: q with n KL(q || x) = log(1 / delta), found on a grid of its own
    wanted = math.log(1 / delta) / n
    low, high = 0.0, max_harm
    for _ in range(200):
        q = (low + high) / 2
        kl = (q * math.log(q / max_harm) if q else 0.0) + (1 - q) * math.log((1 - q) / (1 - max_harm))
        low, high = (q, high) if kl > wanted else (low, q)
    q = 0.0 if -math.log(1 - max_harm) <= wanted else low
    bet = (max_harm - q) / (max_harm * (1 - max_harm))
    for threshold in THRESHOLDS:
        wealth, harmed, kept = 1.0, 0, 0.0
        for name in names:
            rows = [i for i in range(len(data.scores)) if data.clusters[i] == name]
            harms = [i for i in rows if data.scores[i] >= threshold and data.edge_predictions[i]]
            wealth *= max(1 + bet * (max_harm - len(harms) / len(rows)), 0.0)
            harmed += bool(harms)
            kept += sum(data.scores[i] >= threshold for i in rows) / len(rows) / n
        assume(abs(wealth * delta - 1) > 1e-9)  # a tie: rounding decides
        if wealth < 1 / delta:
            break
        found = (threshold, harmed, kept)
    return found if found is not None and found[2] > 0 else None


@given(samples, st.sampled_from([0.05, 0.1, 0.2, 0.5]), st.sampled_from([0.05, 0.2, 0.5]))
def test_agrees_with_the_bets_written_the_plain_way(
    rows: list[tuple[float, bool, int]], max_harm: float, delta: float
) -> None:
    data = data_of(rows)
    result, expected = outcome(data, max_harm, delta), reference(data, max_harm, delta)
    if expected is None:
        assert result is None
        return
    assert result is not None
    assert (result.threshold, result.harm_count) == expected[:2]
    assert result.coverage == pytest.approx(expected[2])
    assert result.n == len({cluster for _, _, cluster in rows})
    assert result.coverage_low <= result.coverage + 1e-9
    assert result.coverage <= result.coverage_high + 1e-9


@given(samples, st.randoms(use_true_random=False))
def test_order_and_names_of_clusters_do_not_matter(rows: list[tuple[float, bool, int]], shuffle: Any) -> None:
    mixed = [(score, harm, 1000 - 7 * cluster) for score, harm, cluster in rows]
    shuffle.shuffle(mixed)
    one, other = outcome(data_of(rows)), outcome(data_of(mixed))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.threshold, one.harm_count, one.kept_count) == (other.threshold, other.harm_count, other.kept_count)


@given(samples, st.integers(0, 79))
def test_more_harm_never_lowers_the_threshold(rows: list[tuple[float, bool, int]], at: int) -> None:
    assume(at < len(rows))
    worse = [*rows[:at], (rows[at][0], True, rows[at][2]), *rows[at + 1 :]]
    before, after = outcome(data_of(rows)), outcome(data_of(worse))
    assert after is None or (before is not None and after.threshold >= before.threshold)


@given(samples, st.integers(2, 5))
def test_copying_every_row_changes_no_promise(rows: list[tuple[float, bool, int]], times: int) -> None:
    one, other = outcome(data_of(rows)), outcome(data_of(rows * times))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert (one.threshold, one.n) == (other.threshold, other.n)


def test_the_clusters_needed_without_harm_are_as_many_as_rows() -> None:
    rows = [(0.9, False, row // 3) for row in range(3 * 149)]
    assert certify(data_of(rows), max_harm=0.02, delta=0.05).coverage == 1
    with pytest.raises(CalibrationError) as caught:
        certify(data_of(rows[: 3 * 61]), max_harm=0.02, delta=0.05)
    assert caught.value.needed == 149
    assert "61 certifying clusters are too few" in caught.value.message
    assert "149 are needed even if none of them is harmful, 88 more than there are" in caught.value.message


@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_a_sample_without_harm_passes_exactly_from_the_number_that_is_named(max_harm: float, delta: float) -> None:
    needed = samples_needed(max_harm, delta)

    def grown(n: int) -> float:
        return n * float(betting.log_growth(np.zeros(1), betting.best_bet(n, max_harm, delta), max_harm)[0])

    assert grown(needed) >= math.log(1 / delta) - 1e-9
    assert needed == 1 or grown(needed - 1) < math.log(1 / delta) + 1e-9


def test_harm_that_more_clusters_would_excuse_is_refused_with_a_number_that_does() -> None:
    def some(n: int) -> CertifyData:
        return data_of([(0.7, row == 0 and cluster % 40 == 0, cluster) for cluster in range(n) for row in range(4)])

    with pytest.raises(CalibrationError, match="4 of 160 certifying clusters are harmful") as caught:
        certify(some(160), max_harm=0.02, delta=0.05)
    needed = caught.value.needed
    assert needed is not None
    assert certify(some(40 * math.ceil(needed / 40)), max_harm=0.02, delta=0.05).harm_count > 4
    with pytest.raises(CalibrationError):
        certify(some(40 * (needed // 40) - 40), max_harm=0.02, delta=0.05)


def test_a_share_between_0_and_1_costs_less_than_a_whole_cluster() -> None:
    """Of 200 clusters ten are harmful in one row of ten: on average half a percent, which 2% allows."""
    part = data_of([(0.9, cluster < 10 and row == 0, cluster) for cluster in range(300) for row in range(10)])
    whole = data_of([(0.9, cluster < 10, cluster) for cluster in range(300) for row in range(10)])
    assert certify(part, max_harm=0.02, delta=0.05).harm_count == 10
    assert outcome(whole, 0.02, 0.05) is None


def test_a_large_cluster_counts_once() -> None:
    rows = [(0.9, False, cluster) for cluster in range(400)]
    alone = data_of([*rows, (0.9, True, 1000)])
    heavy = data_of([*rows, *[(0.9, True, 1000)] * 5000])
    assert certify(alone, max_harm=0.02, delta=0.05) == certify(heavy, max_harm=0.02, delta=0.05)


def test_every_group_is_tested_on_its_own_clusters_at_the_whole_of_delta() -> None:
    """A cluster may have rows in several groups; in each it counts with the rows that it has there."""
    rows = [(0.9 if row else 0.3, False, cluster) for cluster in range(160) for row in range(2)]
    groups = ["day", "night"] * 160
    found = certify(data_of(rows, groups), max_harm=0.02, delta=0.05)
    assert found.n == 160
    assert [(group.name, group.n, group.coverage) for group in found.groups] == [("day", 160, 1), ("night", 160, 1)]
    groups = ["day", "day"] * 100 + ["night", "night"] * 60
    with pytest.raises(CalibrationError, match=r"'day' has 100, 'night' has 60, and each needs 149 clusters"):
        certify(data_of(rows, groups), max_harm=0.02, delta=0.05)


@given(samples)
def test_the_curve_is_of_average_shares_and_meets_the_certificate(rows: list[tuple[float, bool, int]]) -> None:
    data = data_of(rows)
    curve, result = risk_coverage(data), outcome(data)
    for stricter, looser in pairwise(curve):
        assert stricter.coverage <= looser.coverage + 1e-12
        assert stricter.harm <= looser.harm + 1e-12
    assert 0 <= curve[-1].harm <= curve[-1].coverage + 1e-12 <= 1 + 1e-9
    if result is not None:
        (point,) = [point for point in curve if point.threshold == result.threshold]
        assert point.coverage == pytest.approx(result.coverage)


def test_the_audit_bound_is_one_for_averages_of_shares() -> None:
    rows = [(0.9, False, row // 2) for row in range(800)]
    data = replace(data_of(rows), cloud_predictions=np.array([1, 0] * 20 + [0] * 760))  # cloud wrong: no harm
    found = certify(data, max_harm=0.02, delta=0.05)
    bound, level = found.audit_max_harm, 0.05 / len(THRESHOLDS)
    assert bound > 0.025  # the average share is 20 halves of 400
    assert 400 * betting.divergence(0.025, bound) == pytest.approx(math.log(1 / level), rel=1e-6)
    assert bound > scipy.stats.beta.ppf(1 - level, 10 + 1, 400 - 10)  # never below what coins would have


@pytest.mark.parametrize("clusters", [np.zeros(3, int), np.zeros(200), np.full(200, "a")])
def test_clusters_that_are_no_numbers_of_rows_are_refused(clusters: NDArray[Any]) -> None:
    data = replace(data_of([(0.9, False, 0)] * 200), clusters=clusters)
    with pytest.raises(CalibrationError, match=r"clusters: .*expected integers \[200\]"):
        certify(data, max_harm=0.02, delta=0.05)


def test_what_is_too_few_is_known_without_any_answer() -> None:
    clusters = np.arange(1000) % 100
    check_enough(1000, None, None, max_harm=0.02, delta=0.05)
    with pytest.raises(CalibrationError, match="100 certifying clusters are too few.*49 more than there are") as caught:
        check_enough(1000, None, clusters, max_harm=0.02, delta=0.05)
    assert caught.value.needed == 149
    with pytest.raises(CalibrationError, match="'b' has 100, and each needs 149 examples"):
        check_enough(1000, np.array(["a"] * 900 + ["b"] * 100), None, max_harm=0.02, delta=0.05)


# --- the bounds themselves


@given(st.floats(0.01, 0.6), st.integers(150, 3000), st.floats(0.01, 0.3))
def test_coins_are_rejected_exactly_where_hoeffdings_bound_rejects_them(x: float, n: int, delta: float) -> None:
    bet = betting.best_bet(n, x, delta)
    assert 0 <= bet <= 1 / (1 - x) + 1e-12
    q = betting.lower_mean(x, n, delta)
    assume(q > 0)
    wealth = (
        q * n * betting.log_growth(np.ones(1), bet, x)[0] + (1 - q) * n * betting.log_growth(np.zeros(1), bet, x)[0]
    )
    assert wealth == pytest.approx(math.log(1 / delta), rel=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.01, 0.6), st.integers(150, 3000))
def test_shares_between_0_and_1_never_grow_less_than_coins_of_their_average(
    shares: list[float], x: float, n: int
) -> None:
    """Why betting rejects whenever Hoeffding's bound does: the logarithm is concave."""
    bet, values = betting.best_bet(n, x, 0.05), np.array(shares)
    ends = betting.log_growth(np.array([0.0, 1.0]), bet, x)
    assume(np.isfinite(ends).all())
    coins = (1 - values) * ends[0] + values * ends[1]
    assert (betting.log_growth(values, bet, x) >= coins - 1e-9).all()


@pytest.mark.parametrize(("n", "x"), [(200, 0.02), (500, 0.05), (1000, 0.02)])
def test_of_coins_at_the_promise_no_more_than_delta_pass(n: int, x: float) -> None:
    """Exact, without a simulation: the most ones that pass, and the chance of so few where their share is x."""
    bet = betting.best_bet(n, x, 0.05)
    ends = betting.log_growth(np.array([0.0, 1.0]), bet, x)
    passing = [k for k in range(n + 1) if (n - k) * ends[0] + (k * ends[1] if k else 0.0) >= math.log(20)]
    assert passing
    assert scipy.stats.binom.cdf(max(passing), n, x) <= 0.05


def test_intervals_of_an_average_hold_it_and_are_wider_than_those_of_coins() -> None:
    for average, n in [(0.0, 100), (0.3, 400), (1.0, 50)]:
        low, high = betting.mean_interval(average, n, 0.05)
        assert low <= average <= high
        exact = scipy.stats.binomtest(round(average * n), n).proportion_ci(0.95, method="exact")
        assert low <= exact.low + 1e-3
        assert high >= exact.high - 1e-3


# --- the choice of a score, and the promise itself


def test_a_score_is_judged_by_what_clusters_will_certify() -> None:
    """On 300 tuning clusters coverage is predicted near what 600 certifying ones then give."""
    rng = np.random.default_rng(5)

    def some(n: int) -> CertifyData:
        member = np.repeat(np.arange(n), 8)
        values = rng.random(8 * n)
        harmful = (member % 2 == 0) & (rng.random(8 * n) < 0.8 * (1 - values))
        return data_of(list(zip(values.tolist(), harmful.tolist(), member.tolist(), strict=True)))

    tune = some(300)
    grid = np.array(THRESHOLDS)
    promise = CertificateSection(max_harm=0.05)
    predicted = score_choice._predicted_coverage(tune.scores.astype(np.float64), grid, tune, promise, 600)
    assert predicted == pytest.approx(certify(some(600), max_harm=0.05, delta=0.05).coverage, abs=0.1)
    assert predicted > score_choice._predicted_coverage(tune.scores.astype(np.float64), grid, tune, promise, 100)


def test_units_are_counted_by_group() -> None:
    groups, clusters = np.array(["a", "a", "b", "b"]), np.array([1, 1, 1, 2])
    assert units.count(4, None, None) == {"": 4}
    assert units.count(4, groups, None) == {"a": 2, "b": 2}
    assert units.count(4, groups, clusters) == {"a": 1, "b": 2}


@pytest.mark.parametrize("world", list(simulated.WORLDS))
def test_the_promise_is_broken_in_at_most_delta_of_the_calibrations(world: str) -> None:
    """The table of ``make simulate ARGS=clusters`` has 2,000 calibrations; here are 60 of each world."""
    calibrations, delta = 60, simulated.DELTA
    found = simulated.outcomes(simulated.WORLDS[world], calibrations)
    assert found.broken.mean() <= delta + 3 * math.sqrt(delta * (1 - delta) / calibrations)
    assert found.refused.mean() <= 0.05
    assert found.coverage.mean() >= 0.15  # a promise kept by keeping nothing would be worth nothing


def test_the_simulation_would_notice_copies_taken_for_draws() -> None:
    for name in ("each row copied 10 times", "each row copied 1 to 200 times, Zipf"):
        assert simulated.outcomes(simulated.WORLDS[name], 60).naive_broken.mean() > 0.15
