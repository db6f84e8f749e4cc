"""Both models and the examples of a recipe, loaded and found to fit each other, or an error naming what does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiler import dataset, targets
from compiler.dataset import Dataset
from compiler.recipe import Recipe
from compiler.targets import Target
from penstock.errors import CompileError
from penstock.runtime import Engine, EngineOptions, load_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Checked inputs of a compilation: both models as they came, their target, and the examples.

    Attributes:
        edge_path, cloud_path: self-contained files, which may be copies of the recipe's.
        output: name of the scored output, [-1, classes].
    """

    recipe: Recipe
    target: Target
    edge: Engine
    edge_path: Path
    cloud: Engine
    cloud_path: Path
    output: str
    data: Dataset

    def __str__(self) -> str:
        data = self.data
        return (
            f"{_listing(self.edge, 'inputs')} -> {_listing(self.edge, 'outputs')}; target {self.target.name}; rows: "
            f"{data.ranges.rows} + {data.temperature.rows} fit, {data.certify.rows} certify, {data.test.rows} test"
        )


def load(recipe: Recipe, scratch: Path) -> Loaded:
    """Read both models and the data, and check that they fit each other.

    Args:
        scratch: where copies go that have to be made.

    Raises:
        InvalidInput, CompileError, ConfigError: what does not fit, and what was expected.
    """
    from compiler.graph import files as source  # imports onnx: not before the recipe is known to be good

    target = targets.resolve(recipe.edge.target)
    if recipe.edge.precision == "int8":
        targets.integer_types(target)
    edge_path = source.self_contained(recipe.edge_onnx, scratch, field="edge.onnx")
    cloud_path = source.self_contained(recipe.cloud_onnx, scratch, field="cloud.onnx")
    edge, cloud = engine(edge_path), engine(cloud_path)
    output = _scored_output(recipe, edge)
    classes = _check_pair(recipe, edge, cloud, output)
    return Loaded(
        recipe=recipe,
        target=target,
        edge=edge,
        edge_path=edge_path,
        cloud=cloud,
        cloud_path=cloud_path,
        output=output,
        data=dataset.load(recipe, edge.inputs, classes=classes),
    )


def engine(path: Path) -> Engine:
    """One model file under onnxruntime, one thread: what a device has, and the same on every run."""
    return load_engine("onnx", path, EngineOptions(threads=1))


def _scored_output(recipe: Recipe, edge: Engine) -> str:
    """The output that is scored: the one the recipe names, else the only one."""
    names = [spec.name for spec in edge.outputs]
    if recipe.model.output in names:
        return recipe.model.output
    if not recipe.model.output and len(names) == 1:
        return names[0]
    wanted = f"no output {recipe.model.output!r}" if recipe.model.output else "several outputs and none named"
    raise CompileError(f"model.output: {wanted}; the model has {', '.join(names)}")


def _check_pair(recipe: Recipe, edge: Engine, cloud: Engine, output: str) -> int:
    """The number of classes, when edge and cloud take and give the same.

    Raises:
        CompileError: where they differ, or a shape that cannot be served.
    """
    for what in ("inputs", "outputs"):
        ours, theirs = (sorted(getattr(engine, what), key=lambda spec: spec.name) for engine in (edge, cloud))
        if ours != theirs or getattr(edge, what) != getattr(cloud, what):
            raise CompileError(
                f"edge.onnx and cloud.onnx disagree on {what}: {_listing(edge, what)} and {_listing(cloud, what)}; "
                "the cloud could not answer for the edge"
            )
    for spec in edge.inputs:
        if not spec.shape or spec.shape[0] != -1:
            raise CompileError(
                f"input {spec.name!r} has shape {list(spec.shape)}: export it with a free first dimension (the batch)"
            )
        if spec.datatype == "BYTES":
            raise CompileError(f"input {spec.name!r} holds strings; put the tokenizer in front of the model")
    (scored,) = (spec for spec in edge.outputs if spec.name == output)
    if len(scored.shape) != 2 or scored.shape[1] < 2 or not scored.datatype.startswith("FP"):
        raise CompileError(
            f"output {output!r} is {scored.datatype}{list(scored.shape)}; a cascade scores floats of shape "
            "[batch, classes] with two classes or more"
        )
    classes = scored.shape[1]
    if recipe.model.labels and len(recipe.model.labels) != classes:
        raise CompileError(f"model.labels: {len(recipe.model.labels)} names, but the model has {classes} classes")
    return classes


def _listing(engine: Engine, what: str) -> str:
    return ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in getattr(engine, what))
