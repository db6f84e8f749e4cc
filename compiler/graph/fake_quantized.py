"""A QDQ graph as steps that can be trained, and the trained values back in that graph. Pure: runs and trains nothing.

Owns what stays as onnxruntime has it: where values are rounded, zero points, axes and bounds are those of the graph, so
that training rounds where the runtime will. Trained are the weights of quantized products, their biases, every scale,
and the constants that products and sums in float read. ``compiler/runners/qat_program.py`` carries the steps out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.graph import rewrite
from compiler.graph.onnx_libraries import AttributeProto, TensorProto, helper, numpy_helper, onnx
from penstock.errors import CompileError
from penstock.wire.tensors import Array

OPERATORS = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Dropout", "Elu",
        "Equal", "Erf", "Exp", "Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "MatMul",
        "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
        "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What the runner has a row for; the same names as its table."""

FAKE_QUANTIZE = "fake_quantize"
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_FLOAT_READERS = _PRODUCTS | {"Add"}
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_BOUNDS = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}
_STORED = "_quantized"  # what onnxruntime's quantizer puts behind the name of a weight
_INT32 = np.iinfo(np.int32)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operator: its name in ONNX, or ``fake_quantize`` for a rounding of its only input."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A quantized weight.

    Attributes:
        tensor: its name where a product reads it.
        scale: the initializer with its scale.
        axis: of the channels that have a scale each; None for one scale.
        highest: largest integer; the smallest is its negative.
    """

    tensor: str
    scale: str
    axis: int | None
    highest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """A bias in 32 bits, whose scale is the product of two others: ``scales``, of the input and of the weight."""

    tensor: str
    scale: str
    scales: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A QDQ graph for training.

    Attributes:
        inputs: of the graph, in its order.
        constants: tensors that stay, by name.
        weights: by the initializer that stores the integers.
        biases: likewise.
        values: what is trained: scales, float weights and biases, and constants in float, each by its initializer.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    constants: Mapping[str, Array]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Bias]
    values: Mapping[str, Floats]

    def as_job(self) -> dict[str, Any]:
        """Return everything but the arrays, as plain JSON."""
        return {
            "inputs": list(self.inputs),
            "steps": [asdict(step) for step in self.steps],
            "weights": {name: asdict(weight) for name, weight in self.weights.items()},
            "biases": {name: asdict(bias) for name, bias in self.biases.items()},
            "scales": sorted(self.scales),
        }

    @property
    def scales(self) -> set[str]:
        """Return the initializers that hold scales which are trained."""
        rounded = {step.attributes["scale"] for step in self.steps if step.op == FAKE_QUANTIZE}
        return rounded | {weight.scale for weight in self.weights.values()}


def program(quantized: onnx.ModelProto, exact: onnx.ModelProto, *, highest: int) -> Program:
    """Read a QDQ graph.

    Args:
        exact: the float graph that it was made of: weights begin as they were before they were rounded.
        highest: the largest integer that a weight may become.

    Raises:
        CompileError: which operator cannot be trained through.
    """
    return _Reader(quantized, exact, highest).read()


class _Reader:
    """Reads one graph; holds what has been found so far."""

    def __init__(self, quantized: onnx.ModelProto, exact: onnx.ModelProto, highest: int) -> None:
        self._graph = quantized.graph
        self._tensors = {tensor.name: tensor for tensor in quantized.graph.initializer}
        self._exact = {tensor.name: tensor for tensor in exact.graph.initializer}
        self._producers = rewrite.producers(quantized.graph)
        self._highest = highest
        self._steps: list[Step] = []
        self._constants: dict[str, Array] = {}
        self._weights: dict[str, Weight] = {}
        self._biases: dict[str, Bias] = {}
        self._values: dict[str, Floats] = {}

    def read(self) -> Program:
        """Read every node in the graph's order."""
        roles = self._roles()
        for node in self._graph.node:
            if node.op_type == _DEQUANTIZE and node.input[0] in self._tensors:
                self._stored(node, roles.get(node.output[0]))
            elif node.op_type == _QUANTIZE:
                self._rounding(node)
            elif node.op_type == _DEQUANTIZE:
                self._back(node)
            else:
                self._operator(node)
        return Program(
            inputs=tuple(given.name for given in self._graph.input if given.name not in self._tensors),
            steps=tuple(self._steps),
            constants=self._constants,
            weights=self._weights,
            biases=self._biases,
            values=self._values,
        )

    def _roles(self) -> dict[str, tuple[int, onnx.NodeProto]]:
        """Find which product reads a tensor as its weight (1) or bias (2)."""
        found: dict[str, tuple[int, onnx.NodeProto]] = {}
        for node in self._graph.node:
            if node.op_type in _PRODUCTS:
                for index, name in enumerate(node.input):
                    if index > 0:
                        found[name] = (index, node)
        return found

    def _stored(self, node: onnx.NodeProto, role: tuple[int, onnx.NodeProto] | None) -> None:
        """Take an integer initializer for a weight or a bias of a product; anything else stays as it is."""
        stored, scale = node.input[0], node.input[1]
        kind = self._tensors[stored].data_type
        if role is not None and role[0] == 1 and kind == TensorProto.INT8:
            scales = self._floats(scale)
            if stored in self._weights:
                self._same(self._weights[stored].tensor, node.output[0])
                return
            axis = _axis(node, scales)
            self._weights[stored] = Weight(tensor=node.output[0], scale=scale, axis=axis, highest=self._highest)
            self._values[scale] = scales
            self._values[stored] = self._float_weight(stored, self._dequantized(node))
        elif role is not None and role[0] == 2 and kind == TensorProto.INT32:
            bias = Bias(tensor=node.output[0], scale=scale, scales=self._scales_of(role[1]))
            if stored in self._biases:
                raise CompileError(f"two products share the bias {bias.tensor!r} in integers, which has one scale")
            self._biases[stored] = bias
            self._values[stored] = self._dequantized(node)
        else:
            self._constants[node.output[0]] = self._dequantized(node)

    def _scales_of(self, product: onnx.NodeProto) -> tuple[str, str]:
        given, weight = (self._producers.get(name) for name in product.input[:2])
        if given is None or weight is None or {given.op_type, weight.op_type} != {_DEQUANTIZE}:
            raise CompileError(f"the bias of {product.name!r} is in integers, and what it is added to is not")
        return given.input[1], weight.input[1]

    def _rounding(self, node: onnx.NodeProto) -> None:
        scale, zero = node.input[1], self._tensors[node.input[2]]
        if zero.data_type not in _BOUNDS or self._floats(scale).ndim != 0:
            raise CompileError(f"{node.name!r} rounds to no single range of 8 bits")
        low, high = _BOUNDS[zero.data_type]
        self._values[scale] = self._floats(scale)
        attributes = {"scale": scale, "zero": int(numpy_helper.to_array(zero)), "low": low, "high": high}
        self._steps.append(
            Step(op=FAKE_QUANTIZE, inputs=(node.input[0],), outputs=(node.output[0],), attributes=attributes)
        )

    def _back(self, node: onnx.NodeProto) -> None:
        """Pass a rounded value on: it is a float again already."""
        rounded = self._producers.get(node.input[0])
        if rounded is None or rounded.op_type != _QUANTIZE or list(rounded.input[1:]) != list(node.input[1:]):
            raise CompileError(f"{node.name!r} reads integers by another scale than they were rounded by")
        self._same(node.input[0], node.output[0])

    def _same(self, known: str, name: str) -> None:
        self._steps.append(Step(op="Identity", inputs=(known,), outputs=(name,), attributes={}))

    def _operator(self, node: onnx.NodeProto) -> None:
        if not rewrite.is_standard(node) or node.op_type not in OPERATORS:
            raise CompileError(
                f"quantization-aware training knows no operator {node.domain + '.' if node.domain else ''}"
                f"{node.op_type} ({node.name!r}): leave distill.quantization_aware out, or make the student without it"
            )
        for index, name in enumerate(node.input):
            if name in self._tensors:
                self._constant(name, node, index)
        self._steps.append(
            Step(
                op=node.op_type,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={one.name: _plain(one, node) for one in node.attribute},
            )
        )

    def _constant(self, name: str, node: onnx.NodeProto, index: int) -> None:
        """Train what a product or a sum adds or multiplies by; a normalization of inputs, say, stays as it is."""
        tensor = self._tensors[name]
        is_trained = tensor.data_type == TensorProto.FLOAT and tensor.dims and node.op_type in _FLOAT_READERS
        if is_trained and (index > 0 or node.op_type == "Add"):
            self._values[name] = self._floats(name)
        elif name not in self._values:
            self._constants[name] = self._floats(name) if tensor.data_type in _FLOATS else numpy_helper.to_array(tensor)

    def _float_weight(self, stored: str, rounded: Floats) -> Floats:
        """Return the weight before it was rounded, if the graph that it came from has it; else what it was rounded
        to.
        """
        tensor = self._exact.get(stored.removesuffix(_STORED))
        if tensor is None or tensor.data_type != TensorProto.FLOAT or tuple(tensor.dims) != rounded.shape:
            return rounded
        return np.asarray(numpy_helper.to_array(tensor), np.float32)

    def _dequantized(self, node: onnx.NodeProto) -> Floats:
        integers, scale = numpy_helper.to_array(self._tensors[node.input[0]]), self._floats(node.input[1])
        steps = integers.astype(np.float32)
        if len(node.input) > 2 and node.input[2]:
            zero = numpy_helper.to_array(self._tensors[node.input[2]]).astype(np.float32)
            steps = (integers - along(zero, _axis(node, zero), integers.ndim)).astype(np.float32)
        return np.asarray(steps * along(scale, _axis(node, scale), integers.ndim), np.float32)

    def _floats(self, name: str) -> Floats:
        tensor = self._tensors[name]
        if tensor.data_type != TensorProto.FLOAT:
            raise CompileError(f"quantization-aware training takes floats of 32 bits, and {name!r} is of another size")
        return np.asarray(numpy_helper.to_array(tensor), np.float32)


def with_values(quantized: onnx.ModelProto, read: Program, values: Mapping[str, Floats]) -> onnx.ModelProto:
    """Return the QDQ graph with trained values, rounded to its integers.

    Args:
        values: as ``Program.values``; what is missing stays as it was.

    Raises:
        CompileError: a value is not finite, a scale not positive, or a bias too large for 32 bits of its scale.
    """
    model = rewrite.copied(quantized)
    known = {**read.values, **values}
    _check(read, known)
    put: dict[str, NDArray[Any]] = {name: known[name] for name in values if name not in (*read.weights, *read.biases)}
    for stored, weight in read.weights.items():
        scale = along(known[weight.scale], weight.axis, known[stored].ndim)
        integers = np.rint(known[stored] / scale)
        put[stored] = np.clip(integers, -weight.highest, weight.highest).astype(np.int8)
    for stored, bias in read.biases.items():
        scale = np.asarray(known[bias.scales[0]] * known[bias.scales[1]], np.float32)
        integers = np.rint(known[stored].astype(np.float64) / scale)
        if np.abs(integers).max(initial=0) > _INT32.max:
            raise CompileError(f"the trained bias {bias.tensor!r} does not fit into 32 bits of its scale")
        put[bias.scale] = np.broadcast_to(scale, _shape(model, bias.scale))
        put[stored] = integers.astype(np.int32)
    for tensor in model.graph.initializer:
        if tensor.name in put:
            value = np.ascontiguousarray(put[tensor.name], dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(numpy_helper.from_array(value.reshape(tuple(tensor.dims)), tensor.name))
    return model


def along(scale: Floats, axis: int | None, dims: int) -> Floats:
    """Return scales of channels in a shape that multiplies a tensor of ``dims`` dimensions."""
    if axis is None:
        return scale
    shape = [1] * dims
    shape[axis] = -1
    return scale.reshape(shape)


def _check(read: Program, known: Mapping[str, Floats]) -> None:
    for name, value in known.items():
        if not np.isfinite(value).all() or (name in read.scales and not (value > 0).all()):
            raise CompileError(
                f"quantization-aware training left a value that cannot be used in {name!r}: train slower"
            )


def _axis(node: onnx.NodeProto, scales: Floats) -> int | None:
    """Return the axis of several scales; None for one, which the quantizer writes with a dimension or without."""
    return None if scales.size == 1 else next((one.i for one in node.attribute if one.name == "axis"), 1)


def _shape(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name == name)


def _plain(attribute: onnx.AttributeProto, node: onnx.NodeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    match attribute.type:
        case AttributeProto.STRING:
            return value.decode()
        case AttributeProto.INT | AttributeProto.FLOAT:
            return value
        case AttributeProto.INTS | AttributeProto.FLOATS:
            return list(value)
    raise CompileError(f"quantization-aware training cannot read attribute {attribute.name!r} of {node.name!r}")
