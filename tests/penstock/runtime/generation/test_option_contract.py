"""The contract suite's part for requests with options: who scores them does so alike in any company, others refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from penstock.errors import InvalidInput
from penstock.generation.choices import MAX_OPTIONS
from penstock.generation.values import GenerationRequest, Options, SampledToken, Sampling
from penstock.runtime.generation import GenerationEngine, GenerationOptions, ReadingEngine, load
from tests.penstock.runtime.generation.test_engine_contract import LONG, MODELS, OPTIONS, PROMPT, alone, asked, finished

CHOICES = ((300, 301), (300,), (7, 8, 9, 10), (300, 301, 302), (512,), tuple(range(20, 42)))
END = 1
NONE = "onnxruntime-genai"  # the engine that scores no options
NOISE = 2e-4  # of log-probabilities, between runs of other shapes


@pytest.fixture(params=[name for name in MODELS if name != NONE])
def scoring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GenerationEngine]:
    made = load(request.param, MODELS[request.param](tmp_path), OPTIONS)
    yield made
    made.close()


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[ReadingEngine]:
    made = cast(ReadingEngine, load("onnxruntime", MODELS["onnxruntime"](tmp_path), OPTIONS))
    yield made
    made.close()


def choosing(
    name: str, prompt: tuple[int, ...] = PROMPT, choices: tuple[tuple[int, ...], ...] = CHOICES, **fields: Any
) -> GenerationRequest:
    options = Options(ids=choices, end_ids=fields.pop("end_ids", (END,)))
    return GenerationRequest(
        **{"id": name, "prompt_ids": prompt, "max_new_tokens": options.longest, "options": options} | fields
    )


def logprobs(answer: list[SampledToken]) -> tuple[float, ...]:
    return answer[-1].options


def test_the_answer_is_the_likeliest_option_with_its_end(scoring: GenerationEngine) -> None:
    answer = alone(scoring, choosing("a"))
    found = logprobs(answer)
    assert len(found) == len(CHOICES)
    assert tuple(each.token for each in answer) == (*CHOICES[int(np.argmax(found))], END)
    assert [each.finish for each in answer] == [None] * (len(answer) - 1) + ["stop"]
    assert all(each.options == () for each in answer[:-1])
    assert all(each.logprob <= 0 for each in answer)
    assert scoring.running == 0


def test_one_option_is_the_answer(scoring: GenerationEngine) -> None:
    assert [each.token for each in alone(scoring, choosing("a", choices=((44,),)))] == [44, END]


def test_the_order_and_the_company_of_options_change_no_score(scoring: GenerationEngine) -> None:
    expected = dict(zip(CHOICES, logprobs(alone(scoring, choosing("a"))), strict=True))
    turned = CHOICES[::-1]
    found = logprobs(alone(scoring, choosing("b", choices=turned)))
    assert found == pytest.approx([expected[ids] for ids in turned], abs=NOISE)


def test_a_request_with_options_runs_beside_others_and_changes_nothing_for_them(scoring: GenerationEngine) -> None:
    expected = alone(scoring, choosing("o", LONG))
    plain = alone(scoring, asked("a"))
    scoring.admit(asked("a"))
    said = list(scoring.step())
    scoring.admit(choosing("o", LONG))
    scoring.admit(choosing("p", LONG[::-1]))
    answers: dict[str, list[SampledToken]] = {"a": said}
    for name, rest in finished(scoring).items():
        answers.setdefault(name, []).extend(rest)
    assert [each.token for each in answers["a"]] == [each.token for each in plain]
    assert [each.token for each in answers["o"]] == [each.token for each in expected]
    assert logprobs(answers["o"]) == pytest.approx(logprobs(expected), abs=NOISE)


def test_a_cancelled_request_with_options_leaves_nothing_behind(scoring: GenerationEngine) -> None:
    expected = logprobs(alone(scoring, choosing("a", LONG)))
    for steps in range(9):
        scoring.admit(choosing("a", LONG))
        for _ in range(steps):
            scoring.step()
        scoring.cancel("a")
        assert scoring.running == 0
    assert logprobs(alone(scoring, choosing("b", LONG))) == pytest.approx(expected, abs=NOISE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"choices": ()}, f"0 given; expected 1 to {MAX_OPTIONS}"),
        ({"choices": tuple((at,) for at in range(2, 1002))}, f"1000 given; expected 1 to {MAX_OPTIONS}"),
        ({"choices": ((5,), ())}, "option 1 has no tokens"),
        ({"choices": ((5, 6), (7,), (5, 6))}, "options 0 and 2 are the same tokens"),
        ({"choices": ((5,), (1024,))}, "token 1024 is not in the vocabulary, which has ids from 0 to 1023"),
        ({"choices": ((5,), (-1,))}, "token -1 is not in the vocabulary"),
        ({"end_ids": (1024,)}, "token 1024 is not"),
        ({"end_ids": ()}, "no token ends them"),
        ({"max_new_tokens": 5}, "the longest has 23 tokens with its end, and the answer may have 5"),
        ({"sampling": Sampling(temperature=0.5)}, "scored, not drawn"),
        ({"sampling": Sampling(logit_bias={3: 1.0})}, "scored, not drawn"),
        ({"top_logprobs": 2}, "scored, not drawn"),
        ({"ignore_end": True}, "scored, not drawn"),
        ({"stop_ids": (4,)}, "scored, not drawn"),
        ({"prompt": (5,) * 500}, "500 tokens and 23 new ones are 523, and the context is 512"),
    ],
)
def test_options_that_cannot_be_scored_are_refused_in_words(
    scoring: GenerationEngine, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        scoring.admit(choosing("a", **wrong))
    assert scoring.running == 0


def test_an_engine_that_scores_none_says_so(tmp_path: Path) -> None:
    engine = load(NONE, MODELS[NONE](tmp_path), OPTIONS)
    assert not engine.facts.scores_options
    with pytest.raises(InvalidInput, match="this model's engine scores no options"):
        engine.admit(choosing("a"))
    engine.close()


def test_scores_are_what_reading_the_whole_answers_says(slots: ReadingEngine) -> None:
    found = logprobs(alone(slots, choosing("a", LONG)))
    for ids, value in zip(CHOICES, found, strict=True):
        read = slots.read([*LONG, *ids, END]).log_likelihood[len(LONG) - 1 :]
        assert value == pytest.approx(float(read.sum()), abs=NOISE * (len(ids) + 1))


@pytest.mark.parametrize("chunk_tokens", [1, 3, 64])
def test_neither_pieces_nor_what_was_cached_change_a_score(
    slots: ReadingEngine, chunk_tokens: int, tmp_path: Path
) -> None:
    expected = logprobs(alone(slots, choosing("a", LONG)))
    options = GenerationOptions(slots=2, chunk_tokens=chunk_tokens)
    other = load("onnxruntime", MODELS["onnxruntime"](tmp_path), options)
    for cached in (0, len(LONG) - 1, len(LONG) - 1):
        answer = alone(other, choosing("b", LONG))
        assert answer[0].cached_tokens == cached
        assert logprobs(answer) == pytest.approx(expected, abs=NOISE)
    other.close()


def test_many_options_hold_up_nobody(slots: ReadingEngine) -> None:
    """Two hundred options are fifty steps, in each of which the others get their token."""
    slots.admit(asked("short", new=30))
    while not slots.step():
        pass
    many = tuple((at, at + 1) for at in range(2, 202))
    slots.admit(choosing("many", choices=many))
    for _ in range(25):
        assert [token.request for token in slots.step()] == ["short"]
    assert len(finished(slots)["many"][-1].options) == 200


def test_a_prompt_is_reused_after_its_options_and_none_of_these_is_left_in_it(slots: ReadingEngine) -> None:
    plain = [each.token for each in alone(slots, asked("before", LONG))]
    alone(slots, choosing("a", LONG))
    after = alone(slots, msgspec.structs.replace(asked("after", LONG)))
    assert [each.token for each in after] == plain
    assert after[0].cached_tokens == len(LONG) - 1
