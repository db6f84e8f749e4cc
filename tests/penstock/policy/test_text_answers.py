"""Two texts are the same answer whatever their white space, or also whatever their case and punctuation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy import text_answers


@pytest.mark.parametrize(
    ("how", "one", "other", "same"),
    [
        ("whitespace", " return  x\n", "return x", True),
        ("whitespace", "Paris", "paris", False),
        ("whitespace", "cafe\u0301", "caf\u00e9", True),
        ("words", "The Eiffel Tower.", "eiffel tower", True),
        ("words", "a_b", "a b", True),
        ("words", "\uff11\uff12", "12", True),
        ("words", "12", "13", False),
    ],
)
def test_which_answers_are_the_same(how: text_answers.Normalisation, one: str, other: str, same: bool) -> None:
    assert (text_answers.normalised(one, how) == text_answers.normalised(other, how)) is same


@given(st.text(), st.sampled_from(["whitespace", "words"]))
def test_normalising_twice_changes_nothing_more(text: str, how: text_answers.Normalisation) -> None:
    once = text_answers.normalised(text, "whitespace")
    assert text_answers.normalised(once, "whitespace") == once
    assert text_answers.normalised(text, how) == text_answers.normalised(text, how)
