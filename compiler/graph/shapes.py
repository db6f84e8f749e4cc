"""Shapes of tensors: as far as ONNX's inference knows them, and as they are on real inputs."""

from __future__ import annotations

from collections.abc import Mapping

from compiler.graph import probe, rewrite
from compiler.graph.onnx_libraries import onnx
from penstock.wire.tensors import Array

Shape = tuple[int | None, ...]
"""Free dimensions are None."""


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with what onnx's own inference says of intermediate tensors, and nothing that an exporter said.

    onnxruntime's symbolic inference is not used: it fails on transformers that torch.export made.
    """
    bare = rewrite.copied(model)
    del bare.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # too large for one message, or an operator it does not know: shapes are a help, not a need
        return bare


def known(model: onnx.ModelProto) -> Mapping[str, Shape]:
    """Return the shapes by tensor, of constants too; a tensor of unknown rank is missing."""
    graph = inferred(model).graph
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return found | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def observed(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of everything that nodes of the graph compute, for these inputs; what is no tensor is missing.

    Inference loses even the rank behind a reshape to a computed shape, which every exported transformer has. Only the
    shapes leave the graph, so that memory stays small.

    Raises:
        CompileError, CalibrationError: the graph cannot run, or not on these inputs.
    """
    made = [name for node in model.graph.node for name in node.output if name]
    kinds = probe.Probe(model, made).element_types()
    found = probe.measured(model, "Shape", [name for name in made if kinds.get(name)], inputs)
    return {name: tuple(int(size) for size in value) for name, value in found.items()}
