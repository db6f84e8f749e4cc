"""How sure an answer among options is: the model's probabilities of these, given that it says one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.policy import confidence
from penstock.policy.choices import CHOICE_SCORES, choice_score, renormalised

logprobs = st.lists(st.floats(-700.0, 0.0), min_size=1, max_size=12)


@given(logprobs, st.floats(0.1, 10.0))
def test_renormalised_probabilities_sum_to_1_and_keep_their_order(values: list[float], temperature: float) -> None:
    found = renormalised(values, temperature)
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all()
    assert found[int(np.argmax(values))] == found.max()


@given(logprobs, st.randoms(use_true_random=False))
def test_neither_the_order_nor_a_common_factor_changes_a_score(values: list[float], random: Any) -> None:
    for name in CHOICE_SCORES:
        score = choice_score(values, name=name)
        assert 0 <= score <= 1
        assert choice_score(random.sample(values, len(values)), name=name) == pytest.approx(score, abs=1e-9)
        assert choice_score([value - 50.0 for value in values], name=name) == pytest.approx(score, abs=1e-9)


def test_scores_are_those_of_a_classifier_whose_classes_are_the_options() -> None:
    probabilities = np.array([0.6, 0.3, 0.1])
    for name in CHOICE_SCORES:
        expected = confidence.score([probabilities], kind="probabilities", name=name)[0]
        assert choice_score((np.log(probabilities) - 7).tolist(), name=name) == pytest.approx(expected)


def test_a_single_option_is_sure_and_what_is_not_finite_is_never_kept() -> None:
    for name in CHOICE_SCORES:
        assert choice_score([-3.0], name=name) == 1.0
        for values in ([], [math.nan], [-math.inf], [-1.0, math.nan], [-1.0, -math.inf]):
            assert math.isnan(choice_score(values, name=name))


def test_scores_that_options_cannot_have_are_refused() -> None:
    for name in ("token_min", "nothing"):
        with pytest.raises(InvalidInput, match="unknown score"):
            choice_score([-1.0, -2.0], name=name)
    with pytest.raises(InvalidInput, match="temperature"):
        choice_score([-1.0, -2.0], name="max_prob", temperature=0.0)
