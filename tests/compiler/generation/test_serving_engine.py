"""Built models asked through the engine that serves them, in the environment that everybody has."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.generation import built_model, golden_answers, serving_engine
from compiler.generation.built_model import Answers, BuiltModel
from compiler.recipe.generation_section import Generate, Sampling
from examples.tiny_llama import data
from penstock.errors import CompileError, Internal
from penstock.process import machine
from tests.language import CLOUD, EDGE, MODELS, references

MODEL = BuiltModel(directory=MODELS / EDGE)
NEAR = 1e-3  # of probability, that another order of sums may change


def prompts(count: int = 12) -> list[str]:
    return [row["prompt"] for row in data.completions(count, 0)]


def clear(answers: Answers, row: int) -> int:
    """Tokens before the first that another order of sums may choose otherwise."""
    return int(np.argmin(np.append(answers.margins[row] > NEAR, False)))


@pytest.mark.parametrize("name", [EDGE, CLOUD])
def test_many_at_once_are_answered_as_others_engines_answer_one(name: str) -> None:
    rows = references(name)[:12]
    model = BuiltModel(directory=MODELS / name)
    assert model.engine.startswith("onnxruntime ")
    assert model.engine.endswith(" in slots")
    answers = built_model.answers(model, [row["ids"] for row in rows], Generate(max_new_tokens=24))
    for at, row in enumerate(rows):
        same = min(clear(answers, at), 24)
        assert answers.prompt_ids[at].tolist() == row["ids"]
        assert answers.token_ids[at][:same].tolist() == row["new"][:same]
        np.testing.assert_allclose(np.log(answers.probabilities[at][:same]), row["logprobs"][:same], atol=5e-3)
        assert (answers.margins[at] <= answers.probabilities[at]).all()
    assert sum(clear(answers, at) for at in range(len(rows))) > 100


def test_an_answer_ends_as_it_does_where_it_is_served() -> None:
    (free,) = built_model.answers(MODEL, prompts(1), Generate(max_new_tokens=12)).texts
    stop = free[3]
    cut = built_model.answers(MODEL, prompts(1), Generate(max_new_tokens=12, stop=("never", stop)))
    assert cut.texts == (free[: free.index(stop)],)
    assert 1 <= len(cut.token_ids[0]) <= 12
    assert len(cut.token_ids[0]) == len(cut.probabilities[0])


def test_sampled_answers_repeat_with_their_seed_only() -> None:
    def drawn(seed: int) -> list[list[int]]:
        settings = Generate(max_new_tokens=8, sampling=Sampling(temperature=1.0, top_k=50, seed=seed))
        return [ids.tolist() for ids in built_model.answers(MODEL, prompts(1) * 2, settings).token_ids]

    first, second = drawn(3)
    assert drawn(3) == [first, second]
    assert first != second
    assert drawn(4)[0] == second


def test_likelihoods_are_the_same_in_windows_as_token_by_token() -> None:
    text = data.examination(40_000)[0][:500]
    found = built_model.likelihoods(MODEL, [text, "x", text[:50]], window=48, stride=20)
    with serving_engine.Asked(MODEL.directory) as asked:
        ids = asked._tokenizer.encode(text)
        assert len(ids) > 2 * 48
        for place in (1, 30, 47, 48, 60, len(ids) - 1):
            begin = next(at for at in range(0, len(ids), 20) if place < at + 48)
            alone = asked._engine.read(ids[begin : place + 1]).log_likelihood[-1]
            assert found.log_likelihood[place - 1] == pytest.approx(alone, abs=1e-3)
    assert found.tokens[: len(ids) - 1].tolist() == ids[1:]
    assert set(found.text.tolist()) == {0, 2}
    assert math.exp(-found.log_likelihood.mean()) < 1024  # it has learned something


def test_windows_are_those_of_the_toolchains_program(toolchain_program: Any) -> None:
    for length, window, stride in ((0, 4, 2), (1, 4, 2), (2, 4, 2), (9, 4, 2), (30, 7, 1), (30, 48, 20)):
        assert serving_engine.windows(length, window, stride) == toolchain_program(length, window, stride)


@pytest.fixture
def toolchain_program() -> Callable[[int, int, int], list[tuple[int, int, int]]]:
    """``windows`` of compiler/runners/genai_score.py, which cannot be imported without its toolchain."""
    source = built_model.RUNNER.read_text()
    start = source.index("def windows(")
    scope: dict[str, Any] = {}
    exec(source[start : source.index("def _of_window")], scope)
    return scope["windows"]  # type: ignore[no-any-return]


def test_golden_vectors_are_continued_by_the_serving_engine() -> None:
    found = golden_answers.vectors(MODEL, prompts(40))
    again = built_model.answers(
        MODEL, found.inputs["prompt_ids"].tolist(), Generate(max_new_tokens=found.outputs["token_ids"].shape[1])
    )
    np.testing.assert_array_equal(np.stack(again.token_ids), found.outputs["token_ids"])


def test_a_model_that_wants_more_memory_than_is_free_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A context so long that its keys and values take two gigabytes, where a quarter of one is free."""
    shutil.copytree(MODELS / EDGE, tmp_path / "long")
    config = tmp_path / "long" / "genai_config.json"
    told = json.loads(config.read_text())
    told["model"]["context_length"] = 2**20
    config.write_text(json.dumps(told))
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 2**28)
    with pytest.raises(CompileError, match="2.1 GB, more than this machine gives"):
        built_model.speed(BuiltModel(directory=tmp_path / "long"), prompt_tokens=8, new_tokens=4, rounds=1)


def test_speed_is_that_of_a_process_of_its_own() -> None:
    found = built_model.speed(MODEL, prompt_tokens=1000, new_tokens=16, rounds=3)
    assert (found.prompt_tokens, found.new_tokens) == (256, 16)
    assert found.engine == MODEL.engine
    assert found.first_token_ms > 0
    assert found.tokens_per_s > 0
    assert 0 <= found.load_bytes < found.peak_bytes


def test_two_models_are_timed_round_by_round() -> None:
    ours, theirs = built_model.in_turns(MODEL, BuiltModel(directory=MODELS / "edge-fp32"))
    assert len(ours) == len(theirs) >= 8
    assert (np.concatenate([ours, theirs]) > 0).all()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "prompt 1 has no tokens"), ("x = 1\n" * 300, "prompt 1 has .* and with 16 .* context of 512; shorten it")],
)
def test_prompts_that_cannot_be_asked_are_named(prompt: str, said: str) -> None:
    with pytest.raises(CompileError, match=said):
        built_model.answers(MODEL, ["x = ", prompt], Generate(max_new_tokens=16))


def test_a_model_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(CompileError, match="edge-int4: asking it did not finish within 0 s"):
        built_model.answers(replace(MODEL, timeout_s=0.0), prompts(2), Generate())


def test_a_damaged_model_ends_in_words_and_not_in_a_crash(tmp_path: Path) -> None:
    shutil.copytree(MODELS / EDGE, tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"no model")
    with pytest.raises((CompileError, Internal), match="model"):
        built_model.speed(BuiltModel(directory=tmp_path / "model"))


def configured(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> BuiltModel:
    shutil.copytree(MODELS / EDGE, tmp_path / "model")
    config = json.loads((MODELS / EDGE / "genai_config.json").read_text())
    change(config["model"])
    (tmp_path / "model" / "genai_config.json").write_text(json.dumps(config))
    return BuiltModel(directory=tmp_path / "model", toolchain="transformers5")


def test_what_only_onnxruntime_genai_runs_is_asked_in_a_toolchain_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = configured(tmp_path, lambda found: found.update(type="phi3"))
    monkeypatch.setattr(serving_engine, "find_spec", lambda name: None if name == "onnxruntime_genai" else object())
    assert (model.is_served, model.engine) == (False, "toolchain transformers5")


def test_what_was_built_for_another_provider_is_asked_in_a_toolchain(tmp_path: Path) -> None:
    def cuda(found: dict[str, Any]) -> None:
        found["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]

    model = configured(tmp_path, cuda)
    assert serving_engine.provider_of(model.directory) == "cuda"
    assert not model.is_served


def test_the_toolchain_answers_the_same(toolchain: Callable[[str], str]) -> None:
    """Both engines, the same prompts as texts: equal tokens up to the first near tie, and equal words."""
    here = BuiltModel(directory=MODELS / EDGE, toolchain=toolchain("optimum"))
    settings = Generate(max_new_tokens=12, stop=("\n",))
    both: Sequence[Answers] = [
        built_model.answers(model, prompts(24), settings) for model in (here, replace(here, in_toolchain=True))
    ]
    alike = 0
    for row in range(24):
        np.testing.assert_array_equal(both[0].prompt_ids[row], both[1].prompt_ids[row])
        same = clear(both[0], row)
        np.testing.assert_array_equal(both[0].token_ids[row][:same], both[1].token_ids[row][:same])
        if same == len(both[0].token_ids[row]):
            alike += 1
            assert both[0].texts[row] == both[1].texts[row]
            np.testing.assert_allclose(both[0].probabilities[row], both[1].probabilities[row], atol=5e-3)
    assert alike >= 12
    texts = data.examination(6000)
    found = [built_model.likelihoods(model, texts) for model in (here, replace(here, in_toolchain=True))]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert found[0].log_likelihood.mean() == pytest.approx(found[1].log_likelihood.mean(), rel=2e-3)
