"""Golden vectors: only continuations that rounding cannot turn into others."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.generation import golden_answers
from compiler.generation.built_model import Answers
from penstock.artifact import golden
from penstock.errors import CompileError


def said(*margins: list[float]) -> Answers:
    count = len(margins)
    return Answers(
        texts=("",) * count,
        prompt_ids=tuple(np.arange(3) + 10 * row for row in range(count)),
        token_ids=tuple(np.arange(len(row)) + 100 * at for at, row in enumerate(margins)),
        probabilities=tuple(np.array(row) for row in margins),
        margins=tuple(np.array(row) for row in margins),
    )


def test_rows_are_cut_before_the_first_vague_token() -> None:
    found = golden_answers.choose(said([0.9, 0.8, 0.01, 0.9], [0.9, 0.2, 0.3, 0.04], [0.01, 0.9, 0.9, 0.9]))
    assert found.outputs[golden_answers.TOKEN_IDS].tolist() == [[100, 101], [0, 1]]
    assert found.inputs[golden_answers.PROMPT_IDS].tolist() == [[10, 11, 12], [0, 1, 2]]


def test_a_vague_row_does_not_cut_the_others_short() -> None:
    found = golden_answers.choose(said([0.9] * 8, [0.9] + [0.0] * 7, [0.9] * 6 + [0.0] * 2))
    assert found.outputs[golden_answers.TOKEN_IDS].shape == (2, 6)


def test_at_most_four_rows() -> None:
    assert golden_answers.choose(said(*[[0.5] * 8] * 9)).inputs[golden_answers.PROMPT_IDS].shape == (4, 3)


def test_a_model_that_is_sure_of_nothing_is_refused() -> None:
    with pytest.raises(CompileError, match="for none of 2 prompts is the model sure"):
        golden_answers.choose(said([0.01, 0.9], [0.0]))


def test_they_pack_as_every_other_variants_do() -> None:
    found = golden_answers.choose(said([0.9, 0.8], [0.9, 0.8]))
    again = golden.decode(golden.encode(found))
    golden.check(again, {golden_answers.TOKEN_IDS: found.outputs[golden_answers.TOKEN_IDS]}, tolerance=0.0)
    np.testing.assert_array_equal(again.inputs[golden_answers.PROMPT_IDS], found.inputs[golden_answers.PROMPT_IDS])
