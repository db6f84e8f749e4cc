"""``penstock compile`` for language models: one recipe, two models, an artifact that holds what it promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.cache.steps import StepCache
from compiler.pipeline import compilation, evidence_check, plan, trials
from compiler.pipeline.compilation import Compiled
from compiler.progress import Lines
from compiler.recipe import recipes
from examples.tiny_llama import data
from penstock.artifact import golden
from penstock.artifact.layout import Layout
from penstock.errors import ConfigError, GateRefused
from penstock.policy.confidence import TOKEN_SCORES
from penstock.policy.text_answers import AnswerSpec

RECIPE = """
[model]
name = "tiny-llama"
task = "generation"

[edge]
model = "edge"
targets = ["genai-cpu"]
precisions = ["fp32", "int4-weights"]
objective = "size"

[cloud]
model = "cloud"

[data]
source = "prompts.jsonl"

[generation]
texts = "texts.jsonl"
max_new_tokens = 8
stop = ["\\n"]

[quality]
max_perplexity_increase = 0.5

[certificate]
max_harm = 0.2
harm = "disagreement"
"""
QUIET = Lines(lambda line: None)


def lines(rows: list[object]) -> str:
    return "".join(json.dumps(msgspec.to_builtins(row)) + "\n" for row in rows)


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("compiled")
    for name, source in (("edge", tiny.edge), ("cloud", tiny.cloud)):
        (found / name).symlink_to(source)
    (found / "prompts.jsonl").write_text(lines(data.completions(240, 0)))
    (found / "texts.jsonl").write_text(lines([{"text": text} for text in data.examination(8000)]))
    (found / "recipe.toml").write_text(RECIPE)
    return found


def compile_in(directory: Path, text: str = RECIPE, *, out: str = "out", **options: Any) -> Compiled:
    (directory / "recipe.toml").write_text(text)
    cache = StepCache(directory / "cache")
    return compilation.compile_recipe(
        recipes.load(directory / "recipe.toml"), directory / out, cache=cache, watcher=QUIET, **options
    )


@pytest.fixture(scope="module")
def compiled(directory: Path) -> Compiled:
    return compile_in(directory, require_certificate=False)


def test_the_smaller_form_ships_within_its_perplexity_budget(compiled: Compiled) -> None:
    (target,) = compiled.evaluation.targets
    assert target.chosen == "int4"
    change = compiled.evaluation.generation["perplexity"]["edge/genai-cpu"]
    assert change["increase"]["value"] <= 0.5
    assert [line.name for line in target.candidates] == ["fp32", "int4"]
    assert all("perplexity" in line.summary for line in target.candidates)


def test_a_candidate_is_timed_in_turns_with_its_float_parent(compiled: Compiled) -> None:
    (target,) = compiled.evaluation.targets
    parent, int4 = target.candidates
    assert parent.speedup is None
    assert int4.speedup is not None
    assert 0 < int4.speedup.low <= int4.speedup.value <= int4.speedup.high
    assert target.clock_noise is not None
    assert target.clock_noise >= 1


def test_when_time_is_up_the_best_so_far_ships(directory: Path, compiled: Compiled) -> None:
    hurried = compile_in(directory, out="hurried", require_certificate=False, budget_s=1e-9).evaluation.targets[0]
    assert hurried.chosen == "fp32"
    assert [line.verdict for line in hurried.candidates if "--budget" in line.verdict] == [trials.OUT_OF_TIME]


def test_variants_hold_everything_that_their_engine_needs(compiled: Compiled) -> None:
    layout = Layout(compiled.directory)
    assert layout.verify() == []
    for variant in layout.artifact().variants:
        assert variant.spec.engine == "genai"
        assert variant.spec.target == ("any" if variant.spec.role == "edge" else "cpu")  # what devices say they are
        assert variant.spec.answer == AnswerSpec(max_new_tokens=8, stop=("\n",))  # what the promise is about
        names = {layer.annotations["org.opencontainers.image.title"] for layer in variant.files}
        assert {"genai_config.json", "model.onnx.data", "tokenizer.json"} <= names
        assert variant.golden is not None
        vectors = golden.decode(layout.blobs.read(variant.golden.digest))
        assert vectors.outputs["token_ids"].shape[0] == vectors.inputs["prompt_ids"].shape[0] >= 1


def test_the_cascade_is_certified_on_whole_answers_or_says_what_is_missing(compiled: Compiled) -> None:
    cascade = compiled.evaluation.targets[0].cascade
    assert cascade is not None
    assert cascade.score in TOKEN_SCORES
    assert (cascade.certificate is None) == bool(cascade.refusal)
    if cascade.certificate is not None:
        assert [found.problems for found in evidence_check.check(compiled.directory)] == [()]


def test_the_float_parent_is_asked_the_test_prompts_itself(compiled: Compiled) -> None:
    """Its figures were once those of the variant that ships: nobody had asked it."""
    taken = json.loads((compiled.directory / "lock.json").read_bytes())["steps"]
    on_test = compiled.evaluation.splits["test"].digest
    asked = {step["key"]["model"] for step in taken if step["step"] == "answers" and step["key"]["prompts"] == on_test}
    assert len(asked) == 3  # the variant, its float parent and the cloud


def test_a_plan_names_the_budget_of_a_language_model(directory: Path, compiled: Compiled) -> None:
    (directory / "recipe.toml").write_text(RECIPE)
    steps = dict(plan.plan(recipes.load(directory / "recipe.toml"), directory / "planned"))
    assert steps["gate"] == "perplexity at most 0.5 above the float model's"
    assert "disagreement harm <= 0.2" in steps["certify"]


def test_an_unchanged_recipe_is_only_copied(directory: Path, compiled: Compiled) -> None:
    assert compile_in(directory, require_certificate=False).was_kept


def test_too_much_perplexity_is_refused(directory: Path, compiled: Compiled) -> None:
    text = RECIPE.replace("max_perplexity_increase = 0.5", "max_perplexity_increase = 0.0")
    with pytest.raises(GateRefused, match="perplexity"):
        compile_in(directory, text.replace('"fp32", ', ""), require_certificate=False)


def test_a_host_target_is_refused_with_the_one_to_name(directory: Path) -> None:
    with pytest.raises(ConfigError, match="genai-cpu"):
        compile_in(directory, RECIPE.replace('"genai-cpu"', '"host"'))
