"""Answers in words become the columns that a certificate looks at; and the certificate needs no change for them."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.certificate import learn_then_test
from compiler.certificate.score_choice import Choice
from compiler.generation import answers
from compiler.generation.answers import AnsweredPrompts
from compiler.generation.built_model import Answers
from compiler.generation.prompts import Prompt, PromptSet
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError
from penstock.policy.confidence import TOKEN_SCORES, token_score

TOKEN_MIN = Choice(score="token_min", temperature=1.0, coverage={}, thresholds=(0.5,), reason="")


def said(*texts: str, probabilities: list[list[float]] | None = None) -> Answers:
    rows = probabilities or [[0.5]] * len(texts)
    ids = tuple(np.zeros(len(row), np.int64) for row in rows)
    found = tuple(np.array(row) for row in rows)
    return Answers(texts=texts, prompt_ids=ids, token_ids=ids, probabilities=found, margins=found)


def asked(*rightly: str | None, groups: list[str] | None = None) -> PromptSet:
    rows = [Prompt(prompt=f"p{n}", answer=right, group=groups[n] if groups else "") for n, right in enumerate(rightly)]
    return PromptSet(name="x", rows=tuple(rows))


def test_columns_hold_equal_ids_for_equal_answers() -> None:
    found = answers.columns(
        said("yes", "no ", "maybe"),
        said("yes", "yes", "perhaps"),
        asked("yes", "no", "never"),
        normalisation="whitespace",
    )
    assert (found.edge == found.cloud).tolist() == [True, False, False]
    assert found.labels is not None
    assert (found.edge == found.labels).tolist() == [True, True, False]
    assert set(found.scores) == set(TOKEN_SCORES)


def test_scores_are_the_token_scores_of_the_edge() -> None:
    rows = [[0.9, 0.8], [0.2], [1.0, 1.0, 0.5]]
    found = answers.columns(
        said("a", "b", "c", probabilities=rows), said("a", "b", "c"), asked(None, None, None), normalisation="words"
    )
    for name in TOKEN_SCORES:
        np.testing.assert_array_equal(found.scores[name], token_score([np.array(row) for row in rows], name=name))


def test_harm_by_labels_needs_answers() -> None:
    found = answers.columns(said("a"), said("b"), asked(None), normalisation="whitespace")
    with pytest.raises(CalibrationError, match='have no answers; give some, or set certificate.harm = "disagreement"'):
        found.certify_data(TOKEN_MIN, harm="labels")
    assert found.certify_data(TOKEN_MIN, harm="disagreement").labels is None


def simulated(count: int, seed: int) -> AnsweredPrompts:
    """An edge that is wrong as often as its least sure token says; a cloud that is right nine times of ten."""
    source = np.random.default_rng(seed)
    rows = [source.uniform(0.3, 1, source.integers(2, 6)).tolist() for _ in range(count)]
    right = source.uniform(size=count) < np.array([min(row) for row in rows]) ** 0.2
    cloud = source.uniform(size=count) < 0.9
    return answers.columns(
        said(*["good" if r else f"bad {n}" for n, r in enumerate(right)], probabilities=rows),
        said(*["good" if c else f"worse {n}" for n, c in enumerate(cloud)]),
        asked(*["good"] * count),
        normalisation="whitespace",
    )


def test_the_certificate_takes_them_as_they_are() -> None:
    promise = CertificateSection(max_harm=0.05, delta=0.05, harm="labels", score="auto")
    tune, certifying, test = (simulated(n, seed) for n, seed in ((800, 1), (1500, 2), (20_000, 3)))
    choice = tune.choose(promise, rows_to_certify=len(certifying.edge))
    found = learn_then_test.promise(
        certifying.certify_data(choice, harm="labels"), promise, thresholds=choice.thresholds
    ).default
    kept = test.scores[choice.score] >= found.threshold
    assert test.labels is not None
    harm = kept & (test.edge != test.labels) & (test.cloud == test.labels)
    assert kept.mean() > 0.2
    assert harm.mean() <= 0.05
