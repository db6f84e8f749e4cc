"""What of a model really runs in integers: operators as onnxruntime executes them on this CPU, and bytes of weights.

A quantized file only *asks* for integers: a kernel that does not exist for its types silently becomes a float operator
between a DequantizeLinear and a QuantizeLinear. So the graph is read after onnxruntime has fused it, not before.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from compiler.graph import files, rewrite
from compiler.graph.onnx_libraries import onnx, ort, session_options
from compiler.recipe.targets import Precision

Kind = Literal["integer", "float", "convert"]

_FLOAT_PRODUCTS = frozenset(
    {
        "Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "FusedMatMulActivation",
        "TransposeMatMul", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention",
    }
)  # fmt: skip
_INTEGER_PRODUCTS = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger",
        "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QLinearConvTranspose",
    }
)  # fmt: skip
_INTEGER_OTHERS = frozenset(
    {
        "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearConcat", "QLinearWhere",
        "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearReduceMean", "QEmbedLayerNormalization",
    }
)  # fmt: skip
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_BLOCKWISE = frozenset({"MatMulNBits", "GatherBlockQuantized"})
_ROUNDS_AT_RUN_TIME = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_STATIC_PRODUCTS = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "QLinearConvTranspose", "QAttention"})
_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_WIDE = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})
_STORED_INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8})
_STORED_FLOATS: Mapping[int, int] = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.DOUBLE: 8}
_QUANTIZED_SUFFIX = "_quant"  # what the dynamic quantizer adds to the name of an operator that it replaces
_QUANTIZED_WEIGHT = "_quantized"  # and to that of a constant, beside which it puts one _scale and one _zero_point


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutedNode:
    """One operator as it is executed. ``name`` is that of the source graph's node; "" where onnxruntime has none."""

    name: str
    operator: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Operators of the executed graph.

    Attributes:
        integer: matrix products and convolutions in integers, by operator: where the time goes.
        floating: those in floats, by operator.
        integer_others: other operators in integers (sums, pooling, ...), by operator.
        conversions: nodes that only turn floats into integers or back; each reads and writes a whole tensor.
        nodes: all of the above, in the order of execution.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    integer_others: Mapping[str, int]
    conversions: int
    nodes: tuple[ExecutedNode, ...]

    def __str__(self) -> str:
        integer, total = sum(self.integer.values()), sum(self.integer.values()) + sum(self.floating.values())
        left = f" ({', '.join(self.floating)} in float)" if self.floating else ""
        return f"{integer} of {total} products in integers{left}, {self.conversions} conversions left"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Bytes of a graph's constants: stored as (or, for TensorRT, rounded to) 8-bit integers, and left in float."""

    integer: int
    floating: int


def executed(path: Path) -> Coverage:
    """Return what onnxruntime executes for a model file, on the CPU of this machine.

    Raises:
        CompileError: onnxruntime cannot run it.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-coverage-") as directory:
        # the last level only changes memory layouts, and cannot be written for another machine
        options = session_options(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
        options.optimized_model_filepath = str(Path(directory) / "executed.onnx")
        files.check_runnable(path, field="model")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    nodes = tuple(
        ExecutedNode(name=node.name.removesuffix(_QUANTIZED_SUFFIX), operator=node.op_type, kind=kind)
        for node in graph.node
        if (kind := _kind(node)) is not None
    )
    return Coverage(
        integer=_counted(node.operator for node in nodes if node.operator in _INTEGER_PRODUCTS),
        floating=_counted(node.operator for node in nodes if node.kind == "float"),
        integer_others=_counted(node.operator for node in nodes if node.operator in _INTEGER_OTHERS),
        conversions=sum(node.kind == "convert" for node in nodes),
        nodes=nodes,
    )


def weight_bytes(path: Path) -> WeightBytes:
    """Return the bytes of a file's constants with at least one dimension, without scales and zero points.

    A float constant that goes through a QuantizeLinear of its own counts as integer: that is how TensorRT takes it.
    """
    return weight_bytes_of(onnx.load(str(path)).graph)


def weight_bytes_of(graph: onnx.GraphProto) -> WeightBytes:
    """Return :func:`weight_bytes` of a graph in memory."""
    converts = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    parameters = {name for node in converts for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.name.endswith(_QUANTIZED_WEIGHT):
            base = tensor.name.removesuffix(_QUANTIZED_WEIGHT)
            parameters |= {f"{base}_scale", f"{base}_zero_point"}
    rounded = {node.input[0] for node in converts if node.op_type == "QuantizeLinear"}
    integer = floating = 0
    for tensor in graph.initializer:
        if tensor.name in parameters or not tensor.dims:
            continue
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if tensor.data_type in _STORED_INTEGERS or tensor.name in rounded:
            integer += count
        elif tensor.data_type in _STORED_FLOATS:
            floating += _STORED_FLOATS[tensor.data_type] * count
    return WeightBytes(integer=integer, floating=floating)


def precision_of(model: onnx.ModelProto) -> Precision:
    """Say in which numbers a model computes, whoever made it: by its operators, and by what its weights are stored as.

    Integers count from one quantized product or weight on: a model that holds any has been quantized by its author.
    """
    graphs = list(rewrite.graphs(model.graph))
    nodes = [node for graph in graphs for node in graph.node]
    kinds = {node.op_type for node in nodes}
    blocks = [node for node in nodes if node.op_type in _BLOCKWISE]
    if blocks:
        return "int4-weights" if all(rewrite.attribute(node, "bits", 4) == 4 for node in blocks) else "int8-weights"
    if kinds & _ROUNDS_AT_RUN_TIME and not kinds & _STATIC_PRODUCTS:
        return "int8-dynamic"
    weights = [weight_bytes_of(graph) for graph in graphs]
    if kinds & _STATIC_PRODUCTS or ("DequantizeLinear" in kinds and any(one.integer for one in weights)):
        constants = {tensor.name for graph in graphs for tensor in graph.initializer}
        constants |= {node.output[0] for node in nodes if node.op_type == "Constant"}
        rounded = {node.output[0] for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] in constants}
        dequantized = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
        has_integer_activations = bool(kinds & _STATIC_PRODUCTS or dequantized - constants - rounded)
        return "int8" if has_integer_activations else "int8-weights"
    halves = sum(_elements(tensor) for tensor in _tensors(graphs, nodes) if tensor.data_type in _HALF)
    wide = sum(_elements(tensor) for tensor in _tensors(graphs, nodes) if tensor.data_type in _WIDE)
    return "fp16" if halves > wide else "fp32"


def _tensors(graphs: Sequence[onnx.GraphProto], nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for graph in graphs:
        yield from graph.initializer
    for node in nodes:
        if node.op_type == "Constant":
            yield from (entry.t for entry in node.attribute if entry.name == "value")


def _elements(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _kind(node: onnx.NodeProto) -> Kind | None:
    if node.op_type in _INTEGER_PRODUCTS or node.op_type in _INTEGER_OTHERS:
        return "integer"
    if node.op_type in _CONVERSIONS:
        return "convert"
    return "float" if node.op_type in _FLOAT_PRODUCTS else None


def _counted(operators: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(operators).items()))
