"""What built models say, against transformers; and the facts about the engines that our runner rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.generation import built_model, compare, golden_answers
from compiler.generation.built_model import BuiltModel, Likelihoods
from compiler.passes.job import PassResult
from compiler.recipe.generation_section import Generate, Sampling
from penstock import toolchain as toolchains
from penstock.errors import CompileError, ConfigError

pytestmark = pytest.mark.timeout(900)  # training, where nothing was kept from another session

HERE = Path(__file__).parent
WINDOW, STRIDE = 48, 20


@pytest.fixture(params=[False, True], ids=["where it serves", "in a toolchain"])
def in_toolchain(request: pytest.FixtureRequest) -> bool:
    """Both ways to ask a model, where both have to hold."""
    return bool(request.param)


@pytest.fixture(scope="module")
def before(edge_fp32: BuiltModel, texts: tuple[str, ...]) -> Likelihoods:
    return built_model.likelihoods(edge_fp32, texts)


@pytest.fixture(scope="module")
def after(edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...]) -> Likelihoods:
    return built_model.likelihoods(edge_int4[0], texts)


@pytest.fixture(scope="module")
def oracle(tiny: Any, edge_fp32: BuiltModel, texts: tuple[str, ...]) -> dict[str, Any]:
    """transformers on one short text, and on the beginnings of some."""
    text = texts[0][:400]
    found = built_model.likelihoods(edge_fp32, [text], window=WINDOW, stride=STRIDE)
    prompts = [text[:60] for text in texts[:4]]
    answered = built_model.answers(edge_fp32, prompts, Generate(max_new_tokens=12))
    first = built_model.answers(edge_fp32, [text], Generate(max_new_tokens=1)).prompt_ids[0]
    job = {
        "model": tiny.edge,
        "tokens": first.tolist(),
        "window": WINDOW,
        "stride": STRIDE,
        "prompts": [ids.tolist() for ids in answered.prompt_ids],
        "new_tokens": 12,
    }
    said = toolchains.call("optimum", HERE / "oracle_runner.py", job)
    return {"found": found, "answered": answered, "ids": first, **said}


def test_sliding_windows_score_each_token_once_with_the_promised_context(oracle: dict[str, Any]) -> None:
    found = oracle["found"]
    assert len(oracle["ids"]) > 2 * WINDOW
    np.testing.assert_array_equal(found.tokens, oracle["ids"][1:])
    np.testing.assert_allclose(found.log_likelihood, oracle["log_likelihood"], atol=2e-4)


def test_greedy_answers_are_those_of_transformers(oracle: dict[str, Any]) -> None:
    answered = oracle["answered"]
    for ids, expected in zip(answered.token_ids, oracle["continued"], strict=True):
        np.testing.assert_array_equal(ids, expected[: len(ids)])
        assert len(ids) == len(expected)


def test_probabilities_are_those_of_transformers(oracle: dict[str, Any]) -> None:
    answered = oracle["answered"]
    for found, margins, expected in zip(answered.probabilities, answered.margins, oracle["probabilities"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert (margins <= found).all()


def test_int4_costs_little_perplexity_and_much_less_space(
    before: Likelihoods, after: Likelihoods, edge_fp32: BuiltModel, edge_int4: tuple[BuiltModel, PassResult], tiny: Any
) -> None:
    change = compare.change(before, after, seed=0)
    assert change.before == pytest.approx(compare.perplexity(before))
    assert change.before < 700  # of 768 tokens: it has learned something
    assert change.increase.low <= change.increase.value <= change.increase.high
    assert abs(change.increase.value) < 0.03
    assert change.agreement.value > 0.7
    weights = [directory / "model.onnx.data" for directory in (edge_int4[0].directory, edge_fp32.directory)]
    assert weights[0].stat().st_size < 0.35 * weights[1].stat().st_size


def test_the_same_question_has_the_same_answer(
    edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...]
) -> None:
    prompts = [text[:80] for text in texts[:3]]
    first, second = (built_model.answers(edge_int4[0], prompts, Generate(max_new_tokens=8)) for _ in range(2))
    assert first.texts == second.texts
    for one, other in zip(first.probabilities, second.probabilities, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sampling_repeats_with_its_seed_only(
    edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...], in_toolchain: bool
) -> None:
    model = replace(edge_int4[0], in_toolchain=in_toolchain)

    def drawn(seed: int) -> tuple[list[int], ...]:
        settings = Generate(max_new_tokens=12, sampling=Sampling(temperature=1.0, top_k=50, seed=seed))
        return tuple(ids.tolist() for ids in built_model.answers(model, [texts[0][:80]] * 2, settings).token_ids)

    first, second = drawn(3)
    assert drawn(3) == (first, second)
    assert first != second  # each answer of a set has a seed of its own
    assert drawn(9)[0] != first


def test_an_answer_ends_before_its_stop_string(
    edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...], in_toolchain: bool
) -> None:
    model = replace(edge_int4[0], in_toolchain=in_toolchain)
    free = built_model.answers(model, [texts[1][:90]], Generate(max_new_tokens=12))
    stop = free.texts[0][2]
    cut = built_model.answers(model, [texts[1][:90]], Generate(max_new_tokens=12, stop=("never", stop)))
    assert cut.texts[0] == free.texts[0][: free.texts[0].index(stop)]
    np.testing.assert_array_equal(cut.token_ids[0], free.token_ids[0][: len(cut.token_ids[0])])
    assert 1 <= len(cut.token_ids[0]) <= 12


def test_golden_vectors_are_what_the_model_continues_with(
    edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...]
) -> None:
    prompts = [text[at : at + 80] for text in texts for at in (0, 200)]
    found = golden_answers.vectors(edge_int4[0], prompts)
    ids, tokens = found.inputs[golden_answers.PROMPT_IDS], found.outputs[golden_answers.TOKEN_IDS]
    assert (ids.dtype, tokens.dtype) == (np.dtype(np.int64), np.dtype(np.int64))
    assert len(ids) == len(tokens) >= 1
    again = built_model.answers(edge_int4[0], ids.tolist(), Generate(max_new_tokens=tokens.shape[1]))
    np.testing.assert_array_equal(np.stack(again.token_ids), tokens)


def test_speed_is_measured_within_a_small_context(edge_int4: tuple[BuiltModel, PassResult], in_toolchain: bool) -> None:
    model = replace(edge_int4[0], in_toolchain=in_toolchain)
    found = built_model.speed(model, prompt_tokens=1000, new_tokens=1000, rounds=1)
    assert (found.prompt_tokens, found.new_tokens) == (128, 128)
    assert found.first_token_ms > 0
    assert found.tokens_per_s > 0
    assert 0 < found.load_bytes < found.peak_bytes
    assert found.engine == ("onnxruntime-genai 0.15.2" if in_toolchain else model.engine)


def test_two_models_are_timed_in_turns_round_by_round(
    edge_fp32: BuiltModel, edge_int4: tuple[BuiltModel, PassResult]
) -> None:
    ours, theirs = built_model.in_turns(edge_int4[0], edge_fp32)
    assert len(ours) == len(theirs) >= 8  # fewer have no interval
    assert (np.concatenate([ours, theirs]) > 0).all()


def test_prompts_that_do_not_fit_are_named(edge_int4: tuple[BuiltModel, PassResult], texts: tuple[str, ...]) -> None:
    with pytest.raises(CompileError, match="prompt 1 has [0-9]+ tokens, .* context of 256; shorten it"):
        built_model.answers(edge_int4[0], [texts[0][:20], texts[0][:5000]], Generate(max_new_tokens=8))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (257, 10), (32, 32), (32, 0)])
def test_windows_that_do_not_fit_are_refused(edge_fp32: BuiltModel, window: int, stride: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to window - 1|expected 2 to the model's context, 256"):
        built_model.likelihoods(edge_fp32, ["x = 1"], window=window, stride=stride)


def test_texts_without_two_tokens_are_refused(edge_fp32: BuiltModel) -> None:
    with pytest.raises(CompileError, match="none has two tokens"):
        built_model.likelihoods(edge_fp32, ["", "x"])


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="is not a model for onnxruntime-genai"):
        built_model.likelihoods(BuiltModel(directory=tmp_path), ["x = 1"])


@pytest.mark.parametrize(
    ("name", "engine", "decodes_nothing"),
    [("optimum", ["add_request", "step"], False), ("transformers5", ["create_request", "run"], True)],
)
def test_facts_about_the_engines(
    name: str,
    engine: list[str],
    decodes_nothing: bool,
    toolchain: Callable[[str], str],
    edge_int4: tuple[BuiltModel, PassResult],
) -> None:
    """0.18 replaced the Engine of 0.15; what we use is in both. 0.15 dies when it decodes no tokens."""
    found = toolchains.call(toolchain(name), HERE / "engine_runner.py", {"model": edge_int4[0].directory})
    assert found["engine"] == engine
    assert len(found["generator"]) == 5
    assert found["logits"] == [1, 10, 768]  # of every token of a prompt, not of the last alone
    assert found["last_is_last"]
    assert found["decodes_nothing"] is decodes_nothing


def test_both_toolchains_build_and_say_the_same(
    tiny: Any, toolchain: Callable[[str], str], after: Likelihoods, texts: tuple[str, ...]
) -> None:
    model, made = tiny.build(tiny.edge, "edge-int4-tf5", toolchain=toolchain("transformers5"), precision="int4")
    assert made.facts["versions"]["onnxruntime-genai"] == "0.18.0"
    found = built_model.likelihoods(model, texts)
    np.testing.assert_array_equal(found.tokens, after.tokens)
    assert compare.perplexity(found) == pytest.approx(compare.perplexity(after), rel=1e-3)
