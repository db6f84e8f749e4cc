"""Graphs for tests of passes: the nine vision networks that onnx ships without weights, and a small encoder."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VISION = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
_LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
_OPSET = 17
_COLOURS, _CLASSES = 3, 1000
_HIDDEN, _FEWER_HIDDEN = 4096, 256
_NARROWER = {"vgg19": 4, "resnet50": 2, "zfnet512": 2}
"""The largest have fewer channels here, so that the suite takes seconds; their graphs are as they were."""


@functools.cache
def vision(name: str) -> bytes:
    """A network with weights from a seed, opset 17, as bytes of a model: x [1, 3, 224, 224] -> [1, 1000] or the like.

    onnx stores the weights as ``ConstantOfShape``; they become He-normal initializers, so that signals keep their size
    through many layers, and normalizations get means and variances near those they would have.
    """
    model = onnx.version_converter.convert_version(onnx.load(str(_LIGHT / f"light_{name}.onnx")), _OPSET)
    source = np.random.default_rng(sum(map(ord, name)))
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    roles = _roles(graph)
    nodes, weights = [], []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = _narrowed(shapes[node.input[0]].tolist(), _NARROWER.get(name, 1))
        value = _drawn(roles.get(node.output[0], ("", 0)), shape, source)
        weights.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for tensor in kept:  # of some networks the vectors are stored
        if tensor.data_type == TensorProto.FLOAT and name in _NARROWER and tensor.name in roles:
            value = _drawn(roles[tensor.name], _narrowed(list(tensor.dims), _NARROWER.get(name, 1)), source)
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    for node in nodes:
        if node.op_type == "Reshape" and name in _NARROWER:
            target = next(tensor for tensor in kept if tensor.name == node.input[1])
            flat = numpy_helper.to_array(target) // np.array([1, _NARROWER[name]])
            target.CopyFrom(numpy_helper.from_array(flat, target.name))
    del graph.initializer[:]
    graph.initializer.extend([*kept, *weights])
    inputs = [value for value in graph.input if value.name not in {tensor.name for tensor in graph.initializer}]
    del graph.input[:]
    graph.input.extend(value for value in inputs if value.name in used)
    del graph.value_info[:]
    model.ir_version = 8
    return bytes(model.SerializeToString())


def _narrowed(shape: list[int], factor: int) -> tuple[int, ...]:
    """Input and output channels divided; colours, classes and kernels stay."""

    def channels(size: int) -> int:
        return _FEWER_HIDDEN if size == _HIDDEN else size if size in (_COLOURS, _CLASSES) else size // factor

    return tuple(channels(size) if axis < 2 else size for axis, size in enumerate(shape))


def _roles(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    return {name: (node.op_type, index) for node in graph.node for index, name in enumerate(node.input)}


def _drawn(role: tuple[str, int], shape: tuple[int, ...], source: np.random.Generator) -> NDArray[np.float64]:
    kind, index = role
    if kind in ("Conv", "Gemm") and index == 1:
        deviation = math.sqrt(2 / math.prod(shape[1:]))
        # the scores: small enough for a softmax that says something
        return source.normal(0, deviation * (0.1 if shape[0] == _CLASSES else 1), shape)
    if (kind, index) in (("BatchNormalization", 1), ("Mul", 1)):
        return source.uniform(0.6, 0.8, shape)  # so that sums over residual branches stay small
    if (kind, index) == ("BatchNormalization", 4):
        return source.uniform(0.8, 1.2, shape)
    return source.normal(0, 0.05, shape)


def encoder(
    *, layers: int = 2, width: int = 32, heads: int = 4, vocabulary: int = 50, seed: int = 0
) -> onnx.ModelProto:
    """A BERT-like encoder as torch exports one: ids and mask INT64 [batch, sequence] -> logits FP32 [batch, 3].

    LayerNormalization and Gelu are spelt out, the mask is added as the lowest float32, the shape arithmetic is dynamic.
    """
    return _Encoder(width, heads, seed).build(layers, vocabulary)


class _Encoder:
    def __init__(self, width: int, heads: int, seed: int) -> None:
        self._width, self._heads = width, heads
        self._source = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(self, layers: int, vocabulary: int) -> onnx.ModelProto:
        words = self._weight("words", (vocabulary, self._width), 1.0)
        hidden = self._normalized(self._add("Gather", words, "ids"), "embedding")
        for index in range(layers):
            hidden = self._layer(hidden, f"layer{index}", self._mask())
        first = self._add("Gather", hidden, self._constant("zero", np.array(0, np.int64)), axis=1)
        pooled = self._add("Tanh", self._dense(first, "pooler", self._width, kind="Gemm"))
        logits = self._dense(pooled, "classifier", 3, kind="Gemm")
        self._nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        graph = helper.make_graph(
            self._nodes,
            "encoder",
            [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in ("ids", "mask")],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            self._constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _add(self, kind: str, *inputs: str, **attributes: object) -> str:
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))  # unnamed, as some export
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        name = f"{name}_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def _weight(self, name: str, shape: tuple[int, ...], deviation: float | None = None) -> str:
        deviation = 1 / math.sqrt(shape[0]) if deviation is None else deviation
        return self._constant(name, self._source.normal(0, deviation, shape).astype(np.float32))

    def _scalar(self, value: float) -> str:
        return self._constant("scalar", np.array(value, np.float32))

    def _dense(self, hidden: str, name: str, size: int, *, rows: int = 0, kind: str = "MatMul") -> str:
        weight = self._weight(f"{name}.weight", (rows or self._width, size))
        bias = self._weight(f"{name}.bias", (size,), 0.1)
        if kind == "Gemm":
            return self._add("Gemm", hidden, weight, bias)
        return self._add("Add", bias, self._add("MatMul", hidden, weight))

    def _normalized(self, hidden: str, name: str) -> str:
        centred = self._add("Sub", hidden, self._add("ReduceMean", hidden, axes=[-1]))
        variance = self._add("ReduceMean", self._add("Pow", centred, self._scalar(2.0)), axes=[-1])
        scaled = self._add("Div", centred, self._add("Sqrt", self._add("Add", variance, self._scalar(1e-12))))
        gain = self._constant(f"{name}.gain", self._source.uniform(0.8, 1.2, self._width).astype(np.float32))
        return self._add("Add", self._add("Mul", scaled, gain), self._weight(f"{name}.offset", (self._width,), 0.1))

    def _mask(self) -> str:
        wide = self._add("Unsqueeze", "mask", self._constant("axes", np.array([1, 2], np.int64)))
        missing = self._add("Sub", self._scalar(1.0), self._add("Cast", wide, to=TensorProto.FLOAT))
        return self._add("Mul", missing, self._scalar(float(np.finfo(np.float32).min)))

    def _split(self, hidden: str) -> str:
        """[batch, sequence, width] to [batch, heads, sequence, width / heads], by a computed shape."""
        front = self._add(
            "Slice",
            self._add("Shape", hidden),
            self._constant("start", np.array([0], np.int64)),
            self._constant("stop", np.array([2], np.int64)),
        )
        back = self._constant("heads", np.array([self._heads, self._width // self._heads], np.int64))
        split = self._add("Reshape", hidden, self._add("Concat", front, back, axis=0))
        return self._add("Transpose", split, perm=[0, 2, 1, 3])

    def _layer(self, hidden: str, name: str, mask: str) -> str:
        query, key, value = (self._split(self._dense(hidden, f"{name}.{part}", self._width)) for part in "qkv")
        scores = self._add("MatMul", query, self._add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self._add("Div", scores, self._scalar(math.sqrt(self._width // self._heads)))
        weights = self._add("Softmax", self._add("Add", scores, mask), axis=-1)
        mixed = self._add("Transpose", self._add("MatMul", weights, value), perm=[0, 2, 1, 3])
        mixed = self._add("Reshape", mixed, self._constant("merge", np.array([0, 0, self._width], np.int64)))
        hidden = self._normalized(self._add("Add", self._dense(mixed, f"{name}.out", self._width), hidden), f"{name}.a")
        wide = self._dense(hidden, f"{name}.up", 4 * self._width)
        error = self._add("Erf", self._add("Div", wide, self._scalar(math.sqrt(2))))
        active = self._add("Mul", self._add("Mul", wide, self._add("Add", error, self._scalar(1.0))), self._scalar(0.5))
        down = self._dense(active, f"{name}.down", self._width, rows=4 * self._width)
        return self._normalized(self._add("Add", down, hidden), f"{name}.b")
