"""What runs inside a graph: element types of its tensors, their sizes on real inputs, and their values, chosen by name.

Owns how a graph is opened up: outputs added, nodes that no output needs left out. Every tensor is computed operator by
operator, without fusion, so that a value does not depend on which others were asked for. Decides nothing about the
values: that is ``compiler.calibration`` and ``compiler.graph.sensitivity``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import TensorProto, helper, onnx, ort, session_options
from penstock.errors import CalibrationError, CompileError
from penstock.wire.tensors import Array

_PLAIN = ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL")
_ELEMENT_TYPES: Mapping[str, int] = {f"tensor({name.lower()})": TensorProto.DataType.Value(name) for name in _PLAIN}
FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16})
"""Element types that the quantizer can turn into integers."""

_SUFFIX = "__penstock_measured"


class Probe:
    """A session over ``model`` that returns the tensors ``names`` instead of the graph's own outputs.

    Names may be inputs of the graph too; they are handed back as they came.

    Raises:
        CompileError: onnxruntime cannot run the graph.
    """

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        inputs = {value.name for value in model.graph.input}
        self._given = [name for name in names if name in inputs]
        self._computed = [name for name in names if name not in inputs]
        opened = pruned(model, self._computed)
        opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._computed)
        self._session = session(opened) if self._computed else None
        self._takes = {value.name for value in opened.graph.input}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph; return the wanted tensors by name.

        Raises:
            CalibrationError: the model refuses these inputs.
        """
        values = {name: inputs[name] for name in self._given}
        if self._session is not None:
            feed = {name: array for name, array in inputs.items() if name in self._takes}
            try:
                found = self._session.run(self._computed, feed)
            except Exception as error:  # onnxruntime's classes: Fail, InvalidArgument, RuntimeException, ...
                raise CalibrationError(
                    f"calibration: the model cannot run on these examples: {_first_line(error)}; give examples with "
                    "the shapes and types that it takes"
                ) from error
            values.update(zip(self._computed, found, strict=True))
        return values

    def element_types(self) -> dict[str, int]:
        """Return ONNX element types of the computed tensors, as onnxruntime infers them; 0 for what is no plain
        tensor."""
        if self._session is None:
            return {}
        return {output.name: _ELEMENT_TYPES.get(output.type, 0) for output in self._session.get_outputs()}


def session(model: onnx.ModelProto) -> Any:
    """Open an onnxruntime session on the CPU that executes the graph as it is written.

    Raises:
        CompileError: onnxruntime cannot run it.
    """
    # fused operators compute other intermediate values, and which ones fuse depends on the outputs
    options = session_options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see above; and ValueError for what protobuf cannot serialise
        raise CompileError(f"the graph cannot be run: {_first_line(error)}") from error


def typed(model: onnx.ModelProto) -> dict[str, int]:
    """Replace the graph's notes on intermediate tensors by what onnxruntime infers; return all element types.

    Exporters leave stale notes behind, which make the quantizer fail; without any it passes over a tensor in silence,
    and onnx's own inference knows nothing behind an operator of another domain.

    Raises:
        CompileError: as :class:`Probe`.
    """
    graph = model.graph
    del graph.value_info[:]
    produced = [name for node in graph.node for name in node.output if name]
    types = Probe(model, produced).element_types()
    for value in (*graph.input, *graph.output):
        types.setdefault(value.name, value.type.tensor_type.elem_type)
    known = {value.name for value in (*graph.input, *graph.output)}
    for name in produced:
        if types.get(name) and name not in known:
            value = onnx.ValueInfoProto(name=name)
            value.type.tensor_type.elem_type = types[name]  # and no shape: unknown, which is never wrong
            graph.value_info.append(value)
    return types


def element_counts(model: onnx.ModelProto, names: Collection[str], inputs: Mapping[str, Array]) -> dict[str, int]:
    """Count the elements that each tensor has on these inputs; only the counts leave the graph, so memory stays small.

    Raises:
        CompileError, CalibrationError: as :class:`Probe`.
    """
    return {name: int(np.asarray(count).item()) for name, count in measured(model, "Size", names, inputs).items()}


def measured(
    model: onnx.ModelProto, operator: str, names: Collection[str], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Return what ``Size`` or ``Shape`` says of each tensor; nothing else leaves the graph.

    Raises:
        CompileError, CalibrationError: as :class:`Probe`.
    """
    asked = rewrite.copied(model)
    asked.graph.node.extend(helper.make_node(operator, [name], [name + _SUFFIX]) for name in names)
    found = Probe(asked, [name + _SUFFIX for name in names]).run(inputs)
    return {name.removesuffix(_SUFFIX): value for name, value in found.items()}


def pruned(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy without outputs, and without the nodes and constants that ``names`` do not need."""
    needed, kept = set(names), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(rewrite.reads(node))
    result = onnx.ModelProto()
    rewrite.copy_fields(model, result, besides="graph")
    result.graph.name = model.graph.name
    result.graph.node.extend(reversed(kept))
    result.graph.input.extend(model.graph.input)
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    return result


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:500]
