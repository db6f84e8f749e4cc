"""Perplexity before and after, with intervals that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from compiler.generation import compare
from compiler.generation.built_model import Likelihoods
from penstock.errors import CompileError


def made(log_likelihood: np.ndarray, *, text: np.ndarray | None = None, top1: np.ndarray | None = None) -> Likelihoods:
    count = len(log_likelihood)
    tokens = np.arange(count)
    return Likelihoods(
        tokens=tokens,
        log_likelihood=log_likelihood,
        top1=tokens if top1 is None else top1,
        text=np.zeros(count, np.int64) if text is None else text,
    )


def test_perplexity_of_a_fair_die_is_its_sides() -> None:
    assert compare.perplexity(made(np.full(100, math.log(1 / 6)))) == pytest.approx(6)
    assert compare.perplexity(made(np.full(3, -1e6))) == math.exp(700)


def test_a_model_against_itself_lost_nothing() -> None:
    same = made(np.random.default_rng(0).normal(-2, 1, 1000))
    change = compare.change(same, same)
    assert (change.increase.value, change.increase.low, change.increase.high) == (0, 0, 0)
    assert (change.agreement.value, change.tokens) == (1, 1000)


def test_the_increase_is_the_ratio_of_the_two_perplexities() -> None:
    source = np.random.default_rng(1)
    reference = made(source.normal(-2, 1, 5000))
    candidate = made(reference.log_likelihood - source.normal(0.05, 0.1, 5000))
    change = compare.change(reference, candidate, seed=3)
    assert change.after / change.before - 1 == pytest.approx(change.increase.value)
    assert compare.change(reference, candidate, seed=3) == change


def test_the_interval_is_the_normal_one_for_independent_tokens() -> None:
    lost = np.random.default_rng(2).normal(0.05, 0.4, 64_000)
    change = compare.change(made(np.zeros(64_000)), made(-lost), seed=0)
    low, high = stats.norm.interval(0.95, loc=lost.mean(), scale=lost.std() / math.sqrt(len(lost)))
    assert math.log1p(change.increase.low) == pytest.approx(low, abs=0.0006)
    assert math.log1p(change.increase.high) == pytest.approx(high, abs=0.0006)


def test_the_interval_is_wider_where_tokens_move_together() -> None:
    source = np.random.default_rng(4)
    independent = source.normal(0, 0.3, 12_800)
    together = np.repeat(source.normal(0, 0.3, 200), 64)
    widths = []
    for lost in (independent, together):
        found = compare.change(made(np.zeros(12_800)), made(-lost)).increase
        widths.append(found.high - found.low)
    assert widths[1] > 4 * widths[0]


def test_blocks_never_cross_the_end_of_a_text() -> None:
    text = np.repeat([0, 1, 2], [100, 3, 64])
    assert compare._block_starts(text).tolist() == [0, 64, 100, 103]


def test_agreement_counts_places_where_the_likeliest_token_is_the_same() -> None:
    base = np.full(1000, -1.0)
    top1 = np.arange(1000)
    top1[:100] += 1
    change = compare.change(made(base), made(base, top1=top1))
    assert change.agreement.value == pytest.approx(0.9)
    assert change.agreement.low < 0.9 < change.agreement.high


def test_models_with_other_tokens_are_not_compared() -> None:
    with pytest.raises(CompileError, match="different tokens"):
        compare.change(made(np.zeros(3)), made(np.zeros(4)))


def test_the_gate() -> None:
    change = compare.change(made(np.full(640, -2.0)), made(np.full(640, -2.1)))
    assert compare.refusal(change, max_increase=0.11) == ""
    assert change.bound == pytest.approx(change.increase.value)
    assert "+10.5% (+10.5% to +10.5%), 5.0% allowed" in compare.refusal(change, max_increase=0.05)
    source = np.random.default_rng(5)
    unsure = compare.change(made(np.zeros(640)), made(source.normal(-0.04, 0.4, 640)), level=0.01)
    assert unsure.increase.value < 0.05 < unsure.bound
    assert unsure.increase.high < unsure.bound
    assert "640 tokens leave up to" in compare.refusal(unsure, max_increase=0.05)
    ruined = compare.change(made(np.zeros(2)), made(np.array([-1e6, -1e6])))
    assert math.isfinite(ruined.increase.high)
    assert compare.refusal(ruined, max_increase=9) != ""
