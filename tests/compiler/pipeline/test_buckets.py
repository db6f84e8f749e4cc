"""Models that are made for several sizes: tried, timed, calibrated and proved at each, and served at no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation
from compiler.pipeline.compilation import Compiled
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact import golden, variant_files
from penstock.artifact.layout import Layout
from penstock.errors import CompileError, ConfigError, InvalidInput
from penstock.hosting import loading
from penstock.wire import tensors

EditRecipe = Callable[[str, str], Path]
BUCKETS = "shapes = { width = { buckets = [6, 2, 4] } }"


def widen(path: Path, *, most: int) -> None:
    """Let a model of the workspace take lines [n, 4, width] and read their means; beyond ``most`` it fails."""
    model = onnx.load(str(path))
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["mean" if name == "x" else name for name in node.input]
    constants = {"room": np.zeros((1, 4, most), np.float32)}
    constants |= {"zero": np.array([0]), "width": np.array([2]), "axes": np.array([2])}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    before = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape_of"),
        helper.make_node("Gather", ["shape", "width"], ["columns"], name="columns_of"),
        helper.make_node("Slice", ["room", "zero", "columns", "axes"], ["taken"], name="cut"),
        helper.make_node("Add", ["x", "taken"], ["placed"], name="place"),  # as positions are added to a sequence
        helper.make_node("ReduceMean", ["placed"], ["mean"], axes=[2], keepdims=0, name="over_width"),
    ]
    for at, node in enumerate(before):
        graph.node.insert(at, node)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, "width"]))
    onnx.save(model, path)


@pytest.fixture
def lines(workspace: Path, edit_data: Callable[..., None], edit_recipe: EditRecipe) -> Path:
    """The workspace with lines of width 4 instead of vectors, and a recipe that also wants them at 2 and 6."""
    with np.load(workspace / "data.npz") as data:
        edit_data(**{name: data[name][:, :, None].repeat(4, 2) for name in data.files if name.startswith("x_")})
    for name in ("student", "teacher"):
        widen(workspace / f"{name}.onnx", most=7)
    edit_recipe('version = "v1"', f'version = "v1"\n{BUCKETS}')
    return workspace


def compiled(workspace: Path) -> Compiled:
    parsed = recipes.load(workspace / "recipe.toml")
    return compilation.compile_recipe(
        parsed, workspace / "out", cache=StepCache(default_root()), watcher=Lines(lambda line: None)
    )


def test_a_model_is_tried_timed_and_proved_at_each_of_its_sizes_and_served_at_no_other(
    lines: Path, tmp_path: Path
) -> None:
    done = compiled(lines)
    (target,) = done.evaluation.targets
    assert target.variant.speed is not None
    assert list(target.variant.speed.at_sizes or {}) == ["width 2", "width 6"]
    layout = Layout(lines / "out")
    for role in ("edge", "cloud"):
        variant = layout.artifact().variant(role)
        (takes,) = variant.spec.inputs
        assert (takes.shape, takes.sizes) == ((-1, 4, -1), ((), (), (2, 4, 6)))
        assert variant.golden is not None
        vectors = golden.decode(layout.blobs.read(variant.golden.digest))
        assert [call.inputs["x"].shape for call in vectors.calls] == [(16, 4, 4), (4, 4, 2), (4, 4, 6)]
        files = variant_files.verified_files(variant, layout.blobs, tmp_path / role)
        loading.load(variant.spec, files, threads=1).engine.close()
        with pytest.raises(InvalidInput, match=r"x: dimension 2 is 5, but the model was made for 2, 4 or 6; resize"):
            tensors.check_inputs({"x": np.zeros((1, 4, 5), np.float32)}, variant.spec.inputs)


def test_a_size_that_a_model_cannot_take_is_refused_with_its_name(lines: Path) -> None:
    recipe = lines / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[6, 2, 4]", "[8, 4]"))
    with pytest.raises(CompileError, match=r"model: refuses width 8, which model.shapes lists: "):
        compiled(lines)


def test_examples_of_another_size_are_refused_when_they_are_read(lines: Path) -> None:
    recipe = lines / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[6, 2, 4]", "[6, 2]"))
    with pytest.raises(InvalidInput, match=r"dimension 2 is 4, but the model was made for 2 or 6"):
        compiled(lines)


@pytest.mark.parametrize("sizes", ["[4]", "[4, 4]", "[0, 4]", str(list(range(1, 14)))])
def test_buckets_that_are_none_are_refused(lines: Path, sizes: str) -> None:
    recipe = lines / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("[6, 2, 4]", sizes))
    with pytest.raises(ConfigError, match=r"model\.shapes: .*two or more buckets that differ"):
        recipes.load(recipe)
