"""Which operators of a float graph to quantize statically: pure, from the graph alone.

Decides by what was measured with onnxruntime 1.32 on a CPU with VNNI (one thread, median; random weights; figures are
speed against float32 and, in dB, output signal to quantization noise):

    ResNet-18, 224x224       all operators 2.7x    only products 2.65x   sums left in float 2.75x (noise)
    MobileNet-v2, 224x224    all operators 2.8x    only products 1.1x (a float Clip between two convolutions)
    6-layer encoder, 64 tok  all operators 1.75x 21 dB   only products 1.9x 25 dB
                             products with constant weights, results in float 2.04x 25.6 dB
                             the same, and sums read floats instead of their rounding (int8_static) 36 dB
                             dynamic 2.2x 37 dB (after the optimize pass, both 2.8x)

So around convolutions everything that has an integer kernel is quantized, and around attention nothing but products
with constant weights, whose results stay in float (one fused kernel, and no rounding of the residual stream).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import numpy_helper, onnx
from compiler.graph.shapes import Shape

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
DENSE = ("MatMul", "Gemm")
"""Products whose results stay in float: the integer kernels give float as fast, and the next operator rounds again."""

_FOLLOWERS = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul", "Pad",
        "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Operators with integer kernels on the CPU. Softmax has one too: it costs accuracy and saves no time."""

_ATTENTION = frozenset(
    {
        "LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
        "GroupNormalization", "InstanceNormalization", "Attention", "MultiHeadAttention", "Softmax",
    }
)  # fmt: skip
"""After these, values have a few large channels: rounding sums of them costs the most accuracy and gains no time."""

_TAILS = frozenset(
    {
        "AveragePool", "Clip", "Flatten", "GlobalAveragePool", "Identity", "LeakyRelu", "LogSoftmax", "ReduceMean",
        "Relu", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Tanh", "Transpose", "Unsqueeze",
    }
)  # fmt: skip

POOLING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
"""Averages of many values."""

_SMALL_CHANNELS = 16
"""TensorRT runs convolutions with fewer input or output channels faster in half precision than in integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Names of nodes to quantize, in the graph's order; ``products``: how many multiply by constant weights."""

    nodes: tuple[str, ...]
    products: int


def cpu(graph: onnx.GraphProto, *, keep_float: frozenset[str]) -> Plan:
    """Plan for onnxruntime's CPU kernels: products with constant weights, and around convolutions what follows them.

    ConvTranspose has no integer kernel there: it would be a float one between two conversions.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tails = _tails(graph)
    convolved, attended = set[str](), set[str]()
    nodes, products = [], 0
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        is_product = node.op_type in PRODUCTS and has_weights(node, constants)
        if node.op_type in _ATTENTION or (node.op_type == "MatMul" and not is_product):
            attended.update(node.output)
        elif node.op_type == "Conv":
            convolved.update(node.output)
        elif any(name in attended for name in inputs):
            attended.update(node.output)
        elif any(name in convolved for name in inputs):
            convolved.update(node.output)
        if node.name in keep_float:
            continue
        if is_product and node.op_type != "ConvTranspose":
            nodes.append(node.name)
            products += 1
        elif node.output[0] in convolved and node.name not in tails and _follows(node, constants):
            nodes.append(node.name)
    return Plan(nodes=tuple(nodes), products=products)


def tensorrt(graph: onnx.GraphProto, *, keep_float: frozenset[str], shapes: Mapping[str, Shape]) -> Plan:
    """Plan for TensorRT, which fuses around products by itself: products that are worth its integer kernels.

    Args:
        shapes: known ones by tensor.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        node.name
        for node in graph.node
        if node.op_type in PRODUCTS
        and has_weights(node, constants)
        and node.name not in keep_float
        and not _is_small(node, constants)
        and not _is_vector(node, constants, shapes)
    ]
    return Plan(nodes=tuple(nodes), products=len(nodes))


def in_loops(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Find products with constant weights inside loops: an encoder-decoder spends its time there."""
    around = {tensor.name: tensor for tensor in graph.initializer}
    found = []
    for loop in (node for node in graph.node if rewrite.is_standard(node, "Loop")):
        for body in (inner for outer in rewrite.subgraphs(loop) for inner in rewrite.graphs(outer)):
            constants = around | {tensor.name: tensor for tensor in body.initializer}
            found += [node for node in body.node if node.op_type in DENSE and has_weights(node, constants)]
    return found


def has_weights(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Say whether the second factor is a constant, and for a matrix product a matrix: kernels have one scale a
    column."""
    weight = constants.get(node.input[1])
    if weight is None or weight.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return False
    return node.op_type not in DENSE or (len(weight.dims) == 2 and node.input[0] not in constants)


def _tails(graph: onnx.GraphProto) -> set[str]:
    """Find nodes between the last product and a graph output that do one thing to one tensor: they stay in float.

    Eight-bit scores tie: among confident rows the 256 steps leave a handful of distinct confidences, and a threshold
    between them cannot be chosen. (And where the quantizer drops a ReLU because rounding clips as well, taking the
    rounding of an output off would take the ReLU off.)
    """
    producers = rewrite.producers(graph)
    uses = rewrite.uses(graph)
    found = set()
    for output in graph.output:
        node, extra = producers.get(output.name), 0
        while node is not None and is_tail(node) and uses[node.output[0]] <= extra:
            found.add(node.name)
            node, extra = producers.get(node.input[0]), 1
    return found


def is_tail(node: onnx.NodeProto) -> bool:
    """Say whether a node does one thing to one tensor, and may stand between the last product and a graph output."""
    return node.op_type in _TAILS


def _follows(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Say whether a node has an integer kernel and loses nothing by it.

    The quantizer replaces a Clip by the range of its result, and every range holds zero: bounds that do not would be
    lost with it.
    """
    if node.op_type != "Clip":
        return node.op_type in _FOLLOWERS
    low, high = (_bound(node, index, constants) for index in (1, 2))
    return low <= 0 <= high


def _bound(node: onnx.NodeProto, index: int, constants: Mapping[str, onnx.TensorProto]) -> float:
    """Return a bound of a Clip; NaN and infinity for one that is computed or absent (no comparison with NaN holds)."""
    name = node.input[index] if index < len(node.input) else ""
    if not name:
        return -math.inf if index == 1 else math.inf
    return float(numpy_helper.to_array(constants[name]).item()) if name in constants else math.nan


def _is_small(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type not in ("Conv", "ConvTranspose"):
        return False
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    dims = constants[node.input[1]].dims
    return bool(min(dims[0], dims[1] * groups) < _SMALL_CHANNELS)


def _is_vector(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, Shape]) -> bool:
    """Say whether this is a matrix times a vector, which reads each weight once: memory limits it, and conversions come
    on top.
    """
    if node.op_type not in DENSE:
        return False
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    columns = constants[node.input[1]].dims[0 if transposed else 1]
    rows = shapes.get(node.input[0], ())[:-1]
    return columns == 1 or (bool(rows) and all(size == 1 for size in rows))
