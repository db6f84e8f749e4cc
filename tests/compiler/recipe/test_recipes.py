"""A recipe is checked before anything is loaded, and every mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compiler.data import DataSection
from compiler.pipeline import compilation
from compiler.recipe import recipes
from penstock.errors import ConfigError


def test_paths_are_relative_to_the_recipe(workspace: Path) -> None:
    loaded = recipes.load(workspace / "recipe.toml")
    assert loaded.base == workspace
    assert [(rung.role, rung.section.model) for rung in loaded.rungs] == [("edge", "student.onnx")]
    assert loaded.data.source == "data.npz"
    assert loaded.reference == "blobs:v1"
    assert loaded.preprocessing == {"scale": 1}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('targets = ["host"]', 'tagets = ["host"]', r"'edge.tagets'; did you mean 'targets'"),
        ("[certificate]", "[certificat]", "did you mean 'certificate'"),
        ("max_harm = 0.02", "max_harm = 2.0", "certificate.max_harm: 2.0 given, expected a share"),
        ("max_harm = 0.02", 'max_harm = "much"', "certificate.max_harm: expected `float"),
        ("max_harm = 0.02", "delta = 0.0", "certificate.delta"),
        ("max_harm = 0.02", 'score = "max_porb"', "unknown score 'max_porb'; known: auto, max_prob"),
        ("max_harm = 0.02", 'harm = "anger"', "certificate.harm"),
        ('name = "blobs"', 'name = "Blobs!"', "not a model name"),
        ('version = "v1"', 'version = "v 1"', "not a version tag"),
        ('version = "v1"', 'version = "v1"\nmax_batch = 0', "model.max_batch"),
        ('version = "v1"', 'version = "v1"\ninput_range = [1.0, 0.0]', "model.input_range"),
        ('source = "data.npz"', 'source = "data.npz"\nlabels = ""', "data.labels: none given"),
        (
            'source = "data.npz"',
            'source = "data.npz"\ntokenizer = { file = "t.json" }',
            "data.tokenizer: file 't.json' and no data.text given, expected a column of text, or labels",
        ),
        ('model = "teacher.onnx"', "", "missing required field `model`"),
        ('precisions = ["int8"]', 'precisions = ["int3"]', "edge.precisions"),
        ('targets = ["host"]', 'targets = ["host", "host"]', "edge.targets.*different targets"),
        ('targets = ["host"]', 'targets = ["arm46"]', "edge: target: unknown target 'arm46'; did you mean 'arm64'"),
        ('objective = "size"', "prune = {share = 1.5}", "edge.prune.share: 1.5 given"),
        ('objective = "size"', "distill = true", "edge.distill: a student needs a table"),
        ("[cloud]", '[[middle]]\nname = "cloud"\nmodel = "m.onnx"\n[cloud]', "middle.name: cloud"),
    ],
)
def test_mistakes_are_named(edit_recipe: Callable[[str, str], Path], old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.load(edit_recipe(old, new))


def test_labels_may_be_absent_when_harm_is_disagreement(edit_recipe: Callable[[str, str], Path]) -> None:
    edit_recipe("max_harm = 0.02", 'harm = "disagreement"')
    path = edit_recipe('source = "data.npz"', 'source = "data.npz"\nlabels = ""')
    assert recipes.load(path).data.labels == ""


def test_a_missing_recipe_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        recipes.load(tmp_path / "absent.toml")


def test_rungs_between_edge_and_cloud_are_named(edit_recipe: Callable[[str, str], Path]) -> None:
    path = edit_recipe("[cloud]", '[[middle]]\nname = "gateway"\nmodel = "student.onnx"\n\n[cloud]')
    assert [rung.role for rung in recipes.load(path).rungs] == ["edge", "gateway"]


@pytest.mark.parametrize(
    ("model", "name"),
    [("Digits v2.onnx", "digits-v2"), ("dir/bert_base/", "bert-base"), ("pkg.nets:make", "nets"), ("!.onnx", "model")],
)
def test_a_model_without_a_recipe_is_named_after_its_file(model: str, name: str, tmp_path: Path) -> None:
    made = recipes.of_model(model, DataSection(source="d.npz"), base=tmp_path)
    assert made.reference == f"{name}:v1"
    assert made.certificate.harm == "labels"


def test_flags_are_checked_as_a_recipe_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: edge.precisions.0.: invalid enum value 'int3'"):
        recipes.of_model("m.onnx", DataSection(source="d.npz"), base=tmp_path, precisions=("int3",))


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("passes.int9 = {}", "edge: passes: unknown pass 'int9'; did you mean 'int8'"),
        ("passes.shard = {}", "edge: passes: shard has no options here; stages are cut by 'penstock compile shard'"),
        ("passes.int8.percentil = 99.9", "edge: .*percentile"),
    ],
)
def test_passes_are_checked_before_the_first_step(
    edit_recipe: Callable[[str, str], Path], passes: str, message: str
) -> None:
    recipe = recipes.load(edit_recipe('objective = "size"', passes))
    with pytest.raises(ConfigError, match=message):
        compilation.check_passes(recipe)
