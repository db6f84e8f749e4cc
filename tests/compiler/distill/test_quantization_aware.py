"""A student that is fine-tuned with its rounding, from the recipe to the report; the student itself stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.artifact.evaluation import CandidateFigures
from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.pipeline.trials import AWARE
from compiler.progress import Lines
from compiler.recipe import recipes
from tests.compiler.distill.conftest import Digits

NETS = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x.reshape(-1, 1, 8, 8) / 16)

def make():
    return Net(nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish(), nn.Flatten(), nn.Linear(96, 10))
"""
RECIPE = """
[model]
name = "digits"
[edge]
model = "nets.py:make"
distill = true
precisions = ["fp32", "int8"]
passes.int8.calibrator = "minmax"
[cloud]
model = "teacher.onnx"
[data]
source = "data.npz"
labels = "y"
[distill]
split = "train"
epochs = 3
threads = 1
quantization_aware = "always"
quantization_epochs = 2
[quality]
max_accuracy_drop = 0.5
restore_operators = false
"""


def test_a_trained_candidate_beside_int8_for_the_same_student(
    digits: Digits, tmp_path: Path, torch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "teacher.onnx").write_bytes(digits.teacher.read_bytes())
    (tmp_path / "nets.py").write_text(NETS)
    arrays = {f"x_{name}": split.inputs["x"] for name, split in digits.splits.items()}
    arrays |= {f"y_{name}": split.labels for name, split in digits.splits.items() if split.labels is not None}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle

    lines = candidates(tmp_path, RECIPE, "first")
    assert list(lines) == ["fp32", "int8", AWARE]
    trained = lines[AWARE]
    assert trained.precision == "int8"
    assert "2 epochs" in trained.summary
    assert trained.coverage is not None
    assert trained.coverage.integer_weight_bytes == lines["int8"].coverage.integer_weight_bytes  # type: ignore[union-attr]
    assert trained.drop is not None
    report = (tmp_path / "first" / "report.html").read_text()
    assert AWARE in report

    heard: list[str] = []
    lines = candidates(tmp_path, RECIPE.replace('"always"', '"needed"'), "second", heard)
    assert lines[AWARE].verdict.startswith("not trained: int8 keeps the budget")
    assert any("student" in line and "kept" in line for line in heard), heard


def candidates(directory: Path, text: str, out: str, heard: list[str] | None = None) -> dict[str, CandidateFigures]:
    (directory / "recipe.toml").write_text(text)
    said: list[str] = [] if heard is None else heard
    done = compilation.compile_recipe(
        recipes.load(directory / "recipe.toml"),
        directory / out,
        cache=StepCache(directory / "cache"),
        watcher=Lines(said.append),
        require_certificate=False,
    )
    return {line.name: line for line in done.evaluation.targets[0].candidates}
