"""Answers keep to their grammar, end with it, and change nobody else's, by either of the engines that know grammars."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from penstock.errors import InvalidInput
from penstock.generation.values import GenerationRequest, Grammar, SampledToken, Sampling
from penstock.runtime.generation import GenerationEngine, GenerationOptions, load
from penstock.runtime.generation.slots import SlotEngine
from tests.penstock.runtime.generation.references import MODELS, references

TOKENS = json.loads((MODELS / "edge-int4" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
TEXT = {at: token.replace("\u0120", " ") for token, at in TOKENS.items()}
SCHEMA = (
    '{"type":"object","properties":{"label":{"enum":["yes","no"]}},"required":["label"],"additionalProperties":false}'
)
NEEDS = {"onnxruntime": ("llguidance", "generate"), "onnxruntime-genai": ("onnxruntime_genai", "genai")}


@pytest.fixture(scope="module", params=NEEDS)
def engine(request: pytest.FixtureRequest) -> GenerationEngine:
    library, extra = NEEDS[request.param]
    pytest.importorskip(library, reason=f"the extra {extra} is not installed")
    return load(request.param, MODELS / "edge-int4", GenerationOptions(chunk_tokens=32))


def _answer(engine: GenerationEngine, **asked: Any) -> list[SampledToken]:
    asked = {"id": "a", "prompt_ids": references("edge-int4")[5].ids, "max_new_tokens": 24} | asked
    engine.admit(GenerationRequest(**asked))
    said: list[SampledToken] = []
    while engine.running:
        said += engine.step()
    return said


def _text(answer: list[SampledToken]) -> str:
    return "".join(TEXT[each.token] for each in answer if each.token != 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=1)], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar(kind="json_schema", text=SCHEMA), r'\{"label":"(yes|no)"\}'),
        (Grammar(kind="regex", text="[0-9]{3}-[a-c]x"), "[0-9]{3}-[a-c]x"),
        (Grammar(kind="choice", text='["yes", "no \\"x\\""]'), '(yes|no "x")'),
    ],
    ids=["json", "regex", "choice"],
)
def test_an_answer_keeps_to_its_grammar_and_ends(
    engine: GenerationEngine, grammar: Grammar, pattern: str, sampling: Sampling
) -> None:
    answer = _answer(engine, grammar=grammar, sampling=sampling, top_logprobs=1)
    assert re.fullmatch(pattern, _text(answer))
    assert answer[-1].finish == "stop"
    assert all(each.logprob <= each.top[0][1] + 1e-6 for each in answer)  # of the raw model, not of what is allowed


def test_a_request_beside_one_with_a_grammar_is_answered_as_alone(engine: GenerationEngine) -> None:
    row = references("edge-int4")[8]
    alone = [each.token for each in _answer(engine, prompt_ids=row.ids)]
    grammar = Grammar(kind="regex", text="[0-9]{3}-[a-c]x")
    engine.admit(GenerationRequest(id="b", prompt_ids=row.ids, max_new_tokens=24, grammar=grammar))
    answer = _answer(engine, prompt_ids=row.ids)
    assert [each.token for each in answer if each.request == "a"] == alone


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"grammar": Grammar(kind="json_schema", text="{")}, "a json_schema is JSON"),
        ({"grammar": Grammar(kind="json_schema", text="5")}, "a JSON schema is an object"),
        ({"grammar": Grammar(kind="json_schema", text='{"type": 5}')}, "type must be"),
        ({"grammar": Grammar(kind="regex", text="(")}, "grammar: "),
        ({"grammar": Grammar(kind="choice", text="[]")}, "a JSON list of texts"),
        ({"grammar": Grammar(kind="regex", text="a|" * 40_000 + "b")}, "the regex has 80001 characters; at most 65536"),
        ({"grammar": Grammar(kind="regex", text="a"), "ignore_end": True}, "ignore_end: not with a grammar"),
    ],
)
def test_a_grammar_that_is_none_is_refused(engine: GenerationEngine, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        engine.admit(GenerationRequest(id="a", prompt_ids=(5,), max_new_tokens=5, **asked))
    assert engine.running == 0


def test_each_answer_has_a_place_of_its_own_in_the_same_grammar(engine: GenerationEngine) -> None:
    grammar, ids = Grammar(kind="json_schema", text=SCHEMA), references("edge-int4")[5].ids
    alone = [each.token for each in _answer(engine, grammar=grammar)]
    said: dict[str, list[int]] = {"a": [], "b": []}
    engine.admit(GenerationRequest(id="a", prompt_ids=ids, max_new_tokens=24, grammar=grammar))
    for _ in range(3):
        for each in engine.step():
            said[each.request].append(each.token)
    engine.admit(GenerationRequest(id="b", prompt_ids=ids, max_new_tokens=24, grammar=grammar))
    while engine.running:
        for each in engine.step():
            said[each.request].append(each.token)
    assert said == {"a": alone, "b": alone}


def test_a_grammar_that_takes_seconds_to_read_is_refused(engine: GenerationEngine) -> None:
    """Everybody else's tokens wait for as long; with llguidance's own limits this one is read."""
    if not isinstance(engine, SlotEngine):
        pytest.skip("genai reads grammars by itself")
    fields = {f"p{at}": {"type": "number"} for at in range(2_200)}
    grammar = Grammar(kind="json_schema", text=json.dumps({"properties": fields}))
    with pytest.raises(InvalidInput, match="too big"):
        engine.admit(GenerationRequest(id="a", prompt_ids=(5,), max_new_tokens=5, grammar=grammar))
    assert engine.running == 0


def test_an_answer_cut_by_its_limit_says_so(engine: GenerationEngine) -> None:
    answer = _answer(engine, grammar=Grammar(kind="json_schema", text=SCHEMA), max_new_tokens=3)
    assert [each.finish for each in answer] == [None, None, "length"]


def test_verified_drafts_keep_to_the_grammar(engine: GenerationEngine) -> None:
    if not isinstance(engine, SlotEngine):
        pytest.skip("verifies no drafts")
    grammar = Grammar(kind="json_schema", text=SCHEMA)
    expected = _answer(engine, grammar=grammar)
    ids = references("edge-int4")[5].ids
    engine.admit(GenerationRequest(id="a", prompt_ids=ids, max_new_tokens=24, grammar=grammar))
    said = list(engine.step())
    while engine.running:
        right = [each.token for each in expected[len(said) : len(said) + 2]]
        said += engine.verify("a", [*right, 5])
    assert [each.token for each in said] == [each.token for each in expected]
