"""Options as values: what is computed for them, and what becomes of the logits that are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.generation.values import Options
from penstock.runtime.generation.option_scores import OptionScores, plan_appends

VOCABULARY = 9
END = 8
option_sets = st.lists(
    st.lists(st.integers(0, VOCABULARY - 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=8, unique=True
)


def found(path: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits that depend on everything before, as a model's do."""
    return np.random.default_rng(list(path)).normal(0, 2, VOCABULARY).astype(np.float32)


def scored(options: Options, *, at_once: int = 64) -> tuple[OptionScores, int]:
    """Play a model; return the scores with the number of tokens that were computed."""
    scores = OptionScores(options)
    scores.begin(found(()))
    text: tuple[int, ...] = ()
    computed = 0
    while scores.left:
        append = scores.next(at_once)
        assert 1 <= len(append.ids) <= at_once
        begin = text[: append.keep]
        text = (*begin, *append.ids)
        computed += len(append.ids)
        scores.take(np.stack([found(text[: len(begin) + at + 1]) for at in range(len(append.ids))]))
    return scores, computed


def directly(option: tuple[int, ...], ends: tuple[int, ...] = (END,)) -> float:
    total = 0.0
    for at in range(len(option) + 1):
        row = found(option[:at]).astype(np.float64)
        logprobs = row - np.log(np.exp(row).sum())
        following: Any = logprobs[option[at]] if at < len(option) else np.log(np.exp(logprobs[list(ends)]).sum())
        total += float(following)
    return total


@given(option_sets, st.integers(1, 7))
def test_each_option_has_the_probability_of_its_tokens_and_its_end(ids: list[tuple[int, ...]], at_once: int) -> None:
    scores, _ = scored(Options(ids=tuple(ids), end_ids=(END,)), at_once=at_once)
    assert scores.logprobs == pytest.approx([directly(option) for option in ids])
    assert sum(np.exp(scores.logprobs)) <= 1 + 1e-9  # different whole answers exclude each other


@given(option_sets, st.randoms(use_true_random=False))
def test_the_order_of_options_changes_nothing(ids: list[tuple[int, ...]], random: Any) -> None:
    one, _ = scored(Options(ids=tuple(ids), end_ids=(END,)))
    shuffled = random.sample(ids, len(ids))
    other, _ = scored(Options(ids=tuple(shuffled), end_ids=(END,)))
    assert dict(zip(ids, one.logprobs, strict=True)) == dict(zip(shuffled, other.logprobs, strict=True))
    assert [each.token for each in one.answer("a", 0)] == [each.token for each in other.answer("a", 0)]


@given(option_sets)
def test_what_options_share_at_their_beginning_is_computed_once(ids: list[tuple[int, ...]]) -> None:
    options = Options(ids=tuple(ids), end_ids=(END,))
    beginnings = {option[: at + 1] for option in ids for at in range(len(option))}
    _, computed = scored(options)
    assert computed == len(beginnings) == sum(len(append.ids) for append in plan_appends(options))


def test_an_option_that_begins_another_is_not_likelier_for_it() -> None:
    """Without an end "no" would always beat "not sure", whatever the model thinks of it."""
    sure = np.full(VOCABULARY, -20.0, np.float32)
    scores = OptionScores(Options(ids=((1,), (1, 2)), end_ids=(END,)))
    rows = {token: sure.copy() for token in (1, 2, END)}
    for token, row in rows.items():
        row[token] = 0.0
    scores.begin(rows[1])
    for then in (2, END):
        assert scores.next(8).ids
        scores.take(rows[then][None])
    short, long = scores.logprobs
    assert long > short + 10
    assert [each.token for each in scores.answer("a", 3)] == [1, 2, END]


def test_any_of_several_ends_will_do_and_the_likeliest_is_told() -> None:
    scores, _ = scored(Options(ids=((1,), (2,)), end_ids=(END, 7)))
    assert scores.logprobs == pytest.approx([directly((1,), (END, 7)), directly((2,), (END, 7))])
    answer = scores.answer("a", 5)
    best = answer[0].token
    assert answer[-1].token == (7, END)[int(found((best,))[END] > found((best,))[7])]
    assert [each.finish for each in answer] == [None, "stop"]
    assert {each.cached_tokens for each in answer} == {5}
    assert (answer[0].options, answer[-1].options) == ((), scores.logprobs)


def test_of_equally_likely_options_the_first_by_tokens_is_the_answer() -> None:
    for ids in (((3,), (2,)), ((2,), (3,))):
        scores = OptionScores(Options(ids=ids, end_ids=(END,)))
        flat = np.zeros(VOCABULARY, np.float32)
        scores.begin(flat)
        for _ in ids:
            scores.take(flat[None])
        assert scores.answer("a", 0)[0].token == 2
