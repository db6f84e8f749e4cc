"""What a graph takes, made wider or narrower before anything else is done with it: sizes fixed, a frozen batch freed.

Owns that nothing else changes: a graph whose batch was freed gives the answers that it gave row by row, on inputs of
our making, or it stays as it was. Whether rows are independent on real rows is asked again of every candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from compiler.graph import equivalence, rewrite
from compiler.graph.onnx_libraries import numpy_helper, onnx
from compiler.recipe.shapes_section import Buckets, Dimension, Shapes
from penstock.errors import CompileError, ConfigError
from penstock.process.config import nearest
from penstock.wire.tensors import Array

BATCH = "batch"
_ROWS = 3
_TOLERANCE = 1e-4


def with_shapes(model: onnx.ModelProto, shapes: Shapes) -> tuple[Dimension, ...]:
    """Fix sizes in place, and find the dimensions that are held to a few.

    Args:
        shapes: a size or buckets by the name of a free dimension, or a whole shape by the name of an input (-1 leaves a
            dimension as it is).

    Raises:
        ConfigError: no such dimension or input, a size that contradicts the model's own, or buckets of the batch.
    """
    found: list[Dimension] = []
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    named = {dim.dim_param for value in inputs.values() for dim in _dims(value) if dim.dim_param}
    for name, wanted in shapes.items():
        if isinstance(wanted, int | Buckets):
            if name not in named and name in inputs:
                raise ConfigError(
                    f"model.shapes: {name!r} is an input; give its shape, or {_free(named)} a size or sizes"
                )
            if name not in named:
                raise ConfigError(
                    f"model.shapes: no free dimension {name!r}; {nearest(name, sorted(named | set(inputs)))}"
                )
            if isinstance(wanted, Buckets):
                found.append(_dimension(name, wanted, inputs))
                continue
            for value in (*model.graph.input, *model.graph.output):
                for dim in _dims(value):
                    if dim.dim_param == name:
                        dim.dim_value = wanted
            continue
        if name not in inputs:
            raise ConfigError(f"model.shapes: no input {name!r}; {nearest(name, sorted(named | set(inputs)))}")
        dims = _dims(inputs[name])
        has = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
        if len(has) != len(wanted) or any(
            -1 not in pair and pair[0] != pair[1] for pair in zip(has, wanted, strict=True)
        ):
            raise ConfigError(f"model.shapes.{name}: {list(wanted)} given, but the model takes {has}")
        for dim, size in zip(dims, wanted, strict=True):
            if size != -1:
                dim.dim_value = size
    del model.graph.value_info[:]  # sizes of other inputs
    return tuple(found)


def _free(named: Collection[str]) -> str:
    return f"one of its free dimensions ({', '.join(sorted(named))})" if named else "name dimensions and give one"


def _dimension(name: str, wanted: Buckets, inputs: Mapping[str, onnx.ValueInfoProto]) -> Dimension:
    axes = [
        (of, axis) for of, value in inputs.items() for axis, dim in enumerate(_dims(value)) if dim.dim_param == name
    ]
    for of, axis in axes:
        first = _dims(inputs[of])[0]
        if axis == 0 or (first.HasField("dim_value") and first.dim_value != 1):
            raise ConfigError(
                f"model.shapes.{name}: dimension {axis} of input {of!r}; buckets are for dimensions behind the batch "
                "(of which model.max_batch decides)"
            )
    return Dimension(name=name, sizes=tuple(sorted(wanted.buckets)), axes=tuple(axes))


def frozen_batch(model: onnx.ModelProto) -> int:
    """Return the rows that all inputs are frozen to; 0 where one is free, has none, or another number of them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    firsts = {
        dims[0].dim_value if (dims := _dims(value)) and dims[0].HasField("dim_value") else 0
        for value in model.graph.input
        if value.name not in constants
    }
    return firsts.pop() if len(firsts) == 1 else 0


def with_free_batch(model: onnx.ModelProto, *, seed: int) -> onnx.ModelProto | None:
    """Return a copy that takes any number of rows, where the graph works for them; None where it does not.

    Besides the interface only shapes that the exporter wrote as constants are changed: a Reshape to [1, ...] becomes
    one to [as many as come in, ...].
    """
    frozen = frozen_batch(model)
    if not frozen:
        return None
    freed = rewrite.copied(model)
    del freed.graph.value_info[:]
    for value in (*freed.graph.input, *freed.graph.output):
        dims = _dims(value)
        if dims and dims[0].dim_value == frozen:
            dims[0].dim_param = BATCH
    _free_reshapes(freed.graph, frozen)
    try:
        return freed if _answers_alike(model, freed, seed) else None
    except CompileError:  # no inputs of our making suit the model, or the freed one cannot be run
        return None


def _free_reshapes(graph: onnx.GraphProto, frozen: int) -> None:
    known = rewrite.constants(graph)
    known |= {
        node.output[0]: entry.t
        for node in graph.node
        if node.op_type == "Constant"
        for entry in node.attribute
        if entry.name == "value"
    }
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in known and not rewrite.attribute(node, "allowzero", 0):
            shape = numpy_helper.to_array(known[node.input[1]])
            if shape.ndim == 1 and shape.size and shape[0] == frozen:
                node.input[1] = rewrite.put_constant(
                    graph, f"{node.input[1]}_free", np.array([0, *shape[1:]], np.int64)
                )


def _answers_alike(model: onnx.ModelProto, freed: onnx.ModelProto, seed: int) -> bool:
    """Ask both: the frozen one batch by batch, the freed one for all of them at once."""
    asked: list[dict[str, Array]] = []
    for at in range(_ROWS):
        asked += equivalence.examples(model, None, seed=seed + at)
    before, after = equivalence.Session(model), equivalence.Session(freed)
    parts = [before.run(feeds) for feeds in asked]
    if any(not isinstance(value, np.ndarray) or not value.ndim for part in parts for value in part.values()):
        return False
    expected = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = after.run({name: np.concatenate([feeds[name] for feeds in asked]) for name in asked[0]})
    return equivalence.difference(expected, found).relative <= _TOLERANCE


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)
