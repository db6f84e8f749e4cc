"""Models that leave sizes open, as detectors do: what the compiler makes up has the sizes of the examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact import golden
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Role

EditData = Callable[..., None]


def open_up(path: Path, *, has_logarithm: bool = False) -> None:
    """Let a model of the workspace take pictures [n, -1, w] of any size, though it works for 2 x 2 only, and give a
    further output of open size.

    Args:
        has_logarithm: the further output is no number for noise between 0 and 1, and one for the examples.
    """
    model = onnx.load(str(path))
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["flat" if name == "x" else name for name in node.input]
    constants = {"rows_of_four": np.array([0, 4], np.int64), "two": np.array(2, np.float32)}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.insert(0, helper.make_node("Reshape", ["x", "rows_of_four"], ["flat"], name="flatten"))
    graph.node.append(helper.make_node("ReduceSumSquare", ["flat"], ["length"], axes=[1], name="length"))
    graph.node.append(helper.make_node("Sub", ["length", "two"], ["longer"], name="subtract"))
    graph.node.append(helper.make_node("Log" if has_logarithm else "Abs", ["longer"], ["features"], name="further"))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", -1, "w"]))
    graph.output.append(helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", "k"]))
    onnx.save(model, path)


@pytest.fixture
def pictures(workspace: Path, edit_data: EditData, request: pytest.FixtureRequest) -> Path:
    """The workspace with pictures instead of vectors, both of its models open; a parameter goes to ``open_up``."""
    with np.load(workspace / "data.npz") as data:
        edit_data(**{name: data[name].reshape(-1, 2, 2) for name in data.files if name.startswith("x_")})
    for name in ("student", "teacher"):
        open_up(workspace / f"{name}.onnx", has_logarithm=getattr(request, "param", False))
    recipe = workspace / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('version = "v1"', 'version = "v1"\noutput = "logits"'))
    return workspace


def compiled(workspace: Path) -> Layout:
    parsed = recipes.load(workspace / "recipe.toml")
    done = compilation.compile_recipe(
        parsed, workspace / "out", cache=StepCache(default_root()), watcher=Lines(lambda line: None)
    )
    return Layout(done.directory)


def golden_rows(layout: Layout, role: Role) -> np.ndarray:
    document = layout.artifact().variant(role).golden
    assert document is not None
    return golden.decode(layout.blobs.read(document.digest)).inputs["x"]


def test_sizes_that_a_model_leaves_open_are_those_of_the_examples(pictures: Path) -> None:
    """Every size of our own making (8, 16, ... for each) is one that this model refuses."""
    layout = compiled(pictures)
    assert layout.artifact().variant("edge").spec.precision == "int8"
    assert len(layout.certificates()) == 1
    cloud, edge = golden_rows(layout, "cloud"), golden_rows(layout, "edge")
    assert cloud.shape == edge.shape == (16, 2, 2)
    with np.load(pictures / "data.npz") as data:
        assert not any((row == cloud[0]).all() for row in data["x_fit"]), "the cloud's digest depends on the examples"


@pytest.mark.parametrize("pictures", [True], indirect=True)
def test_a_model_that_takes_no_noise_of_that_size_is_asked_with_examples(pictures: Path) -> None:
    layout = compiled(pictures)
    with np.load(pictures / "data.npz") as data:
        assert any((row == golden_rows(layout, "cloud")[0]).all() for row in data["x_fit"])
