"""Slots answer as transformers and onnxruntime-genai do, whoever else is in the engine and however they came there."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from penstock.errors import ArtifactError, InvalidInput
from penstock.generation.values import GenerationRequest, SampledToken, Sampling
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.decoder_file import CONFIG_FILE, read_config, unsuitable
from penstock.runtime.generation.slots import SlotEngine, load
from tests.penstock.runtime.generation.references import GENAI, MODELS, NEAR_TIE, Reference, references

NEW = 24


@cache
def _shared(model: str, slots: int, chunk_tokens: int) -> SlotEngine:
    return load(MODELS / model, GenerationOptions(slots=slots, chunk_tokens=chunk_tokens))


def _engine(model: str = "edge-int4", *, slots: int = 4, chunk_tokens: int = 64) -> SlotEngine:
    """Return an engine in which nothing runs; its slots hold what earlier tests left there, as in service."""
    engine = _shared(model, slots, chunk_tokens)
    for name in [slot.running.request.id for slot in engine._slots if slot.running]:
        engine.cancel(name)
    return engine


def _forgets(engine: SlotEngine) -> SlotEngine:
    engine._forget()
    return engine


def _request(name: str, ids: Sequence[int], new: int = NEW, **asked: Any) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_ids=tuple(ids), max_new_tokens=new, ignore_end=True, **asked)


def _answers(engine: SlotEngine, waiting: Iterator[GenerationRequest]) -> dict[str, list[SampledToken]]:
    """Admit as soon as a slot is free, until all is answered."""
    said: dict[str, list[SampledToken]] = {}
    following = next(waiting, None)
    while following or engine.running:
        while following and engine.running < engine.facts.slots:
            engine.admit(following)
            following = next(waiting, None)
        for token in engine.step():
            said.setdefault(token.request, []).append(token)
    return said


def _check(answer: Sequence[SampledToken], reference: Reference) -> int:
    """Compare an answer with its reference up to the first near tie; return how many tokens that was."""
    sure = min(reference.sure, len(answer))
    assert [each.token for each in answer[:sure]] == list(reference.new[:sure])
    return sure


def _check_all(engine: SlotEngine, rows: Sequence[Reference], *, seed: int = 0) -> None:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    said = _answers(engine, (_request(str(at), rows[at].ids, NEW - at % 5) for at in order))
    compared = sum(_check(said[str(at)], rows[at]) for at in order)
    assert compared > 0.4 * NEW * len(rows)  # near ties leave enough to compare


def test_answers_are_those_of_transformers() -> None:
    rows = references("edge-fp32", "transformers")
    _check_all(_engine("edge-fp32", slots=1), rows)
    _check_all(_engine("edge-fp32", slots=4), rows)


@pytest.mark.parametrize("model", GENAI)
def test_probabilities_are_those_of_others(model: str) -> None:
    engine = _engine(model)
    rows = references(model)
    said = _answers(engine, (_request(str(at), row.ids) for at, row in enumerate(rows)))
    apart = [
        abs(token.logprob - expected)
        for at, row in enumerate(rows)
        for token, expected in zip(said[str(at)][: row.sure], row.logprobs, strict=False)
    ]
    assert max(apart) < 10 * NEAR_TIE[model]


@pytest.mark.parametrize("model", ["edge-int4", "cloud-int4"])
def test_answers_are_those_of_genai_with_the_same_file(model: str) -> None:
    _check_all(_engine(model, slots=4), references(model))


@pytest.mark.parametrize("slots", range(1, 9))
def test_answers_do_not_depend_on_the_number_of_slots(slots: int) -> None:
    _check_all(_engine(slots=slots), references("edge-int4"), seed=slots)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 16, 63, 65, 127, 128, 512])
def test_answers_do_not_depend_on_where_prompts_are_cut(chunk_tokens: int) -> None:
    _check_all(_forgets(_engine("edge-fp32", slots=3, chunk_tokens=chunk_tokens)), references("edge-fp32"))


def test_every_boundary_of_a_chunk_gives_the_same_answer() -> None:
    """A prompt of 21 tokens, cut after 1 to 21 of them, alone and beside one that decodes."""
    reference = next(row for row in references("edge-fp32") if len(row.ids) == 21)
    other = references("edge-fp32")[3]
    for chunk_tokens in range(1, 22):
        engine = load(MODELS / "edge-fp32", GenerationOptions(slots=2, chunk_tokens=chunk_tokens))
        said = _answers(engine, iter([_request("a", reference.ids, 6)]))
        assert _check(said["a"], reference) == 6
        engine._forget()
        said = _answers(engine, iter([_request("b", other.ids, 20), _request("a", reference.ids, 6)]))
        assert _check(said["a"], reference) == 6
        _check(said["b"], other)


def test_slots_are_used_again_after_requests_were_cancelled() -> None:
    rows, engine = references("edge-fp32"), _forgets(_engine("edge-fp32", slots=3))
    for at, row in enumerate(rows):
        engine.admit(_request("gone", rows[-1 - at].ids))
        engine.step()
        engine.admit(_request("kept", row.ids))
        said = [token for _ in range(2) for token in engine.step()]
        assert engine.cancel("gone")
        said += _answers(engine, iter(()))["kept"] if engine.running else []
        _check([token for token in said if token.request == "kept"], row)


def test_the_next_turn_computes_only_what_is_new() -> None:
    engine, row = _forgets(_engine("edge-fp32")), references("edge-fp32")[-1]
    turn = row.ids[:300]
    first = _answers(engine, iter([_request("a", turn, 5)]))["a"]
    assert first[0].cached_tokens == 0
    longer = (*turn, *[each.token for each in first], *row.ids[300:])
    second = _answers(engine, iter([_request("b", longer)]))["b"]
    assert {each.cached_tokens for each in second} == {304}  # of the last token drawn nothing was computed
    engine._forget()
    assert [each.token for each in _answers(engine, iter([_request("b", longer)]))["b"]] == [e.token for e in second]


def test_a_beginning_is_shared_with_a_request_that_still_runs() -> None:
    engine, row = _forgets(_engine("edge-fp32")), references("edge-fp32")[-1]
    alone = {n: _answers(_forgets(engine), iter([_request("a", row.ids[:n])]))["a"] for n in (400, 350)}
    engine._forget()
    engine.admit(_request("first", row.ids))
    said = list(engine.step()) + [token for _ in range(10) for token in engine.step()]
    engine.admit(_request("second", row.ids[:350]))
    for name, tokens in _answers(engine, iter(())).items():
        said += [token for token in tokens if token.request == name]
    for name, count in (("first", 400), ("second", 350)):
        assert [t.token for t in said if t.request == name] == [t.token for t in alone[count]]
    assert {t.cached_tokens for t in said if t.request == "second"} == {349}


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    engine, row = _forgets(_engine("edge-fp32")), references("edge-fp32")[12]
    for name, cached in (("a", 0), ("b", len(row.ids) - 1)):
        answer = _answers(engine, iter([_request(name, row.ids)]))[name]
        assert {each.cached_tokens for each in answer} == {cached}
        _check(answer, row)


def test_drawn_tokens_do_not_depend_on_company() -> None:
    engine, rows = _engine("edge-fp32", slots=8), references("edge-fp32")
    asked = [
        _request(str(at), row.ids, NEW, sampling=Sampling(temperature=0.8, top_p=0.95, top_k=50, seed=at))
        for at, row in enumerate(rows[:12])
    ]
    asked += [_request("penalties", rows[12].ids, sampling=Sampling(repetition_penalty=1.3, frequency_penalty=0.5))]
    alone = {each.id: _answers(_forgets(engine), iter([each]))[each.id] for each in asked}
    together = _answers(_forgets(engine), iter(asked))
    for each in asked:
        assert [t.token for t in together[each.id]] == [t.token for t in alone[each.id]]


def test_without_a_seed_answers_differ() -> None:
    engine, row = _engine(), references("edge-int4")[4]
    drawn = Sampling(temperature=1.5)
    said = _answers(engine, (_request(str(at), row.ids, sampling=drawn) for at in range(4)))
    assert len({tuple(t.token for t in answer) for answer in said.values()}) > 1


@pytest.mark.parametrize("drafted", [0, 1, 4, 9])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, seed=3)], ids=["greedy", "drawn"])
def test_verified_drafts_are_what_as_many_steps_would_have_said(drafted: int, sampling: Sampling) -> None:
    """Drafts are right at first and wrong after a place that moves; another request decodes meanwhile."""
    engine, rows = _forgets(_engine("edge-fp32")), references("edge-fp32")
    asked = _request("a", rows[9].ids, sampling=sampling)
    expected = [t.token for t in _answers(engine, iter([asked]))["a"]]
    other = [t.token for t in _answers(engine, iter([_request("b", rows[5].ids, 40)]))["b"]]
    engine.admit(asked)
    engine.admit(_request("b", rows[5].ids, 40))
    said = list(engine.step())
    for turn in range(100):
        mine = [t.token for t in said if t.request == "a"]
        if len(mine) == NEW:
            break
        draft = expected[len(mine) : len(mine) + drafted]
        if turn < len(draft):
            draft[turn] = (draft[turn] + 1) % 1024
        verified = engine.verify("a", draft)
        assert 1 <= len(verified) <= drafted + 1
        said += verified
        said += engine.step()
    assert [t.token for t in said if t.request == "a"] == expected
    assert [t.finish for t in said if t.request == "a"][-1] == "length"
    said += _answers(engine, iter(())).get("b", [])
    assert [t.token for t in said if t.request == "b"] == other


def test_scoring_a_draft_advances_nothing() -> None:
    engine, row = _forgets(_engine("edge-fp32")), references("edge-fp32")[9]
    engine.admit(_request("a", row.ids))
    first = list(engine.step())
    before = engine.score("a", row.new[1:9])
    assert np.allclose(before, row.logprobs[1:9], atol=1e-3)
    assert engine.score("a", [3, 4, 5])[0] < before[0]
    _check(first + _answers(engine, iter(()))["a"], row)


def test_drafts_that_cannot_be_are_refused() -> None:
    engine, row = _engine(), references("edge-int4")[-1]
    with pytest.raises(InvalidInput, match="no 'a' runs here"):
        engine.verify("a", [5])
    engine.admit(_request("a", row.ids[:400]))
    with pytest.raises(InvalidInput, match="not computed yet"):
        engine.verify("a", [5])
    while not engine.step():
        pass
    with pytest.raises(InvalidInput, match="token 1024 is not in the vocabulary"):
        engine.verify("a", [5, 1024])
    with pytest.raises(InvalidInput, match="401 tokens and 200 drafted ones are 601, and the context is 512"):
        engine.score("a", [5] * 200)


def test_the_end_of_an_answer_is_the_models_own_unless_told_otherwise() -> None:
    engine, row = _engine(), references("edge-int4")[4]
    end = Sampling(logit_bias={1: 1000.0})
    whole = _answers(engine, iter([_request("a", row.ids, 3, sampling=end)]))["a"]
    assert [(t.token, t.finish) for t in whole] == [(1, None), (1, None), (1, "length")]
    asked = GenerationRequest(id="a", prompt_ids=row.ids, max_new_tokens=3, sampling=end)
    assert [(t.token, t.finish) for t in _answers(engine, iter([asked]))["a"]] == [(1, "stop")]


def test_a_shorter_context_is_kept_to() -> None:
    engine = load(MODELS / "edge-int4", GenerationOptions(slots=1, context_tokens=32))
    assert engine.facts.context_tokens == 32
    with pytest.raises(InvalidInput, match="30 tokens and 3 new ones are 33, and the context is 32"):
        engine.admit(_request("a", range(30), 3))
    assert len(_answers(engine, iter([_request("a", range(30), 2)]))["a"]) == 2


def test_slots_that_no_memory_holds_are_refused_with_their_size() -> None:
    with pytest.raises(ArtifactError, match="1000000000 slots with 512 tokens each are 262144.0 GB"):
        load(MODELS / "edge-int4", GenerationOptions(slots=10**9))


def _config(**changes: Any) -> Mapping[str, Any]:
    config = json.loads((MODELS / "edge-int4" / CONFIG_FILE).read_text(encoding="utf-8"))
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return config


def test_our_own_models_suit() -> None:
    assert [unsuitable(read_config(MODELS / name)) for name in GENAI] == [None] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__type": "speculative"}, "type speculative is none of"),
        ({"model__type": "phi3"}, "type phi3"),
        ({"model__vision": {"filename": "v.onnx"}}, "another model beside the decoder (vision)"),
        ({"model__draft": {"filename": "d.onnx"}}, "another model beside the decoder (draft)"),
        ({"model__decoder__sliding_window": {"window_size": 128}}, "its decoder has sliding_window"),
        ({"model__decoder__pipeline": [{"a": {}}]}, "its decoder has pipeline"),
        ({"model__decoder__inputs__position_ids": "position_ids"}, "differ in position_ids"),
        ({"search__past_present_share_buffer": False}, "not written in place"),
    ],
)
def test_what_slots_cannot_run_is_named(changes: Mapping[str, Any], said: str) -> None:
    reason = unsuitable(_config(**changes))
    assert reason is not None
    assert said in reason
    assert unsuitable(_config(), "cuda") == "provider cuda keeps keys and values on its device"


def test_a_model_that_slots_cannot_run_is_refused_with_the_reason(tmp_path: Any) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(_config(model__type="whisper")))
    with pytest.raises(ArtifactError, match="slots cannot run it: type whisper"):
        load(tmp_path, GenerationOptions())
