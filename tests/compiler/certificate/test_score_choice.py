"""The choice of score and temperature: by coverage at the promised harm, on the tuning split, with a reason."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.certificate import draft_cost
from compiler.certificate.learn_then_test import THRESHOLDS
from compiler.certificate.score_choice import Choice, choose_token_score, fit_temperature, grid_for
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError
from penstock.policy import confidence
from tests.compiler.certificate.classifiers import choose

PROMISE = CertificateSection(max_harm=0.02)


def split(seed: int, n: int, world: str = "noise") -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Logits [n, 10], the cloud's classes, labels. In "scale", wrong answers are short vectors that point clearly."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    rows = np.arange(n)
    logits = rng.normal(0, 1, (n, 10))
    if world == "noise":
        logits[rows, labels] += rng.gamma(4, 1.0, n)
    else:
        easy = rng.random(n) < 0.8
        logits[rows, labels] += np.where(easy, 6, 2)
        logits += np.where(easy, 4, 0)[:, None]
        logits[rows, rng.integers(0, 10, n)] += np.where(easy, 0, 4)
    cloud = np.where(rng.random(n) < 0.97, labels, rng.integers(0, 10, n))
    return logits.astype(np.float32), cloud, labels


def chosen(seed: int, n: int, world: str = "noise", promise: CertificateSection = PROMISE, **more: object) -> Choice:
    logits, cloud, labels = split(seed, n, world)
    return choose(logits, confidence.predicted(logits), cloud, labels, "logits", promise, **more)  # type: ignore[arg-type]


def test_the_score_that_keeps_most_within_the_promise_wins() -> None:
    choice = chosen(1, 600, "scale")
    assert choice.score == "energy"
    assert list(choice.coverage) == list(confidence.SCORES)
    assert choice.coverage["energy"] == max(choice.coverage.values()) > choice.coverage["max_prob"] + 0.05
    assert "energy is expected to keep most" in choice.reason
    assert "max_prob" in choice.reason


def test_a_named_score_is_taken_and_everything_else_is_fitted() -> None:
    choice = chosen(1, 600, "scale", msgspec.structs.replace(PROMISE, score="margin"))
    assert choice.score == "margin"
    assert list(choice.coverage) == ["margin"]
    assert set(choice.rankings) == set(confidence.SCORES), "what the others would do is shown beside it"
    free = chosen(1, 600, "scale")
    assert {**choice.coverage, **choice.beside} == dict(free.coverage)
    assert dict(choice.rankings) == dict(free.rankings)
    assert choice.temperature == chosen(1, 600, "scale").temperature
    assert "the recipe names" in choice.reason


def test_the_temperature_is_the_fitted_one_to_four_digits() -> None:
    logits, _, labels = split(2, 400)
    fitted = fit_temperature(logits, labels, kind="logits")
    assert chosen(2, 400).temperature == float(f"{fitted:.4g}")


def test_without_labels_the_cloud_is_what_the_temperature_is_fitted_to() -> None:
    logits, cloud, _ = split(2, 400)
    promise = msgspec.structs.replace(PROMISE, harm="disagreement")
    choice = choose(logits, confidence.predicted(logits), cloud, None, "logits", promise)
    assert choice.temperature == float(f"{fit_temperature(logits, cloud, kind='logits'):.4g}")


def test_a_model_without_a_mistake_keeps_temperature_1_and_a_ranking() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    logits = (np.eye(3)[labels] * rng.uniform(4, 12, (300, 1))).astype(np.float32)
    choice = choose(logits, labels, labels, labels, "logits", PROMISE)
    assert choice.temperature == 1.0
    assert "no temperature fits 300 examples" in choice.reason
    scores = confidence.score(logits, kind="logits", name=choice.score, temperature=choice.temperature)
    assert len(np.unique(scores)) > 200  # the sharpest temperature would make them all exactly 1


def test_equal_scores_are_decided_for_the_simplest() -> None:
    """With two classes max_prob, margin and entropy order answers alike."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 500)
    probability = np.clip(rng.beta(6, 2, 500), 0.01, 0.99)
    right = rng.random(500) < probability
    sure = np.where(right, labels, 1 - labels)
    rows = np.where(np.arange(2) == sure[:, None], np.maximum(probability, 0.5)[:, None], 0)
    rows = np.where(rows == 0, 1 - rows.max(axis=1, keepdims=True), rows)
    choice = choose(rows, confidence.predicted(rows), labels, labels, "probabilities", PROMISE)
    assert choice.score == "max_prob"
    assert choice.coverage["margin"] == pytest.approx(choice.coverage["max_prob"], abs=0.01)


def test_probabilities_have_no_energy() -> None:
    logits, cloud, labels = split(4, 300)
    rows = confidence.softmax(logits)
    choice = choose(rows, confidence.predicted(rows), cloud, labels, "probabilities", PROMISE)
    assert set(choice.coverage) == {"max_prob", "margin", "entropy"}
    with pytest.raises(CalibrationError, match="energy needs logits; usable: max_prob, margin, entropy"):
        choose(
            rows,
            confidence.predicted(rows),
            cloud,
            labels,
            "probabilities",
            msgspec.structs.replace(PROMISE, score="energy"),
        )


def test_hopeless_harm_chooses_the_simplest_and_says_so() -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (200, 10)).astype(np.float32)
    cloud = labels = rng.integers(0, 10, 200)
    choice = choose(logits, confidence.predicted(logits), cloud, labels, "logits", PROMISE)
    assert choice.score == "max_prob"
    assert "no score is expected to keep anything within 2 points of harm on 200 tuning examples" in choice.reason


def test_more_examples_to_certify_let_more_through() -> None:
    few, many = (chosen(6, 300, rows_to_certify=rows).coverage["max_prob"] for rows in (200, 20_000))
    assert few < many


def test_too_few_examples_to_certify_are_the_certificates_to_refuse() -> None:
    assert chosen(6, 300, rows_to_certify=10).score in confidence.SCORES


def test_with_groups_the_strictest_group_decides() -> None:
    logits, cloud, labels = split(7, 800)
    groups = np.where(np.arange(800) % 2, "day", "night")
    worse = cloud.copy()
    harmful = (groups == "night") & (np.random.default_rng(8).random(800) < 0.2)
    labels = np.where(harmful, (confidence.predicted(logits) + 1) % 10, labels)
    worse[harmful] = labels[harmful]
    edge = confidence.predicted(logits)
    alone = choose(logits, edge, worse, labels, "logits", PROMISE).coverage["max_prob"]
    by_group = choose(logits, edge, worse, labels, "logits", PROMISE, groups=groups).coverage["max_prob"]
    assert by_group < alone


def test_labels_that_harm_needs_must_be_there() -> None:
    logits, cloud, _ = split(9, 100)
    with pytest.raises(CalibrationError, match='set harm = "disagreement"'):
        choose(logits, confidence.predicted(logits), cloud, None, "logits", PROMISE)


def test_outputs_that_are_not_finite_are_refused() -> None:
    logits, cloud, labels = split(9, 100)
    logits[3, 4] = np.nan
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        choose(logits, confidence.predicted(logits), cloud, labels, "logits", PROMISE)


def test_the_same_split_gives_the_same_choice() -> None:
    assert chosen(10, 300) == chosen(10, 300)


# --- thresholds


def test_the_grid_holds_the_fixed_thresholds_and_the_scores_own_quantiles() -> None:
    scores = np.random.default_rng(1).beta(50, 2, 5000)
    grid = grid_for(scores)
    assert set(THRESHOLDS) <= set(grid)
    assert list(grid) == sorted(set(grid), reverse=True)
    assert len(THRESHOLDS) < len(grid) <= len(THRESHOLDS) + 257
    shares = np.array([np.mean(scores >= t) for t in grid])
    assert np.max(np.diff(shares)) < 0.01  # no step of the grid lets more than 1% of the answers through


def test_scores_that_crowd_below_1_are_told_apart() -> None:
    scores = 1 - np.geomspace(1e-9, 1e-7, 400)
    shares = [np.mean(scores >= t) for t in grid_for(scores)]
    assert np.max(np.diff(sorted(shares))) < 0.02


def test_a_grid_of_no_usable_score_is_the_fixed_one() -> None:
    assert grid_for(np.full(10, np.nan)) == THRESHOLDS


# --- generation


def test_token_quantiles_are_chosen_by_the_same_rule() -> None:
    """Wrong sequences have one bad token among many good ones: the smallest tells, the mean hardly does."""
    rng = np.random.default_rng(1)
    right = rng.random(800) < 0.8
    rows = []
    for is_right in right:
        tokens = rng.uniform(0.6, 1.0, rng.integers(5, 60))
        if not is_right:
            tokens[rng.integers(0, len(tokens))] = rng.uniform(0.0, 0.3)
        rows.append(tokens)
    edge, cloud = np.where(right, 0, 1), np.zeros(800, dtype=np.int64)
    choice = choose_token_score(rows, edge, cloud, cloud, PROMISE)
    assert choice.score == "token_min"
    assert set(choice.coverage) == set(confidence.TOKEN_SCORES)
    assert choice.coverage["token_min"] > choice.coverage["token_mean"] + 0.1
    assert choice.temperature == 1.0


def test_the_score_of_the_prompt_is_chosen_where_it_keeps_as_much_and_saves_the_drafts() -> None:
    """The first token tells what comes of the answer: looking at all of them keeps no more, and costs every draft."""
    rng = np.random.default_rng(2)
    right = rng.random(800) < 0.7
    rows = [
        np.append(rng.uniform(0.7, 1.0) if good else rng.uniform(0.1, 0.6), rng.uniform(0.9, 1.0, 9)) for good in right
    ]
    edge, cloud = np.where(right, 0, 1), np.zeros(800, dtype=np.int64)
    choice = choose_token_score(rows, edge, cloud, cloud, PROMISE)
    assert choice.score == "prompt_max_prob"
    assert choice.drafted["prompt_max_prob"] == 0.0
    assert choice.drafted["token_min"] == pytest.approx(np.mean(~right), abs=0.05)  # one token of each that goes up
    assert choice.drafted["token_q50"] > 9  # none is kept, and every token was made
    assert "decided before generation, which saves 0.3 drafted tokens a request against token_min" in choice.reason
    fixed = choose_token_score(rows, edge, cloud, cloud, msgspec.structs.replace(PROMISE, score="token_q50"))
    assert fixed.reason.endswith("tokens a request are drafted for nothing")
    assert fixed.drafted == choice.drafted


def test_tokens_drafted_for_nothing_are_those_made_until_a_draft_is_given_up() -> None:
    rows = [np.array([0.9, 0.2, 0.9, 0.9]), np.array([0.9, 0.8]), np.array([0.1, 0.9, math.nan])]
    made = {
        name: draft_cost.tokens_for_nothing(rows, confidence.token_score(rows, name=name), name, 0.5)
        for name in ("prompt_max_prob", "token_min", "token_q50")
    }
    assert made == {"prompt_max_prob": 0.0, "token_min": (2 + 0 + 1) / 3, "token_q50": (0 + 0 + 3) / 3}


def test_temperature_of_probabilities_is_the_one_the_score_applies() -> None:
    source = np.random.default_rng(0)
    logits = source.normal(0, 3, (400, 3))
    labels = np.array([source.choice(3, p=row) for row in confidence.softmax(logits)])
    overconfident = confidence.softmax(logits, 0.5)
    fitted = fit_temperature(overconfident, labels, kind="probabilities")
    assert fitted == pytest.approx(2.0, rel=0.25)
    restored = confidence.score(overconfident, kind="probabilities", temperature=fitted)
    direct = confidence.score(logits, kind="logits", temperature=fitted * 0.5)
    np.testing.assert_allclose(restored, direct, atol=1e-9)
