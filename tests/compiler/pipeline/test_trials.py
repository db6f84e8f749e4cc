"""What is tried for a student that may be fine-tuned with its rounding, and when it is left out. Nothing is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact.evaluation import Drop
from compiler.data.dataset import Dataset, Repeats, Split
from compiler.measure.quality import Judge
from compiler.pipeline import trials
from compiler.pipeline.cached_steps import Model
from compiler.pipeline.candidates import Candidate, Goal
from compiler.pipeline.judging import judge_of
from compiler.pipeline.trials import AWARE, Setting, Training
from compiler.recipe import recipes, targets
from compiler.recipe.recipes import Recipe

RECIPE = """
[model]
name = "m"
[edge]
model = "net.py:make"
distill = true
precisions = ["fp32", "int8", "int8-dynamic"]
[cloud]
model = "teacher.onnx"
[data]
source = "d.npz"
[distill]
quantization_aware = "needed"
"""


def rows(name: str) -> Split:
    return Split(name=name, inputs={"x": np.zeros((40, 2), np.float32)}, labels=None)


def setting(directory: Path, text: str = RECIPE, *, target: str = "x86-64-vnni", is_trained: bool = True) -> Setting:
    (directory / "recipe.toml").write_text(text)
    recipe: Recipe = recipes.load(directory / "recipe.toml")
    (directory / "student.onnx").write_bytes(b"a small file")
    repeats = Repeats(rows=40, distinct=40, most=1, clusters=0, cluster_by="", taken_for="natural", is_guess=False)
    judge: Judge = judge_of(recipe, "logits")
    return Setting(
        goal=Goal(rung=recipe.rungs[0], target=targets.resolve(target)),
        recipe=recipe,
        source=Model(path=directory / "student.onnx", content="sha256:student"),
        judge=judge,
        data=Dataset(**{use: rows(use) for use in ("ranges", "tune", "certify", "test")}, repeats=repeats),
        smoke=False,
        training=Training(rows=rows("train"), options={"epochs": 7}) if is_trained else None,
    )


def names(found: Setting) -> list[str]:
    return [trial.name for trial in trials.trials(found)]


def test_training_comes_after_every_int8_that_is_not_trained(tmp_path: Path) -> None:
    usual = ["fp32", "int8 minmax", "int8 percentile", "int8 entropy"]
    assert names(setting(tmp_path)) == [*usual, AWARE, "int8-dynamic"]
    assert names(setting(tmp_path, is_trained=False)) == [*usual, "int8-dynamic"]


def test_it_is_one_more_look_at_the_tuning_rows(tmp_path: Path) -> None:
    with_it, without = setting(tmp_path).levels, setting(tmp_path, is_trained=False).levels
    assert with_it.listed < without.listed


@pytest.mark.parametrize(("target", "is_tried"), [("arm64", True), ("x86-64", True), ("tensorrt", False)])
def test_it_is_tried_where_its_graph_can_be_trained(tmp_path: Path, target: str, *, is_tried: bool) -> None:
    assert (AWARE in names(setting(tmp_path, target=target))) == is_tried


def test_it_begins_with_what_the_recipe_says_of_int8_and_learns_from_the_students_rows(tmp_path: Path) -> None:
    found = setting(tmp_path, RECIPE.replace("[cloud]", '[edge.passes.int8]\ncalibrator = "entropy"\n[cloud]'))
    asked = {trial.name: trial for trial in trials.trials(found)}
    assert asked[AWARE].options == {"epochs": 7, "int8": {"calibrator": "entropy"}}
    assert trials.examples_for(asked[AWARE], found).name == "train"
    assert trials.examples_for(asked["int8"], found).name == "ranges"


def int8(bound: float) -> Candidate:
    drop = Drop(value=0.0, low=0.0, high=bound, n=100, lost=0, won=0, is_counted=True, bound=bound, level=0.01)
    return Candidate(name="int8 minmax", precision="int8", drop=drop)


def test_it_is_left_out_where_int8_keeps_the_budget_unless_it_is_always_wanted(tmp_path: Path) -> None:
    found = setting(tmp_path)
    (trial,) = (one for one in trials.trials(found) if one.name == AWARE)
    left_out = trials.not_needed(trial, [int8(0.019)], found)
    assert left_out is not None
    assert left_out.refusal == 'not trained: int8 minmax keeps the budget (distill.quantization_aware = "needed")'
    assert trials.not_needed(trial, [int8(0.021)], found) is None
    assert trials.not_needed(trial, [], found) is None
    always = setting(tmp_path, RECIPE.replace('"needed"', '"always"'))
    assert trials.not_needed(trial, [int8(0.0)], always) is None
    (other,) = (one for one in trials.trials(found) if one.name == "int8 entropy")
    assert trials.not_needed(other, [int8(0.0)], replace(found)) is None
