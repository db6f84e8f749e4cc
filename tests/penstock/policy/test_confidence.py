"""Scores: what they are, and every way in which a model's output can be unusable without passing for an easy case."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from penstock.errors import CalibrationError, InvalidInput
from penstock.policy.confidence import (
    DISTRIBUTION_TOLERANCE,
    PROMPT_SCORES,
    SCORES,
    TOKEN_SCORES,
    finite_rows,
    fit_temperature,
    learned_score,
    predicted,
    score,
    softmax,
    token_score,
)

OF_PROBABILITIES = [name for name in SCORES if name != "energy"]
shapes = st.tuples(st.integers(0, 6), st.integers(2, 7))
any_double = st.floats(allow_nan=True, allow_infinity=True)
temperatures = st.floats(0.05, 20)


def logits_of(elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[np.float64]]:
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=elements))


finite_logits = logits_of(st.floats(-50, 50))


@given(finite_logits, temperatures)
def test_softmax_agrees_with_scipy(logits: NDArray[np.float64], temperature: float) -> None:
    np.testing.assert_allclose(
        softmax(logits, temperature), scipy.special.softmax(logits / temperature, axis=1), rtol=1e-10, atol=1e-300
    )


@given(logits_of(any_double), st.sampled_from(list(SCORES)), temperatures)
def test_a_score_is_in_the_unit_interval_and_nan_exactly_for_rows_that_are_not_finite(
    logits: NDArray[np.float64], name: str, temperature: float
) -> None:
    scores = score(logits, kind="logits", name=name, temperature=temperature)
    assert scores.shape == (len(logits),)
    assert scores.dtype == np.float64
    finite = np.isfinite(logits).all(axis=1)
    np.testing.assert_array_equal(np.isnan(scores), ~finite)
    assert ((scores[finite] >= 0) & (scores[finite] <= 1)).all()


@given(logits_of(any_double), st.sampled_from(OF_PROBABILITIES), temperatures)
def test_rows_that_are_no_distribution_score_nan_whatever_they_hold(
    rows: NDArray[np.float64], name: str, temperature: float
) -> None:
    scores = score(rows, kind="probabilities", name=name, temperature=temperature)
    for row, confidence in zip(rows, scores, strict=True):
        in_range = all(-DISTRIBUTION_TOLERANCE <= p <= 1 + DISTRIBUTION_TOLERANCE for p in row)
        if in_range and abs(sum(row) - 1) < DISTRIBUTION_TOLERANCE * 0.999:
            assert 0 <= confidence <= 1
        elif not in_range or abs(sum(row) - 1) > DISTRIBUTION_TOLERANCE * 1.001:
            assert math.isnan(confidence)


@given(finite_logits, st.sampled_from(OF_PROBABILITIES), temperatures)
def test_logits_and_their_probabilities_score_the_same(
    logits: NDArray[np.float64], name: str, temperature: float
) -> None:
    np.testing.assert_allclose(
        score(logits, kind="logits", name=name, temperature=temperature),
        score(softmax(logits), kind="probabilities", name=name, temperature=temperature),
        atol=1e-6,
    )


@given(finite_logits, st.sampled_from(list(SCORES)))
def test_a_row_scores_the_same_whatever_stands_beside_it(logits: NDArray[np.float64], name: str) -> None:
    together = score(logits, kind="logits", name=name)
    alone = [float(score(row[None, :], kind="logits", name=name)[0]) for row in logits]
    np.testing.assert_array_equal(together, np.array(alone))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_prob", 0.6),
        ("margin", 0.3),
        ("entropy", 1 + (0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)) / math.log(3)),
    ],
)
def test_what_each_score_is(name: str, expected: float) -> None:
    assert score([[0.6, 0.3, 0.1]], kind="probabilities", name=name)[0] == pytest.approx(expected, abs=1e-12)


def test_energy_is_the_free_energy_squashed_and_keeps_order_where_a_sigmoid_would_saturate() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [40.0, 0.0, 0.0], [80.0, 0.0, 0.0], [-90.0, -90.0, -90.0]])
    energies = 2.0 * scipy.special.logsumexp(logits / 2.0, axis=1)
    scores = score(logits, kind="logits", name="energy", temperature=2.0)
    np.testing.assert_allclose(scores, 0.5 * (1 + energies / (1 + np.abs(energies))))
    assert scores[1] < scores[2] < 1


def test_a_higher_temperature_lowers_confidence() -> None:
    logits = [[4.0, 1.0, 0.0]]
    scores = [float(score(logits, kind="logits", temperature=t)[0]) for t in (0.5, 1.0, 2.0, 20.0)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_probabilities_of_exactly_0_and_1_are_fully_confident_without_a_logarithm_of_0(
    name: str, temperature: float
) -> None:
    scores = score([[0.0, 1.0, 0.0]], kind="probabilities", name=name, temperature=temperature)
    assert scores[0] == pytest.approx(1.0, abs=1e-12)


def test_probability_1_passes_a_threshold_of_exactly_1() -> None:
    assert (score(np.array([[1.0, 0.0]], np.float32), kind="probabilities") >= 1.0).all()


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_a_tie_between_all_classes_is_the_lowest_confidence(name: str) -> None:
    scores = score(np.zeros((1, 4)), kind="logits", name=name)
    assert scores[0] == pytest.approx(0.25 if name == "max_prob" else 0.0, abs=1e-12)


@pytest.mark.parametrize(
    "row",
    [
        [math.nan, 0.5, 0.5],
        [math.inf, 0.0, 0.0],
        [-math.inf, 0.5, 0.5],
        [0.2, 0.2, 0.2],  # sums to 0.6
        [1.2, -0.1, -0.1],  # sums to 1, but is none
        [0.0, 0.0, 0.0],  # what an output buffer that nobody wrote looks like
        [3.0, -1.0, 0.5],  # logits that were declared to be probabilities
    ],
)
@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_malformed_probabilities_are_never_confident_and_spoil_no_other_row(row: list[float], name: str) -> None:
    scores = score([row, [0.8, 0.1, 0.1]], kind="probabilities", name=name)
    assert math.isnan(scores[0])
    assert not scores[0] >= 0.0  # the cascade's comparison, at its laxest
    assert 0 < scores[1] < 1


@pytest.mark.parametrize("name", OF_PROBABILITIES)
def test_a_probability_that_rounding_took_past_1_scores_1(name: str) -> None:
    scores = score([[1.004, -0.004]], kind="probabilities", name=name)
    assert scores.tolist() == [1.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_probabilities_of_low_precision_are_distributions(dtype: type[np.floating]) -> None:
    logits = np.random.default_rng(7).normal(size=(50, 1000))
    assert not np.isnan(score(softmax(logits).astype(dtype), kind="probabilities")).any()


@pytest.mark.parametrize("name", SCORES)
def test_logits_too_far_apart_for_a_double_are_still_fine(name: str) -> None:
    scores = score([[1.7e308, -1.7e308]], kind="logits", name=name, temperature=0.05)
    assert scores[0] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_finite_rows_are_those_without_nan_and_infinity_at_any_rank(shape: tuple[int, ...], odd: float) -> None:
    array = np.zeros(shape, dtype=np.float32)
    array[1, ...] = odd
    assert finite_rows(array).tolist() == [True, False, True]


def test_whole_numbers_and_strings_are_finite_and_no_rows_are_none() -> None:
    assert finite_rows(np.zeros((2, 3), np.int8)).tolist() == [True, True]
    assert finite_rows(np.full((2, 1), b"a", dtype=object)).tolist() == [True, True]
    assert finite_rows(np.zeros((0, 3))).tolist() == []


def test_integer_logits_of_a_quantized_model_are_accepted() -> None:
    assert score(np.array([[127, -128]], np.int8), kind="logits")[0] == pytest.approx(1.0)


@pytest.mark.parametrize("name", SCORES)
def test_an_empty_batch_has_no_scores(name: str) -> None:
    assert score(np.empty((0, 3)), kind="logits", name=name).shape == (0,)


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 1), (2, 3, 4), (0,)])
def test_outputs_of_the_wrong_rank_or_with_one_class_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="expected \\[N, C\\] with C >= 2"):
        softmax(np.zeros(shape))
    if shape == (2, 1):
        return  # the second of two classes
    for call in (predicted, lambda x: score(x, kind="logits"), lambda x: score(x, kind="probabilities")):
        with pytest.raises(InvalidInput, match="expected \\[N, C\\] with C >= 1"):
            call(np.zeros(shape))


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 6), st.just(1)), elements=st.floats(-40, 40)))
def test_a_single_column_is_that_of_the_second_of_two_classes(logits: NDArray[np.float64]) -> None:
    p = 1 / (1 + np.exp(-logits))
    both = np.concatenate([1 - p, p], axis=1)
    np.testing.assert_allclose(score(logits, kind="logits"), score(both, kind="probabilities"))
    np.testing.assert_allclose(score(p, kind="probabilities"), score(both, kind="probabilities"))
    np.testing.assert_array_equal(predicted(logits), (logits[:, 0] > 0).astype(int))
    np.testing.assert_array_equal(predicted(p, kind="probabilities"), (p[:, 0] > 0.5).astype(int))


@pytest.mark.parametrize("values", [np.array([["a", "b"]]), np.array([[None, 1.0]]), np.array([[True, False]])])
def test_outputs_that_are_not_numbers_are_refused(values: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidInput, match="not numeric"):
        score(values, kind="logits")


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="max_prob, margin, entropy, energy"):
        score([[0.5, 0.5]], kind="probabilities", name="max-prob")
    with pytest.raises(InvalidInput, match="neither 'logits' nor 'probabilities'"):
        score([[0.5, 0.5]], kind="logprobs")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="energy needs logits"):
        score([[0.5, 0.5]], kind="probabilities", name="energy")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(InvalidInput, match="temperature"):
        score([[1.0, 2.0]], kind="logits", temperature=temperature)


def test_predicted_is_the_largest_and_the_first_of_equals() -> None:
    classes = predicted([[0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [-1.0, -2.0, -3.0]])
    assert classes.tolist() == [1, 0, 0]
    assert classes.dtype == np.int64


def calibrated_sample(n: int, classes: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose softmax is exactly the probability of each label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, classes))
    p = softmax(logits).cumsum(axis=1)
    return logits, np.minimum((rng.random((n, 1)) > p).sum(axis=1), classes - 1)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_a_fitted_temperature_undoes_over_and_underconfidence(factor: float) -> None:
    logits, labels = calibrated_sample(4000, 5, seed=3)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_fitted_temperature_is_the_minimum_that_scipy_finds(seed: int) -> None:
    logits, labels = calibrated_sample(200, 4, seed=seed)

    def loss(log_t: float) -> float:
        return -float(np.log(softmax(logits, math.exp(log_t))[np.arange(200), labels]).mean())

    best = scipy.optimize.minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), options={"xatol": 1e-8})
    assert loss(math.log(fit_temperature(logits, labels))) == pytest.approx(best.fun, abs=1e-9)


def test_a_fitted_temperature_stays_in_its_bounds_when_the_data_ask_for_more() -> None:
    always_right = fit_temperature([[2.0, 0.0], [0.0, 2.0]], [0, 1])
    always_wrong = fit_temperature([[2.0, 0.0], [0.0, 2.0]], [1, 0])
    assert always_right == pytest.approx(0.05, rel=1e-4)
    assert always_wrong == pytest.approx(20.0, rel=1e-4)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((2, 3)), np.zeros(3, int)),
        (np.zeros((2, 3)), np.array([0, 3])),
        (np.zeros((2, 3)), np.array([-1, 0])),
        (np.zeros((2, 3)), np.array([0.0, 1.0])),
        (np.array([[math.nan, 0.0]]), np.array([0])),
        (np.array([[math.inf, 0.0]]), np.array([0])),
    ],
)
def test_a_temperature_is_not_fitted_on_malformed_data(
    logits: NDArray[np.float64], labels: NDArray[np.generic]
) -> None:
    with pytest.raises(CalibrationError):
        fit_temperature(logits, labels)


# --- tokens


def test_token_quantiles_are_values_of_the_sequence() -> None:
    tokens = np.array([0.9, 0.2, 0.8, 0.7, 0.95, 0.6, 0.99, 0.3, 0.85, 0.5])
    scores = {name: float(token_score([tokens], name=name)[0]) for name in TOKEN_SCORES}
    assert scores["token_min"] == 0.2
    assert scores["token_q10"] == 0.2  # one of ten is at or below it
    assert scores["token_q50"] == 0.7
    assert scores["token_mean"] == pytest.approx(math.exp(np.log(tokens).mean()))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_token_scores_are_ordered_and_between_0_and_1(tokens: list[float]) -> None:
    low, q10, q50, mean = (
        float(token_score([tokens], name=name)[0]) for name in ("token_min", "token_q10", "token_q50", "token_mean")
    )
    assert 0 <= low <= q10 <= q50 <= 1
    assert low - 1e-12 <= mean <= max(tokens) + 1e-12


def test_scores_of_the_prompt_know_nothing_of_what_follows_the_first_token() -> None:
    assert set(TOKEN_SCORES) >= PROMPT_SCORES
    for name in PROMPT_SCORES:
        assert token_score([[0.7, 0.1], [0.7, math.nan]], name=name).tolist() == [0.7, 0.7]
        assert math.isnan(token_score([[math.nan, 0.7]], name=name)[0])


def test_token_scores_do_not_depend_on_the_order_or_on_the_neighbours() -> None:
    rows = [np.array([0.9, 0.1, 0.5]), np.array([0.5, 0.9, 0.1]), np.array([1.0])]
    for name in TOKEN_SCORES:
        together = token_score(rows, name=name)
        assert together[0] == (0.9 if name in PROMPT_SCORES else pytest.approx(together[1]))
        assert together[2] == token_score(rows[2:], name=name)[0] == 1.0


@pytest.mark.parametrize("row", [[], [0.5, math.nan], [0.5, math.inf], [0.5, 1.5], [0.5, -0.5]])
def test_a_sequence_that_says_nothing_usable_scores_nan(row: list[float]) -> None:
    for name in set(TOKEN_SCORES) - PROMPT_SCORES:
        scores = token_score([row, [0.5]], name=name)
        assert math.isnan(scores[0])
        assert scores[1] == 0.5


def test_an_impossible_token_makes_the_mean_0() -> None:
    assert token_score([[0.0, 0.9]], name="token_mean")[0] == 0.0


def test_coarse_probabilities_just_above_1_are_1() -> None:
    assert token_score([np.float16([1.001, 1.0])], name="token_min")[0] == 1.0


def test_no_sequences_are_no_scores() -> None:
    assert token_score([]).shape == (0,)


def test_token_scores_that_do_not_exist_and_rows_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown token score 'max_prob'; known: prompt_max_prob, token_min"):
        token_score([[0.5]], name="max_prob")
    with pytest.raises(InvalidInput, match=r"expected real numbers \[tokens\]"):
        token_score([np.zeros((2, 2))])
    with pytest.raises(InvalidInput, match=r"expected real numbers \[tokens\]"):
        token_score([np.array(["a"])])


def test_a_learned_score_is_taken_as_it_comes_and_never_for_an_answer_that_is_no_number() -> None:
    values = np.array([0.5, 1.0, 0.0, np.nan, 1.5, -0.1, 0.9], np.float32)
    answers = np.zeros((7, 2), np.float32)
    answers[6, 1] = np.inf
    expected = [0.5, 1.0, 0.0, *[np.nan] * 4]
    np.testing.assert_array_equal(learned_score(values, answers=answers), expected)


@pytest.mark.parametrize("values", [np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2, np.int64)])
def test_a_learned_score_that_is_not_one_number_a_row_is_refused(values: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidInput, match="one real number for each"):
        learned_score(values, answers=np.zeros((2, 5), np.float32))
