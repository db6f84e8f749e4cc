"""A small compilation that is quick and real: three Gaussian blobs, a sloppy student and a nearly perfect teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from tests.factories import onnx_model

CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
COPIES = 64  # of every hidden unit: large enough for int8 to be the smaller file
RECIPE = """
[model]
name = "blobs"
version = "v1"

[edge]
model = "student.onnx"
targets = ["host"]
precisions = ["int8"]
objective = "size"

[cloud]
model = "teacher.onnx"

[data]
source = "data.npz"

[quality]
max_accuracy_drop = 0.1

[certificate]
max_harm = 0.02

[preprocessing]
scale = 1
"""


def linear(weight: NDArray[np.float32], bias: NDArray[np.float32], **names: str) -> onnx.ModelProto:
    """x FP32 [-1, 4] -> logits FP32 [-1, 3] by two Gemms with ReLU between, the second the identity of positives."""
    x, logits = names.get("x", "x"), names.get("logits", "logits")
    both = np.tile(np.concatenate([weight, -weight], axis=1), COPIES)
    back = np.tile(np.concatenate([np.eye(3), -np.eye(3)]), (COPIES, 1)).astype(np.float32) / COPIES
    wide = np.tile(np.concatenate([bias, -bias]), COPIES)
    constants = {"w0": both, "b0": wide, "w1": back, "b1": np.zeros(3, np.float32)}
    nodes = [
        helper.make_node("Gemm", [x, "w0", "b0"], ["z"], name="first"),
        helper.make_node("Relu", ["z"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "w1", "b1"], [logits], name="second"),
    ]
    values = {key: value.astype(np.float32) for key, value in constants.items()}
    return onnx_model(nodes, values, inputs={x: ["batch", weight.shape[0]]}, outputs={logits: ["batch", 3]})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The step cache of commands and of compilations here: never the user's own."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PENSTOCK_CACHE", str(root))
    return root / "compile"


@pytest.fixture(scope="session")
def steps_of_the_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step cache after :func:`workspace` was compiled as it is."""
    directory = tmp_path_factory.mktemp("compiled")
    fill(directory)
    steps = StepCache(directory / "compile")
    compilation.compile_recipe(
        recipes.load(directory / "recipe.toml"), directory / "out", cache=steps, watcher=Lines(lambda line: None)
    )
    return directory / "compile"


@pytest.fixture
def warm(cache: Path, steps_of_the_workspace: Path) -> None:
    """The cache of a user who has compiled the workspace before: only what a test changes is compiled again."""
    shutil.copytree(steps_of_the_workspace, cache)


@pytest.fixture
def make_model() -> Callable[..., onnx.ModelProto]:
    return linear


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A directory with recipe.toml, student.onnx, teacher.onnx and data.npz that compile."""
    fill(tmp_path)
    return tmp_path


def fill(directory: Path) -> None:
    source = np.random.default_rng(7)
    onnx.save(linear(CENTRES.T * 2, np.zeros(3, np.float32)), directory / "teacher.onnx")
    sloppy = CENTRES.T * 2 + source.normal(0, 0.9, (4, 3)).astype(np.float32)
    onnx.save(linear(sloppy, np.zeros(3, np.float32)), directory / "student.onnx")
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, rows in {"fit": 200, "certify": 600, "test": 300}.items():
        labels = source.integers(0, 3, rows)
        arrays[f"x_{split}"] = (CENTRES[labels] + source.normal(0, 0.7, (rows, 4))).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(directory / "data.npz", **arrays)
    (directory / "recipe.toml").write_text(RECIPE)


@pytest.fixture
def edit_recipe(workspace: Path) -> Callable[[str, str], Path]:
    """Replace text in the recipe; returns its path."""

    def edit(old: str, new: str) -> Path:
        path = workspace / "recipe.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return path

    return edit


@pytest.fixture
def edit_data(workspace: Path) -> Callable[..., None]:
    """Replace arrays of data.npz; None removes one."""

    def edit(**changes: NDArray[np.generic] | None) -> None:
        with np.load(workspace / "data.npz") as file:
            arrays = {name: file[name] for name in file.files}
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        np.savez(workspace / "data.npz", **arrays)

    return edit
