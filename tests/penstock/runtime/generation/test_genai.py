"""What onnxruntime-genai does beyond the contract: grammars, models that slots do not run, absent devices."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ArtifactError, InvalidInput
from penstock.generation.values import GenerationRequest, Grammar, SampledToken, Sampling
from penstock.runtime.generation import GenerationEngine, GenerationOptions, load
from penstock.runtime.generation.decoder_file import CONFIG_FILE
from penstock.runtime.generation.slots import SlotEngine
from tests.penstock.runtime.generation.references import MODELS, references

pytest.importorskip("onnxruntime_genai", reason="the extra genai is not installed")
from penstock.runtime.generation.genai import GenaiEngine

TOKENS = json.loads((MODELS / "edge-int4" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
TEXT = {at: token.replace("\u0120", " ") for token, at in TOKENS.items()}
SCHEMA = (
    '{"type":"object","properties":{"label":{"enum":["yes","no"]}},"required":["label"],"additionalProperties":false}'
)


@pytest.fixture(scope="module")
def engine() -> GenerationEngine:
    return load("onnxruntime-genai", MODELS / "edge-int4", GenerationOptions(chunk_tokens=32))


def _answer(engine: GenerationEngine, **asked: Any) -> list[SampledToken]:
    asked = {"id": "a", "prompt_ids": references("edge-int4")[5].ids, "max_new_tokens": 24} | asked
    engine.admit(GenerationRequest(**asked))
    said: list[SampledToken] = []
    while engine.running:
        said += engine.step()
    return said


def _text(answer: list[SampledToken]) -> str:
    return "".join(TEXT[each.token] for each in answer if each.token != 1)


@pytest.mark.parametrize("at", [0, 8, 20])
def test_answers_are_those_of_the_library_alone(engine: GenerationEngine, at: int) -> None:
    row = references("edge-int4")[at]
    answer = _answer(engine, prompt_ids=row.ids, max_new_tokens=20)
    sure = min(row.sure, 20)
    assert [each.token for each in answer[:sure]] == list(row.new[:sure])


def test_a_seed_means_the_same_as_in_slots() -> None:
    both = [load(name, MODELS / "edge-fp32", GenerationOptions()) for name in ("onnxruntime", "onnxruntime-genai")]
    drawn = Sampling(temperature=0.9, top_p=0.9, frequency_penalty=0.2, seed=4)
    one, other = ([each.token for each in _answer(engine, sampling=drawn)] for engine in both)
    assert one == other


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
        ({"grammar": Grammar(kind="regex", text="a"), "sampling": Sampling(min_p=0.1)}, "min_p: not with a grammar"),
    ],
)
def test_a_grammar_that_is_none_is_refused(engine: GenerationEngine, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        engine.admit(GenerationRequest(id="a", prompt_ids=(5,), max_new_tokens=5, **asked))
    assert engine.running == 0


def test_a_model_goes_to_slots_where_they_can_run_it(tmp_path: Path) -> None:
    assert isinstance(load("genai", MODELS / "edge-int4", GenerationOptions()), SlotEngine)
    other = Path(shutil.copytree(MODELS / "edge-int4", tmp_path / "other"))
    config = json.loads((other / CONFIG_FILE).read_text(encoding="utf-8"))
    config["model"]["type"] = "phi3"
    (other / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    assert isinstance(load("genai", other, GenerationOptions()), GenaiEngine)


def test_a_device_that_is_not_there_is_refused() -> None:
    for name in ("genai", "onnxruntime-genai"):
        with pytest.raises(ArtifactError, match="no CUDA; install onnxruntime-genai-cuda"):
            load(name, MODELS / "edge-int4", GenerationOptions(provider="cuda"))
    with pytest.raises(ArtifactError, match="slots cannot run it: provider cuda"):
        load("onnxruntime", MODELS / "edge-int4", GenerationOptions(provider="cuda"))
