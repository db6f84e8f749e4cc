"""The promise of a recipe: its values, its division among levels and among the rungs of a cascade."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.certificate.binomial import samples_needed
from compiler.certificate.columns import CertifyData
from compiler.certificate.learn_then_test import certify
from compiler.recipe import certificate_section
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError, ConfigError


def section(**values: object) -> CertificateSection:
    return msgspec.convert(values, CertificateSection)


def test_one_level_or_several_with_the_default_first() -> None:
    assert section(max_harm=0.02).levels == (0.02,)
    assert section(max_harm=[0.005, 0.01, 0.02]).levels == (0.005, 0.01, 0.02)


def test_delta_is_divided_among_levels() -> None:
    assert section(max_harm=0.02, delta=0.05).level_delta == 0.05
    three = section(max_harm=[0.005, 0.01, 0.02], delta=0.06)
    assert three.level_delta * 3 == pytest.approx(0.06)


def test_what_dividing_costs_is_as_the_docstring_says() -> None:
    assert samples_needed(0.02, 0.05) == 149
    assert samples_needed(0.02, 0.05 / 3) == 203


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"score": "confidence"}, "unknown score 'confidence'; known: auto, max_prob, margin, entropy, energy, part_"),
        ({"max_harm": 0.0}, "certificate.max_harm: 0.0 given, expected a share between 0 and 1"),
        ({"max_harm": [0.02, 2.0]}, "certificate.max_harm: 2.0 given"),
        ({"max_harm": [0.02, 0.02]}, "expected 1 to 8 different shares"),
        ({"max_harm": []}, "expected 1 to 8 different shares"),
        ({"max_harm": [k / 100 for k in range(1, 10)]}, "expected 1 to 8 different shares"),
        ({"delta": 0.0}, "certificate.delta: 0.0 given"),
        ({"delta": 0.6}, "certificate.delta: 0.6 given"),
    ],
)
def test_values_that_make_no_promise_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        certificate_section.check(section(**values), where="recipe.toml: ")
    assert caught.value.message.startswith("recipe.toml: certificate.")
    assert said in caught.value.message


def test_good_values_pass() -> None:
    certificate_section.check(CertificateSection())
    certificate_section.check(section(max_harm=[0.01, 0.02], score="token_q10", delta=0.5, harm="disagreement"))


@given(st.floats(1e-4, 0.5), st.floats(1e-4, 0.5), st.integers(1, 6))
def test_the_shares_of_a_cascade_add_up_to_the_promise(max_harm: float, delta: float, rungs: int) -> None:
    harm, chance = certificate_section.share_of_promise(max_harm, delta, rungs)
    assert harm * rungs == pytest.approx(max_harm)
    assert chance * rungs == pytest.approx(delta)


@pytest.mark.parametrize(("max_harm", "delta", "rungs"), [(0.02, 0.05, 0), (0.0, 0.05, 1), (0.02, math.nan, 1)])
def test_a_cascade_without_rungs_or_a_promise_that_is_none_is_refused(
    max_harm: float, delta: float, rungs: int
) -> None:
    with pytest.raises(CalibrationError):
        certificate_section.share_of_promise(max_harm, delta, rungs)


def test_a_rungs_section_has_its_share_of_every_level() -> None:
    whole = section(max_harm=[0.01, 0.02], delta=0.05, harm="disagreement")
    assert certificate_section.for_rung(whole, 1) is whole
    half = certificate_section.for_rung(whole, 2)
    assert half.levels == (0.005, 0.01)
    assert (half.delta, half.harm) == (0.025, "disagreement")


# --- the cascade keeps the promise: a population whose true harm is known, and many draws from it

POPULATION, N, DRAWS = 20_000, 500, 300
MAX_HARM, DELTA = 0.06, 0.2


def cascade_population() -> tuple[np.ndarray, np.ndarray]:
    """Scores and harm [rungs, POPULATION] of two rungs that fail alike: the worst that the union bound has to bear."""
    rng = np.random.default_rng(5)
    difficulty = rng.random(POPULATION)
    scores = np.stack(
        [1 - difficulty + rng.normal(0, 0.15, POPULATION), 1 - difficulty + rng.normal(0, 0.1, POPULATION)]
    )
    harmful = rng.random((2, POPULATION)) < np.array([[0.5], [0.35]]) * difficulty
    return np.clip(scores, 0, 1), harmful


def cascade_harm(scores: np.ndarray, harmful: np.ndarray, thresholds: list[float]) -> float:
    """The share of all requests that the cascade answers with harm: the first rung that is sure answers."""
    waiting = np.ones(scores.shape[1], dtype=bool)
    harm = 0
    for rung, threshold in enumerate(thresholds):
        answers = waiting & (scores[rung] >= threshold)
        harm += int(np.count_nonzero(answers & harmful[rung]))
        waiting &= ~answers
    return harm / scores.shape[1]


def broken_cascades(share: bool) -> int:
    scores, harmful = cascade_population()
    rng = np.random.default_rng(11)
    max_harm, delta = certificate_section.share_of_promise(MAX_HARM, DELTA, 2) if share else (MAX_HARM, DELTA)
    broken = 0
    for _ in range(DRAWS):
        rows = rng.integers(0, POPULATION, N)
        thresholds = []
        for rung in range(2):
            zero = np.zeros(N, dtype=np.int64)
            data = CertifyData(
                scores=scores[rung, rows],
                edge_predictions=harmful[rung, rows].astype(np.int64),
                cloud_predictions=zero,
                labels=zero,
            )
            thresholds.append(certify(data, max_harm=max_harm, delta=delta).threshold)
        broken += cascade_harm(scores, harmful, thresholds) > MAX_HARM
    return broken


def test_a_cascade_whose_rungs_share_the_promise_keeps_it() -> None:
    assert broken_cascades(share=True) / DRAWS <= DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)


def test_a_cascade_whose_rungs_each_take_the_whole_promise_breaks_it() -> None:
    """Which is why it is shared: two rungs may each spend all of it, on different requests."""
    assert broken_cascades(share=False) / DRAWS > DELTA + 3 * math.sqrt(DELTA * (1 - DELTA) / DRAWS)
