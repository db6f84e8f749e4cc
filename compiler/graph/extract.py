"""Cutting a graph at given positions: one model a stage, with the constants it uses, and what flows between them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from compiler.graph import rewrite, shapes
from compiler.graph.onnx_libraries import helper, onnx
from compiler.graph.stages import Work, alive
from penstock.errors import CompileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage's model. ``inputs`` come from the caller or from earlier stages."""

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def work_of(
    model: onnx.ModelProto, seen: Mapping[str, tuple[int, ...]], types: Mapping[str, int], forbidden: frozenset[int]
) -> Work:
    """Return what the nodes of a graph need.

    Args:
        seen: shapes of the graph's inputs and of what nodes make, on typical inputs.
        types: their element types.
    """
    graph = model.graph
    constants = rewrite.constants(graph)
    reads = [frozenset(rewrite.reads(node)) for node in graph.node]
    sizes = {name: size_bytes(shape, types[name]) for name, shape in seen.items() if types.get(name)}
    return Work(
        reads=[names - constants.keys() for names in reads],
        makes=[frozenset(name for name in node.output if name) for node in graph.node],
        weights=[names & constants.keys() for names in reads],
        given=frozenset(value.name for value in graph.input),
        wanted=frozenset(value.name for value in graph.output) - constants.keys(),
        tensor_bytes=sizes,
        weight_bytes={name: tensor.ByteSize() for name, tensor in constants.items()},
        forbidden=forbidden,
    )


def size_bytes(shape: tuple[int, ...], kind: int) -> int:
    """Return the bytes of a tensor of an ONNX element type."""
    return math.prod(shape) * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


def uncuttable(model: onnx.ModelProto, plain: Collection[str]) -> set[int]:
    """Return positions at which something else than a tensor (a sequence, an optional) would cross; ``plain``: the
    tensors.
    """
    made = {name for node in model.graph.node for name in node.output if name}
    strange = made - set(plain)
    if not strange:
        return set()
    work = work_of(model, {}, {}, frozenset())
    return {place for place, names in enumerate(alive(work)) if names & strange}


def stages(model: onnx.ModelProto, bounds: Sequence[int], values: Mapping[str, onnx.ValueInfoProto]) -> list[Stage]:
    """Make one model for each run of nodes between bounds.

    Args:
        values: of every tensor that a cut may cross (:func:`crossing_values`).

    Raises:
        CompileError: an output of the graph is one of its inputs or constants, which no stage makes.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    idle = [value.name for value in graph.output if value.name not in made]
    if idle:
        raise CompileError(f"shard: output {idle[0]!r} is an input or a constant of the graph; no stage would make it")
    later = {value.name for value in graph.output}
    found = []
    for start, stop in reversed(list(pairwise(bounds))):
        found.append(_stage(model, slice(start, stop), later, values))
        later |= set(found[-1].inputs)
    return found[::-1]


def crossing_values(
    model: onnx.ModelProto, seen: Mapping[str, tuple[int, ...]], types: Mapping[str, int]
) -> dict[str, onnx.ValueInfoProto]:
    """Declare tensors where a stage begins or ends: as inference knows them, else by the rank that they have."""
    found = {
        name: helper.make_tensor_value_info(name, types[name], [None] * len(shape))
        for name, shape in seen.items()
        if types.get(name)
    }
    graph = shapes.inferred(model).graph
    for value in graph.value_info:
        if value.type.tensor_type.elem_type and value.type.tensor_type.HasField("shape"):
            found[value.name] = value
    return found | {value.name: value for value in (*graph.input, *graph.output)}


def _stage(
    model: onnx.ModelProto,
    where: slice,
    later: set[str],
    values: Mapping[str, onnx.ValueInfoProto],
) -> Stage:
    graph = model.graph
    nodes = graph.node[where]
    constants = rewrite.constants(graph)
    read = [name for node in nodes for name in rewrite.reads(node)]
    made = [name for node in nodes for name in node.output if name]
    used = {name for name in read if name in constants}
    inputs = [name for name in dict.fromkeys(read) if name not in set(made) and name not in constants]
    outputs = [name for name in made if name in later]
    part = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name in ("ir_version", "producer_name"):
            setattr(part, descriptor.name, value)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = graph.name or "stage"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
    part.graph.input.extend(values[name] for name in inputs)
    part.graph.output.extend(values[name] for name in outputs)
    rewrite.drop_unused_domains(part)
    return Stage(model=part, inputs=tuple(inputs), outputs=tuple(outputs))
