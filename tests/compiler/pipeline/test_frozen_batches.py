"""Models that take one example a call: freed where that works, and else compiled, certified, packed and served so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.cache.steps import StepCache, default_root
from compiler.pipeline import compilation, recertify
from compiler.pipeline.compilation import Compiled
from compiler.pipeline.new_examples import ExampleSource
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock.artifact import golden, variant_files
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Role
from penstock.errors import ConfigError
from penstock.hosting import loading

MODELS = ("student.onnx", "teacher.onnx")
STATE = 5


def compiled(workspace: Path) -> Compiled:
    parsed = recipes.load(workspace / "recipe.toml")
    return compilation.compile_recipe(
        parsed, workspace / "out", cache=StepCache(default_root()), watcher=Lines(lambda line: None)
    )


def freeze(path: Path) -> None:
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)


def give_state(path: Path) -> None:
    """Let a model take a state [2, batch, 5] and a number beside its rows, as voice models do. Neither counts."""
    model = onnx.load(str(path))
    graph = model.graph
    graph.node[-1].output[0] = "scores"
    constants = {"none": np.array(0, np.float32), "axes": np.array([0, 2], np.int64), "shape": np.array([-1, 1])}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Mul", ["state", "rate"], ["next"], name="next"),
            helper.make_node("ReduceMean", ["next"], ["mean"], axes=[0, 2], keepdims=0, name="mean"),
            helper.make_node("Mul", ["mean", "none"], ["nothing"], name="nothing"),
            helper.make_node("Reshape", ["nothing", "shape"], ["column"], name="column"),
            helper.make_node("Add", ["scores", "column"], ["logits"], name="add"),
        ]
    )
    float32 = onnx.TensorProto.FLOAT
    graph.input.append(helper.make_tensor_value_info("state", float32, [2, "batch", STATE]))
    graph.input.append(helper.make_tensor_value_info("rate", float32, []))
    graph.output.append(helper.make_tensor_value_info("next", float32, [2, "batch", STATE]))
    onnx.save(model, path)


@pytest.fixture
def with_state(workspace: Path, edit_data: Callable[..., None], edit_recipe: Callable[[str, str], Path]) -> Path:
    """The workspace with models that have a state; examples [N, ...] of every input."""
    source = np.random.default_rng(3)
    more: dict[str, np.ndarray] = {}
    with np.load(workspace / "data.npz") as data:
        for use in ("fit", "certify", "test"):
            rows = len(data[f"x_{use}"])
            more[f"state_{use}"] = source.normal(size=(rows, 2, 1, STATE)).astype(np.float32)
            more[f"rate_{use}"] = np.full(rows, 0.5, np.float32)
    edit_data(**more)
    for name in MODELS:
        give_state(workspace / name)
    edit_recipe('version = "v1"', 'version = "v1"\noutput = "logits"')
    return workspace


def variant_of(layout: Layout, role: Role) -> tuple[int, list[tuple[int, ...]]]:
    spec = layout.artifact().variant(role).spec
    return spec.max_batch, [one.shape for one in spec.inputs]


def test_a_batch_that_is_frozen_to_one_is_freed_where_the_graph_takes_more(workspace: Path) -> None:
    for name in MODELS:
        freeze(workspace / name)
    done = compiled(workspace)
    layout = Layout(workspace / "out")
    assert variant_of(layout, "edge") == variant_of(layout, "cloud") == (64, [(-1, 4)])
    assert "its frozen batch freed" in done.evaluation.sources["edge"]
    assert len(layout.certificates()) == 1


def test_a_model_with_a_state_on_another_axis_is_compiled_certified_and_served_call_by_call(
    with_state: Path, tmp_path: Path
) -> None:
    done = compiled(with_state)
    layout = Layout(with_state / "out")
    shapes = [(-1, 4), (2, -1, STATE), ()]
    assert variant_of(layout, "edge") == variant_of(layout, "cloud") == (1, shapes)
    (target,) = done.evaluation.targets
    assert target.variant.precision == "int8"
    assert target.sensitivity == () or target.sensitivity[0].node
    ((_, certificate),) = layout.certificates()
    assert certificate.n == 600
    edge = layout.artifact().variant("edge")
    assert edge.golden is not None
    vectors = golden.decode(layout.blobs.read(edge.golden.digest))
    assert [vectors.inputs[name].shape for name in ("x", "state", "rate")] == [(1, 4), (2, 1, STATE), ()]
    loaded = loading.load(edge.spec, variant_files.verified_files(edge, layout.blobs, tmp_path / "unpacked"), threads=1)
    assert (loaded.max_batch, loaded.timing.is_batchable) == (1, False)
    loaded.engine.close()
    check_certified_again(with_state)


def check_certified_again(workspace: Path) -> None:
    source = np.random.default_rng(11)
    with np.load(workspace / "data.npz") as data:
        rows = len(data["x_certify"])
        moved = data["x_certify"] + source.normal(0, 0.01, (rows, 4)).astype(np.float32)
        new = {"x": moved, "y": data["y_certify"], "state": data["state_certify"], "rate": data["rate_certify"]}
    np.savez(workspace / "new.npz", **new)
    request = recertify.Request(source=ExampleSource(data=str(workspace / "new.npz"), labels="y"))
    (outcome,) = recertify.recertify(workspace / "out", request, say=lambda line: None)
    assert outcome.certificate is not None, outcome.refusal
    assert outcome.certificate.n == rows


def test_sizes_of_a_recipe_are_fixed(workspace: Path, edit_recipe: Callable[[str, str], Path]) -> None:
    for name in MODELS:
        model = onnx.load(str(workspace / name))
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
        onnx.save(model, workspace / name)
    recipe = edit_recipe('version = "v1"', 'version = "v1"\nshapes = { features = 4 }')
    compiled(workspace)
    assert variant_of(Layout(workspace / "out"), "cloud") == (64, [(-1, 4)])
    recipe.write_text(recipe.read_text().replace("features = 4", "feature = 4"))
    with pytest.raises(
        ConfigError, match=r"edge.model|model.shapes: no free dimension 'feature'; did you mean 'features'"
    ):
        compiled(workspace)
