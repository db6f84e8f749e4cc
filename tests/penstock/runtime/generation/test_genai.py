"""What onnxruntime-genai does beyond the contract: models that slots do not run, absent devices."""

from __future__ import annotations

import json
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


def test_a_grammar_takes_what_is_drawn_there(engine: GenerationEngine) -> None:
    with pytest.raises(InvalidInput, match="min_p: not with a grammar"):
        _answer(engine, grammar=Grammar(kind="regex", text="a"), sampling=Sampling(min_p=0.1))


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
