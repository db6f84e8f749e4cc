"""Certification against an independent reference, its refusals, and its guard rails."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compiler.certificate.binomial import MOST_SAMPLES, clopper_pearson, samples_needed
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import THRESHOLDS, Certified, certify, risk_coverage
from penstock.errors import CalibrationError

EDGE_WRONG, BOTH_RIGHT, BOTH_WRONG_ALIKE, CLOUD_WRONG, BOTH_WRONG_APART = range(5)
_CLASSES = {  # kind -> (edge, cloud), with label 0
    EDGE_WRONG: (1, 0),
    BOTH_RIGHT: (0, 0),
    BOTH_WRONG_ALIKE: (1, 1),
    CLOUD_WRONG: (0, 1),
    BOTH_WRONG_APART: (1, 2),
}


def data_of(scores: list[float] | NDArray[np.float64], kinds: list[int] | NDArray[np.int64]) -> CertifyData:
    pairs = np.array([_CLASSES[int(kind)] for kind in kinds], dtype=np.int64).reshape(-1, 2)
    return CertifyData(
        scores=np.asarray(scores, dtype=np.float64),
        edge_predictions=pairs[:, 0],
        cloud_predictions=pairs[:, 1],
        labels=np.zeros(len(pairs), dtype=np.int64),
    )


def outcome(data: CertifyData, max_harm: float = 0.2, delta: float = 0.2) -> Certified | None:
    """None for a refusal."""
    try:
        return certify(data, max_harm=max_harm, delta=delta)
    except CalibrationError:
        return None


on_grid = st.sampled_from(THRESHOLDS)
scores = st.one_of(st.floats(0, 1), on_grid, st.sampled_from([0.0, 1.0, 0.5, math.nan]))
kinds = st.sampled_from([EDGE_WRONG, *[BOTH_RIGHT] * 8, BOTH_WRONG_ALIKE, CLOUD_WRONG, BOTH_WRONG_APART])
samples = st.lists(st.tuples(scores, kinds), min_size=1, max_size=80).map(
    lambda rows: data_of([s for s, _ in rows], [k for _, k in rows])
)


def reference(data: CertifyData, max_harm: float, delta: float) -> tuple[float, int, int] | None:
    """Fixed-sequence testing written the plain way, with scipy's binomial: (threshold, harm, kept)."""
    n, found = len(data.scores), None
    for threshold in THRESHOLDS:
        kept = [bool(s >= threshold) for s in data.scores]
        harm = sum(
            k and e != y and c == y
            for k, e, c, y in zip(kept, data.edge_predictions, data.cloud_predictions, data.labels, strict=True)
        )
        p_value = scipy.stats.binom.cdf(harm, n, max_harm)
        assume(abs(p_value - delta) > 1e-12)  # a tie: rounding decides, differently in each way of adding up
        if p_value > delta:
            break
        found = (threshold, int(harm), sum(kept))
    return found if found is not None and found[2] > 0 else None


@given(samples, st.sampled_from([0.02, 0.1, 0.2, 0.5]), st.sampled_from([0.05, 0.2, 0.5]))
def test_agrees_with_fixed_sequence_testing_written_the_plain_way(
    data: CertifyData, max_harm: float, delta: float
) -> None:
    result, expected = outcome(data, max_harm, delta), reference(data, max_harm, delta)
    if expected is None:
        assert result is None
        return
    assert result is not None
    assert (result.threshold, result.harm_count, result.kept_count) == expected
    assert (result.n, result.coverage) == (len(data.scores), expected[2] / len(data.scores))


@given(samples, st.integers(0, 79))
def test_more_harm_never_lowers_the_threshold(data: CertifyData, index: int) -> None:
    assume(index < len(data.scores))
    edge, cloud = data.edge_predictions.copy(), data.cloud_predictions.copy()
    edge[index], cloud[index] = 1, 0
    before, after = outcome(data), outcome(replace(data, edge_predictions=edge, cloud_predictions=cloud))
    if before is None:
        assert after is None
    elif after is not None:
        assert after.threshold >= before.threshold


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter(data: CertifyData, shuffle: object) -> None:
    order = list(range(len(data.scores)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    assert data.labels is not None
    mixed = CertifyData(
        scores=data.scores[order],
        edge_predictions=data.edge_predictions[order],
        cloud_predictions=data.cloud_predictions[order],
        labels=data.labels[order],
    )
    assert outcome(mixed) == outcome(data)


@given(samples)
def test_a_nan_score_is_never_kept_and_never_harmful(data: CertifyData) -> None:
    nan = np.isnan(data.scores)
    made_harmful = replace(data, edge_predictions=np.where(nan, 1, data.edge_predictions))
    result = outcome(data)
    assert outcome(made_harmful) == result
    if result is not None:
        assert result.kept_count <= np.count_nonzero(~nan)
        assert result.n == len(data.scores)  # it still counts as a request, which goes to the cloud


def test_all_scores_nan_is_a_refusal() -> None:
    with pytest.raises(CalibrationError, match="NaN") as caught:
        certify(data_of([math.nan] * 200, [BOTH_RIGHT] * 200), max_harm=0.02, delta=0.05)
    assert caught.value.needed is None


@pytest.mark.parametrize(("max_harm", "needed"), [(0.02, 149), (0.01, 299), (0.005, 598), (0.001, 2995)])
def test_samples_needed_with_no_harm_at_delta_5_percent(max_harm: float, needed: int) -> None:
    assert samples_needed(max_harm, 0.05) == needed


@given(st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_samples_needed_are_enough_and_one_fewer_is_not(max_harm: float, delta: float) -> None:
    needed = samples_needed(max_harm, delta)
    assert math.log1p(-max_harm) * needed <= math.log(delta) + 1e-9
    if needed > 1:
        assert math.log1p(-max_harm) * (needed - 1) > math.log(delta) - 1e-9
    assert outcome(data_of([0.9] * needed, [BOTH_RIGHT] * needed), max_harm, delta) is not None
    if needed > 1:
        with pytest.raises(CalibrationError) as caught:
            certify(data_of([0.9] * (needed - 1), [BOTH_RIGHT] * (needed - 1)), max_harm=max_harm, delta=delta)
        assert caught.value.needed == needed


def test_too_few_examples_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(CalibrationError, match=r"148 certifying examples are too few.*95%.*149 are needed") as caught:
        certify(data_of([0.9] * 148, [BOTH_RIGHT] * 148), max_harm=0.02, delta=0.05)
    needed = caught.value.needed
    assert needed == 149
    assert certify(data_of([0.9] * needed, [BOTH_RIGHT] * needed), max_harm=0.02, delta=0.05).threshold == 0.0


@given(st.integers(200, 900), st.integers(1, 12))
def test_harm_that_more_examples_would_excuse_is_refused_with_a_number_that_does(n: int, harm: int) -> None:
    kinds = [EDGE_WRONG] * harm + [BOTH_RIGHT] * (n - harm)
    try:  # all of them with one score, so there is only one cascade to certify
        certify(data_of([0.7] * n, kinds), max_harm=0.02, delta=0.05)
    except CalibrationError as refusal:
        needed = refusal.needed
        if needed is None:
            assert harm > 0.0195 * n  # at or next to the promise
        else:
            assert harm < 0.02 * n
            assert n < needed <= MOST_SAMPLES
            same_rate = math.ceil(needed * harm / n)
            enough = data_of([0.7] * needed, [EDGE_WRONG] * same_rate + [BOTH_RIGHT] * (needed - same_rate))
            assert certify(enough, max_harm=0.02, delta=0.05).kept_count == needed


def test_one_harmful_example_in_200_needs_more_than_200() -> None:
    with pytest.raises(CalibrationError, match="1 of 200.* At this rate 313 examples would") as caught:
        certify(data_of([0.7] * 200, [EDGE_WRONG] + [BOTH_RIGHT] * 199), max_harm=0.02, delta=0.05)
    assert caught.value.needed == 313
    assert scipy.stats.binom.cdf(2, 313, 0.02) <= 0.05


def test_harm_above_the_promise_is_refused_without_a_number() -> None:
    with pytest.raises(CalibrationError, match="More examples would not help") as caught:
        certify(data_of([0.7] * 400, [EDGE_WRONG] * 8 + [BOTH_RIGHT] * 392), max_harm=0.02, delta=0.05)
    assert caught.value.needed is None


def test_harm_just_below_the_promise_is_not_worth_a_million_examples() -> None:
    n, harm = 100_000, 1999
    with pytest.raises(CalibrationError) as caught:
        certify(data_of([0.7] * n, [EDGE_WRONG] * harm + [BOTH_RIGHT] * (n - harm)), max_harm=0.02, delta=0.05)
    assert caught.value.needed is None


def test_a_score_equal_to_the_threshold_is_kept() -> None:
    data = data_of([0.8] * 150 + [0.4] * 150, [BOTH_RIGHT] * 150 + [EDGE_WRONG] * 150)
    result = certify(data, max_harm=0.02, delta=0.05, thresholds=(0.9, 0.8, 0.4))
    assert (result.threshold, result.kept_count, result.harm_count) == (0.8, 150, 0)


def test_float32_scores_are_compared_as_the_numbers_they_are() -> None:
    scores = np.full(300, 0.1, dtype=np.float32)  # a little above 0.1
    data = replace(data_of(scores.astype(np.float64), [BOTH_RIGHT] * 300), scores=scores)
    above = float(scores[0])
    for threshold in (0.1, above):
        assert certify(data, max_harm=0.02, delta=0.05, thresholds=(threshold,)).kept_count == 300
    with pytest.raises(CalibrationError):
        certify(data, max_harm=0.02, delta=0.05, thresholds=(math.nextafter(above, 1),))


def test_probabilities_of_exactly_0_and_1_are_ordinary_scores() -> None:
    kinds = [BOTH_RIGHT] * 300 + [EDGE_WRONG] * 20
    result = certify(data_of([1.0] * 300 + [0.0] * 20, kinds), max_harm=0.02, delta=0.05)
    assert (result.threshold, result.kept_count, result.harm_count) == (0.01, 300, 0)


def test_one_class_is_no_special_case() -> None:
    data = data_of(np.linspace(0, 1, 300), [BOTH_RIGHT] * 300)
    result = certify(data, max_harm=0.02, delta=0.05)
    assert (result.threshold, result.coverage, result.harm_count) == (0.0, 1.0, 0)


def test_only_edge_wrong_and_cloud_right_is_harm_with_labels() -> None:
    kinds = [BOTH_WRONG_ALIKE] * 100 + [CLOUD_WRONG] * 100 + [BOTH_WRONG_APART] * 100
    result = certify(data_of([0.9] * 300, kinds), max_harm=0.02, delta=0.05)
    assert (result.harm, result.harm_count, result.kept_count) == ("labels", 0, 300)


def test_any_disagreement_is_harm_without_labels() -> None:
    kinds = [EDGE_WRONG] * 2 + [CLOUD_WRONG] * 2 + [BOTH_WRONG_APART] * 2 + [BOTH_WRONG_ALIKE] * 4 + [BOTH_RIGHT] * 990
    result = certify(replace(data_of([0.9] * 1000, kinds), labels=None), max_harm=0.02, delta=0.05)
    assert (result.harm, result.harm_count, result.audit_max_harm) == ("disagreement", 6, 0.02)


def test_the_audit_bound_with_labels_is_corrected_for_the_thresholds() -> None:
    kinds = [CLOUD_WRONG] * 30 + [BOTH_RIGHT] * 470
    result = certify(data_of([0.9] * 500, kinds), max_harm=0.02, delta=0.05)
    exact = scipy.stats.beta.ppf(1 - 0.05 / len(THRESHOLDS), 31, 470)
    assert result.audit_max_harm == pytest.approx(exact, abs=1e-9)
    assert result.audit_max_harm > 30 / 500


def test_the_audit_bound_with_labels_is_never_below_the_promise() -> None:
    result = certify(data_of([0.9] * 5000, [BOTH_RIGHT] * 5000), max_harm=0.02, delta=0.05)
    assert result.audit_max_harm == 0.02


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(1e-4, 0.5))
def test_the_coverage_interval_is_clopper_and_pearsons(count_of: tuple[int, int], delta: float) -> None:
    count, n = count_of
    interval = scipy.stats.binomtest(count, n).proportion_ci(1 - delta, method="exact")
    low, high = clopper_pearson(count, n, delta)
    assert (low, high) == (pytest.approx(interval.low, abs=1e-8), pytest.approx(interval.high, abs=1e-8))
    assert 0 <= low <= count / n <= high <= 1


def test_a_certificate_reports_the_interval_of_its_coverage() -> None:
    data = data_of([0.8] * 150 + [0.4] * 150, [BOTH_RIGHT] * 150 + [EDGE_WRONG] * 150)
    result = certify(data, max_harm=0.02, delta=0.05)
    assert (result.coverage_low, result.coverage_high) == clopper_pearson(150, 300, 0.05)


@given(samples, st.lists(on_grid, min_size=1, max_size=8))
def test_thresholds_may_come_in_any_order(data: CertifyData, thresholds: list[float]) -> None:
    results = []
    for given_order in (thresholds, sorted(thresholds), [*thresholds, *thresholds]):
        try:
            results.append(certify(data, max_harm=0.2, delta=0.2, thresholds=tuple(given_order)))
        except CalibrationError:
            results.append(None)
    assert results[0] == results[1] == results[2]


def test_the_default_thresholds_do_not_depend_on_data_and_run_from_strict_to_all() -> None:
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS), reverse=True)
    assert THRESHOLDS[0] == pytest.approx(1 - 1e-6)
    assert THRESHOLDS[-1] == 0.0
    assert max(a - b for a, b in pairwise(THRESHOLDS)) <= 0.0206


@given(samples)
def test_the_risk_coverage_curve_only_grows_and_matches_the_certificate(data: CertifyData) -> None:
    curve = risk_coverage(data)
    assert [p.threshold for p in curve] == list(THRESHOLDS)
    for stricter, looser in pairwise(curve):
        assert 0 <= stricter.coverage <= looser.coverage <= 1
        assert 0 <= stricter.harm <= looser.harm <= 1
    result = outcome(data)
    if result is not None:
        (point,) = [p for p in curve if p.threshold == result.threshold]
        assert (point.coverage, point.harm) == (result.coverage, result.harm_count / result.n)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, 1.0000001, -0.1])
def test_scores_that_are_infinite_or_outside_the_unit_interval_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"1 of 200 are infinite or outside \[0, 1\]"):
        certify(data_of([bad] + [0.9] * 199, [BOTH_RIGHT] * 200), max_harm=0.02, delta=0.05)


@pytest.mark.parametrize("name", ["edge_predictions", "cloud_predictions", "labels"])
@pytest.mark.parametrize(
    "column", [np.zeros(199, int), np.zeros((200, 1), int), np.zeros(200), np.full(200, "a"), np.zeros(200, bool)]
)
def test_columns_of_the_wrong_length_or_type_are_refused_by_name(name: str, column: NDArray[np.generic]) -> None:
    data = data_of([0.9] * 200, [BOTH_RIGHT] * 200)
    with pytest.raises(CalibrationError, match=f"{name}: .*expected integer classes \\[200\\]"):
        certify(replace(data, **{name: column}), max_harm=0.02, delta=0.05)


@pytest.mark.parametrize("scores", [np.zeros(0), np.zeros((3, 1)), np.zeros(3, int)])
def test_scores_of_the_wrong_shape_or_type_are_refused(scores: NDArray[np.generic]) -> None:
    data = CertifyData(
        scores=scores,  # type: ignore[arg-type]
        edge_predictions=np.zeros(len(scores), int),
        cloud_predictions=np.zeros(len(scores), int),
    )
    with pytest.raises(CalibrationError, match="scores"):
        risk_coverage(data)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_promise_that_is_no_probability_is_refused(value: float) -> None:
    data = data_of([0.9] * 200, [BOTH_RIGHT] * 200)
    with pytest.raises(CalibrationError, match="max_harm"):
        certify(data, max_harm=value, delta=0.05)
    with pytest.raises(CalibrationError, match="delta"):
        certify(data, max_harm=0.02, delta=value)
    with pytest.raises(CalibrationError, match="delta"):
        samples_needed(0.02, value)


@pytest.mark.parametrize("thresholds", [(), (0.5, 1.5), (-0.1,), (math.nan, 0.5)])
def test_thresholds_that_are_no_scores_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(CalibrationError, match="thresholds"):
        certify(data_of([0.9] * 200, [BOTH_RIGHT] * 200), max_harm=0.02, delta=0.05, thresholds=thresholds)
