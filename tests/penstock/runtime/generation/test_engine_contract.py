"""One contract suite for every engine that generates: a new row of the table gets a row in ``MODELS`` and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

import penstock.runtime.generation
from penstock.errors import ArtifactError, Internal, InvalidInput, QueueFull
from penstock.generation.values import GenerationRequest, Grammar, SampledToken, Sampling
from penstock.runtime.generation import GenerationEngine, GenerationOptions, ReadingEngine, load
from penstock.runtime.generation.scripted import Script

BUILT = Path(__file__).parents[4] / "examples" / "codecomplete" / "models" / "edge-int4"
OPTIONS = GenerationOptions(slots=3, chunk_tokens=16)
PROMPT = tuple(range(40, 45))
LONG = tuple(100 + at % 90 for at in range(100))


def _script(directory: Path) -> Path:
    (directory / "script.json").write_bytes(msgspec.json.encode(Script(vocabulary=1024, context_tokens=512)))
    return directory


def _built(directory: Path) -> Path:
    return BUILT


def _genai(directory: Path) -> Path:
    pytest.importorskip("onnxruntime_genai", reason="the extra genai is not installed")
    return BUILT


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "genai": _built,
    "onnxruntime": _built,
    "onnxruntime-genai": _genai,
    "scripted": _script,
}
"""Each returns a model's directory. All have 1024 ids, 512 tokens of context, and end answers with token 1."""


@pytest.fixture(params=MODELS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GenerationEngine]:
    made = load(request.param, MODELS[request.param](tmp_path), OPTIONS)
    yield made
    made.close()


def asked(
    name: str,
    prompt: tuple[int, ...] = PROMPT,
    *,
    new: int = 8,
    sampling: Sampling | None = None,
    top: int | None = None,
) -> GenerationRequest:
    """A request that runs to its limit."""
    return GenerationRequest(
        id=name, prompt_ids=prompt, max_new_tokens=new, ignore_end=True, top_logprobs=top,
        sampling=sampling or Sampling(),
    )  # fmt: skip


def finished(engine: GenerationEngine) -> dict[str, list[SampledToken]]:
    """Step until nothing runs."""
    answers: dict[str, list[SampledToken]] = {}
    for _ in range(1000):
        for token in engine.step():
            answers.setdefault(token.request, []).append(token)
        if not engine.running:
            return answers
    raise AssertionError("the engine does not come to an end")


def ids(answer: list[SampledToken]) -> list[int]:
    return [each.token for each in answer]


def alone(engine: GenerationEngine, request: GenerationRequest) -> list[SampledToken]:
    engine.admit(request)
    return finished(engine)[request.id]


def test_every_engine_is_held_to_the_contract() -> None:
    assert set(MODELS) == set(penstock.runtime.generation._ENGINES)


def test_an_unknown_engine_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown engine 'fairy'; known: .*scripted"):
        load("fairy", tmp_path, OPTIONS)


@pytest.mark.parametrize("name", MODELS)
def test_a_directory_without_a_model_is_refused(name: str, tmp_path: Path) -> None:
    MODELS[name](tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError):
        load(name, tmp_path / "empty", OPTIONS)


def test_it_says_what_it_takes(engine: GenerationEngine) -> None:
    facts = engine.facts
    assert (facts.context_tokens, facts.vocabulary, facts.slots, facts.end_ids) == (512, 1024, 3, frozenset({1}))
    assert facts.kv_bytes_per_token > 0


def test_a_step_with_nothing_to_do_returns_at_once(engine: GenerationEngine) -> None:
    assert list(engine.step()) == []
    assert engine.running == 0


def test_an_answer_ends_at_its_limit_and_leaves_its_slot(engine: GenerationEngine) -> None:
    answer = alone(engine, asked("a", new=5))
    assert [each.finish for each in answer] == [None] * 4 + ["length"]
    assert all(0 <= each.token < 1024 and each.logprob <= 0 for each in answer)
    assert engine.running == 0


def test_an_answer_of_one_token(engine: GenerationEngine) -> None:
    assert [each.finish for each in alone(engine, asked("a", new=1))] == ["length"]


def test_a_prompt_of_one_token(engine: GenerationEngine) -> None:
    assert len(alone(engine, asked("a", (7,), new=3))) == 3


def test_a_prompt_that_fills_the_context_to_the_last_token(engine: GenerationEngine) -> None:
    assert len(alone(engine, asked("a", tuple(2 + at % 900 for at in range(508)), new=4))) == 4


def test_a_stop_token_ends_an_answer_and_is_its_last(engine: GenerationEngine) -> None:
    whole = ids(alone(engine, asked("a")))
    stop = whole[3]
    answer = alone(engine, msgspec.structs.replace(asked("b"), stop_ids=(stop,)))
    assert ids(answer) == whole[: whole.index(stop) + 1]
    assert answer[-1].finish == "stop"


def test_alternatives_come_likeliest_first_and_only_when_asked_for(engine: GenerationEngine) -> None:
    told = alone(engine, asked("a", top=5))
    for each in told:
        assert len({token for token, _ in each.top}) == len(each.top) == 5
        assert [value for _, value in each.top] == sorted((value for _, value in each.top), reverse=True)
        assert each.top[0] == (each.token, each.logprob)  # greedy
    assert all(each.top == () for each in alone(engine, asked("b")) + alone(engine, asked("c", top=0)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt_ids": ()}, "no tokens"),
        ({"prompt_ids": (5, 1024)}, r"prompt_ids\[1\]: token 1024 is not in the vocabulary.* 1023"),
        ({"prompt_ids": (-1, 5)}, r"prompt_ids\[0\]: token -1"),
        ({"prompt_ids": (5,) * 505}, "505 tokens and 8 new ones are 513, and the context is 512"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; expected at least 1"),
        ({"top_logprobs": 21}, "top_logprobs: 21; expected 0 to 20"),
        ({"top_logprobs": -1}, "top_logprobs: -1"),
    ],
)
def test_what_it_cannot_answer_is_refused_in_words(
    engine: GenerationEngine, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        engine.admit(msgspec.structs.replace(asked("a"), **wrong))
    assert engine.running == 0


def test_a_grammar_that_it_cannot_hold_to_is_refused(engine: GenerationEngine) -> None:
    for kind in {"json_schema", "regex", "choice"} - engine.facts.grammars:
        with pytest.raises(InvalidInput, match=f"cannot hold to a {kind}"):
            engine.admit(msgspec.structs.replace(asked("a"), ignore_end=False, grammar=Grammar(kind=kind, text="[]")))  # type: ignore[arg-type]


def test_an_id_that_runs_is_refused_and_one_that_ran_is_not(engine: GenerationEngine) -> None:
    engine.admit(asked("a"))
    with pytest.raises(InvalidInput, match="'a' runs already"):
        engine.admit(asked("a"))
    finished(engine)
    assert len(alone(engine, asked("a"))) == 8


def test_with_all_slots_taken_it_refuses_until_one_is_free(engine: GenerationEngine) -> None:
    for name in "abc":
        engine.admit(asked(name))
    with pytest.raises(QueueFull, match="all 3 slots"):
        engine.admit(asked("d"))
    assert engine.cancel("b")
    engine.admit(asked("d"))
    assert set(finished(engine)) == {"a", "c", "d"}


def test_a_cancelled_request_says_nothing_more_and_others_go_on(engine: GenerationEngine) -> None:
    expected = {name: ids(alone(engine, asked(name, prompt))) for name, prompt in (("a", PROMPT), ("b", LONG))}
    engine.admit(asked("a"))
    engine.admit(asked("b", LONG))
    engine.admit(asked("c", LONG[3:]))  # its prompt takes several steps
    said = [token for _ in range(3) for token in engine.step()]
    assert engine.cancel("c")
    assert engine.running == 2
    rest = finished(engine)
    whole = {name: [t.token for t in said if t.request == name] + ids(rest[name]) for name in ("a", "b")}
    assert whole == expected
    assert "c" not in rest


def test_cancelling_what_does_not_run_says_so(engine: GenerationEngine) -> None:
    alone(engine, asked("a"))
    assert not engine.cancel("a")
    assert not engine.cancel("b")


def test_a_request_admitted_while_others_run_gets_the_tokens_that_it_gets_alone(engine: GenerationEngine) -> None:
    prompts = {"a": PROMPT, "b": LONG, "c": PROMPT[::-1]}
    expected = {name: ids(alone(engine, asked(name, prompt))) for name, prompt in prompts.items()}
    said: list[SampledToken] = []
    for name, prompt in prompts.items():
        engine.admit(asked(name, prompt))
        said += engine.step()
    rest = finished(engine)
    found = {name: [t.token for t in said if t.request == name] + ids(rest.get(name, [])) for name in prompts}
    assert found == expected


def test_a_long_prompt_holds_up_nobody(engine: GenerationEngine) -> None:
    engine.admit(asked("short", new=30))
    while not engine.step():
        pass
    engine.admit(asked("long", LONG * 2, new=2))
    for _ in range(5):  # of at least 200 / 16 steps
        assert [token.request for token in engine.step()] == ["short"]
    engine.admit(asked("late", PROMPT[1:], new=2))
    said = [token.request for _ in range(3) for token in engine.step()]
    assert "late" in said
    assert "long" not in said


def test_cached_tokens_are_fewer_than_the_prompts_and_the_same_in_all_of_an_answer(engine: GenerationEngine) -> None:
    for name in "abc":
        answer = alone(engine, asked(name, LONG))
        assert len({each.cached_tokens for each in answer}) == 1
        assert 0 <= answer[0].cached_tokens < len(LONG)


def test_how_likely_the_first_token_is_depends_on_the_prompt_alone(engine: GenerationEngine) -> None:
    """What decides before generation: whatever was cached, who else is there, and in whatever pieces."""
    cold = alone(engine, asked("a", LONG))[0]
    warm = alone(engine, asked("b", LONG))[0]
    engine.admit(asked("c", LONG[::-1]))
    engine.step()
    engine.admit(asked("d", LONG))
    beside = finished(engine)["d"][0]
    assert [one.token for one in (warm, beside)] == [cold.token] * 2
    assert [one.logprob for one in (warm, beside)] == pytest.approx([cold.logprob] * 2, abs=2e-4)


def test_the_same_seed_gives_the_same_tokens_alone_and_in_company(engine: GenerationEngine) -> None:
    drawn = Sampling(temperature=1.0, top_p=0.9, seed=5)
    first = ids(alone(engine, asked("a", sampling=drawn)))
    engine.admit(asked("b", LONG, sampling=Sampling(temperature=1.0, seed=6)))
    engine.step()
    engine.admit(asked("a", sampling=drawn))
    assert ids(finished(engine)["a"]) == first


@pytest.fixture(params=[name for name in MODELS if name != "scripted"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadingEngine]:
    """Every engine of real models also reads."""
    made = load(request.param, MODELS[request.param](tmp_path), OPTIONS)
    yield made  # type: ignore[misc]
    made.close()


def test_a_text_is_as_likely_read_as_it_was_when_it_was_answered(reader: ReadingEngine) -> None:
    answer = alone(reader, asked("a", LONG, new=40))
    found = reader.read([*LONG, *ids(answer)])
    assert (len(found.log_likelihood), found.log_likelihood.dtype) == (139, np.float64)
    assert found.likeliest[-40:].tolist() == ids(answer)
    np.testing.assert_allclose(found.log_likelihood[-40:], [each.logprob for each in answer], atol=2e-4)
    assert (found.log_likelihood < 0).all()
    assert reader.running == 0
    again = reader.read([*LONG, *ids(answer)])
    np.testing.assert_array_equal(again.log_likelihood, found.log_likelihood)


def test_reading_needs_a_free_slot_and_disturbs_nobody(reader: ReadingEngine) -> None:
    expected = ids(alone(reader, asked("a")))
    reader.admit(asked("a"))
    said = list(reader.step())
    reader.read(LONG)
    assert [each.token for each in said] + ids(finished(reader)["a"]) == expected
    for name in "abc":
        reader.admit(asked(name))
    with pytest.raises(QueueFull, match="all 3 slots"):
        reader.read(LONG)


@pytest.mark.parametrize(
    ("text", "said"),
    [((), "no tokens"), ((5,), "a text of 1 tokens; expected 2"), ((5,) * 513, "context, 512"), ((5, 1024), "1024")],
)
def test_what_cannot_be_read_is_refused(reader: ReadingEngine, text: tuple[int, ...], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        reader.read(text)


def test_a_closed_engine_says_so(engine: GenerationEngine) -> None:
    engine.admit(asked("a"))
    engine.close()
    engine.close()
    with pytest.raises(Internal, match="closed"):
        engine.step()
    with pytest.raises(Internal, match="closed"):
        engine.admit(asked("b"))
    assert engine.running == 0
