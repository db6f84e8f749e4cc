"""How much each quantized operator distorts its own output: signal to quantization noise, the most sensitive first.

Measured one operator at a time: each gets the float model's exact inputs, and its rounded output is compared with the
float one. (Comparing two whole models instead charges every operator with the errors of all before it, so that the last
layers always look worst, whichever is to blame.) Sums stream: memory depends neither on the number of examples nor on
the size of tensors kept. Decides no threshold: which operators go back to float is the gate's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.graph import files, probe
from compiler.graph.names import named
from compiler.graph.onnx_libraries import helper, onnx
from penstock.errors import CalibrationError
from penstock.wire.tensors import Array

__all__ = ["MAX_SQNR_DB", "Sensitivity", "named", "rank"]

MAX_SQNR_DB = 200.0
"""What an output without any difference gets: float32 itself has about 150 dB."""

_SHADOW = "penstock_shadow/"
_STORED_INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QAttention"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
_FLOAT_RESULTS = frozenset({"MatMul", "Gemm", "Attention"})
"""Their integer kernels give floats: where the result is rounded, it is for the next operator, and counted there."""

_MOVERS = frozenset(
    {
        "Relu", "Clip", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Slice", "Split", "Pad",
        "Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Concat", "Resize", "DepthToSpace",
    }
)  # fmt: skip
"""Operators that only move values: their rounding is a neighbour's, and alone in float they would save nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """One operator. ``name`` is its node's in the float model; ``sqnr_db``: 10 log10 of signal over noise power."""

    name: str
    operator: str
    sqnr_db: float


def rank(
    float_model: Path, quantized_model: Path, batches: Callable[[], Iterator[Mapping[str, Array]]]
) -> tuple[Sensitivity, ...]:
    """Rank the quantized operators of a model, the most sensitive first; equal ones by name.

    Args:
        float_model: the graph that was quantized.
        quantized_model: its QDQ or dynamically quantized form.
        batches: examples by input name; a few dozen rows tell operators apart.

    Raises:
        InvalidInput, CompileError: a file cannot be read or run. CalibrationError: no examples, or of another shape.
    """
    model = named(files.read(float_model, field="float model"))
    del model.graph.value_info[:]
    pairs = _shadowed(model, files.read(quantized_model, field="quantized model"))
    if not pairs:
        return ()
    outputs = [name for pair in pairs for name in pair.measured]
    opened = probe.Probe(model, outputs)
    sums: dict[str, float] = defaultdict(float)
    rows = 0
    for batch in batches():
        if not len(next(iter(batch.values()))):
            continue
        rows += len(next(iter(batch.values())))
        for name, value in opened.run(batch).items():
            sums[name] += float(np.asarray(value).item())
    if not rows:
        raise CalibrationError("sensitivity: there are no examples; give at least one row", needed=1)
    found: dict[str, Sensitivity] = {}
    for pair in pairs:
        measured = Sensitivity(name=pair.name, operator=pair.operator, sqnr_db=_db(*(sums[n] for n in pair.measured)))
        other = found.get(pair.name)
        if other is None or measured.sqnr_db < other.sqnr_db:  # a node with several outputs is as bad as its worst
            found[pair.name] = measured
    return tuple(sorted(found.values(), key=lambda item: (item.sqnr_db, item.name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A quantized operator and the scalar outputs that measure it: power of its float output, and of the difference."""

    name: str
    operator: str
    measured: tuple[str, str]


def _shadowed(model: onnx.ModelProto, quantized: onnx.ModelProto) -> list[_Pair]:
    """Add to the float graph, for each quantized operator, a copy of it that reads float tensors, and two sums."""
    floats = {name: node for node in model.graph.node for name in node.output if name}
    names = {node.name: node for node in model.graph.node}
    graph = quantized.graph
    producers = {name: node for node in graph.node for name in node.output if name}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    known = set(floats) | {value.name for value in model.graph.input}
    original = list(model.graph.node)  # shadows are appended behind
    opsets = {entry.domain: entry for entry in model.opset_import}
    for entry in quantized.opset_import:
        if entry.domain not in opsets:
            model.opset_import.append(entry)
        else:
            opsets[entry.domain].version = max(opsets[entry.domain].version, entry.version)
    shadows = _Shadows(model, producers, known, {tensor.name: tensor for tensor in graph.initializer})
    pairs = []
    for node in original:
        for output in node.output:
            if output not in producers:
                continue
            inner = shadows.between(output)
            if not any(shadows.rounds(part) for part in inner):
                continue
            owner = _owner(inner, names) or node
            if owner.op_type in _MOVERS or (owner.op_type in _WEIGHTED and not shadows.rounds_weights(inner)):
                continue
            rounded = shadows.copy(output)
            for part in _rounding(output, readers) if owner.op_type not in _FLOAT_RESULTS else ():
                rounded = shadows.append(part, rounded)
            pairs.append(_measure(model.graph, owner, output, rounded))
    return pairs


class _Shadows:
    """Copies of parts of the quantized graph inside the float one, each made once."""

    def __init__(
        self,
        model: onnx.ModelProto,
        producers: Mapping[str, onnx.NodeProto],
        known: set[str],
        constants: Mapping[str, onnx.TensorProto],
    ) -> None:
        self._graph, self._producers, self._known, self._constants = model.graph, producers, known, constants
        self._made: dict[str, str] = {}
        self._copied: set[str] = set()

    def between(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes of the quantized graph that compute ``name`` from tensors which the float graph has too."""
        nodes: list[onnx.NodeProto] = []
        waiting, seen = [name], {name}
        while waiting:
            node = self._producers.get(waiting.pop())
            if node is None:
                continue
            nodes.append(node)
            fresh = [n for n in node.input if n and n not in self._known and n not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
        return nodes

    def rounds(self, node: onnx.NodeProto) -> bool:
        """Say whether a node rounds an activation, or reads a rounded one. A constant does not count: a quantized node
        may share it.
        """
        if node.op_type == "DequantizeLinear":
            return node.input[0] not in self._constants
        return node.op_type in _ROUNDING

    def rounds_weights(self, nodes: list[onnx.NodeProto]) -> bool:
        """Say whether nodes read a rounded weight: rounded activations of a product kept in float are its neighbours'
        doing.
        """
        return any(self._is_rounded(name, node) for node in nodes for name in node.input)

    def _is_rounded(self, name: str, reader: onnx.NodeProto) -> bool:
        tensor = self._constants.get(name)
        if tensor is None or len(tensor.dims) < 2:  # a scale, a zero point or a bias
            return False
        return tensor.data_type in _STORED_INTEGERS or reader.op_type == "QuantizeLinear"

    def copy(self, name: str) -> str:
        """Copy a tensor of the quantized graph into the float graph, and return its name there."""
        if name in self._made:
            return self._made[name]
        if name in self._constants:
            return self._constant(name)
        node = onnx.NodeProto()
        node.CopyFrom(self._producers[name])
        node.name = _SHADOW + node.name
        inputs = [n if not n or n in self._known else self.copy(n) for n in node.input]
        del node.input[:]
        node.input.extend(inputs)
        for index, output in enumerate(node.output):
            if output:
                self._made[output] = node.output[index] = _SHADOW + output
        self._graph.node.append(node)
        return self._made[name]

    def append(self, part: onnx.NodeProto, source: str) -> str:
        """Append a copy of a node with one output that reads ``source`` instead of its first input; return the copy's
        output.
        """
        node = onnx.NodeProto()
        node.CopyFrom(part)
        node.name = node.output[0] = f"{_SHADOW}of/{source}/{part.op_type}"
        node.input[0] = source
        for index, name in enumerate(node.input[1:], start=1):
            node.input[index] = self.copy(name) if name else ""
        self._graph.node.append(node)
        return str(node.output[0])

    def _constant(self, name: str) -> str:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._constants[name])
        tensor.name = self._made[name] = _SHADOW + name
        self._graph.initializer.append(tensor)
        return str(tensor.name)


def _owner(inner: list[onnx.NodeProto], names: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """Return the float node that a quantized part stands for: quantizers keep its name, even where they drop a ReLU."""
    found = [names[part.name] for part in inner if part.name in names]
    return next((node for node in found if node.op_type not in _MOVERS), found[0] if found else None)


def _rounding(name: str, readers: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Return the pair that rounds ``name``, if there is one: where a ReLU was dropped, rounding is what clips."""
    for quantize in readers.get(name, ()):
        if quantize.op_type == "QuantizeLinear":
            for reader in readers.get(quantize.output[0], ()):
                if reader.op_type == "DequantizeLinear":
                    return [quantize, reader]
    return []


def _measure(graph: onnx.GraphProto, owner: onnx.NodeProto, output: str, rounded: str) -> _Pair:
    prefix = f"{_SHADOW}sums/{output}"
    signal, noise, difference = f"{prefix}/signal", f"{prefix}/noise", f"{prefix}/difference"
    graph.node.extend(
        [
            helper.make_node("Sub", [output, rounded], [difference]),
            helper.make_node("ReduceSumSquare", [output], [signal], keepdims=0),
            helper.make_node("ReduceSumSquare", [difference], [noise], keepdims=0),
        ]
    )
    return _Pair(name=owner.name, operator=owner.op_type, measured=(signal, noise))


def _db(signal: float, noise: float) -> float:
    if noise <= 0:
        return MAX_SQNR_DB
    if signal <= 0:
        return -MAX_SQNR_DB
    return min(MAX_SQNR_DB, 10 * math.log10(signal / noise))
