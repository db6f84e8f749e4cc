"""Following channels through a graph: what else must go when one output channel of a layer is taken out.

Labels go from the layer that makes them along residual additions (two become one), concatenations and flattening (a
label is repeated) into the layers that read them. Where an operator mixes channels, or is not known here, its labels
are frozen: those channels stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.graph import rewrite
from compiler.graph.channels import Axis, Channels, Labels
from compiler.graph.onnx_libraries import numpy_helper, onnx
from compiler.graph.shapes import Shape

_UNARY = frozenset(
    {
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Celu", "Selu", "Gelu", "Erf",
        "Sqrt", "Exp", "Log", "Abs", "Neg", "Softplus", "Softsign", "Mish", "Swish", "ThresholdedRelu", "Reciprocal",
        "Identity", "Cast", "Ceil", "Floor", "Round", "Sign", "Clip", "Dropout",
    }
)  # fmt: skip
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tracked:
    """The channels along one axis of a tensor, which is never negative."""

    axis: int
    labels: Labels


class _CannotFollowError(Exception):
    """A node mixes channels, or in a way that is not known here."""


def find(model: onnx.ModelProto, shapes: Mapping[str, Shape], *, fixed: frozenset[str]) -> Channels:
    """Follow the channels of a graph in which every constant has one reader (``rewrite.split_constants``).

    Args:
        shapes: of all tensors, as far as they are known.
        fixed: names of nodes whose output channels stay.
    """
    return _Finder(model.graph, shapes, fixed).find()


class _Finder:
    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Shape], fixed: frozenset[str]) -> None:
        self._graph = graph
        self._constants = rewrite.constants(graph)
        self._shapes = shapes
        self._fixed = fixed
        self._tracked: dict[str, _Tracked] = {}
        self._found = Channels()
        self._rules: Mapping[str, Callable[[onnx.NodeProto], None]] = {
            **dict.fromkeys(_UNARY, self._unary),
            **dict.fromkeys(_BROADCAST, self._broadcast),
            **dict.fromkeys(_POOLS, self._pool),
            **dict.fromkeys(_REDUCTIONS, self._reduce),
            "Conv": self._conv,
            "ConvTranspose": self._conv_transpose,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "BatchNormalization": self._normalize,
            "InstanceNormalization": self._normalize,
            "Softmax": self._softmax,
            "LogSoftmax": self._softmax,
            "Flatten": self._flatten,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Squeeze": self._squeeze,
            "Unsqueeze": self._unsqueeze,
            "Concat": self._concat,
            "Pad": self._pad,
            "Resize": self._resize,
        }

    def find(self) -> Channels:
        for node in self._graph.node:
            read = [self._tracked[name] for name in rewrite.reads(node) if name in self._tracked]
            try:
                rule = self._rules.get(node.op_type) if rewrite.is_standard(node) else None
                if rule is not None and (read or node.op_type in _LAYERS):
                    rule(node)
                elif read:
                    raise _CannotFollowError
            except _CannotFollowError:
                for tracked in read:
                    self._found.freeze(tracked.labels, f"{node.op_type} {node.name!r} cannot be followed")
        for value in self._graph.output:
            if value.name in self._tracked:
                self._found.freeze(self._tracked[value.name].labels, f"they are output {value.name!r}")
        return self._found

    # --- what rules are written with

    def _shape(self, name: str) -> Shape:
        if name not in self._shapes:
            raise _CannotFollowError
        return self._shapes[name]

    def _fed(self, node: onnx.NodeProto, axis: int) -> _Tracked | None:
        """Return the channels that a layer reads, if they are known; they must be along ``axis``."""
        tracked = self._tracked.get(node.input[0])
        if tracked is not None and tracked.axis != axis:
            raise _CannotFollowError
        return tracked

    def _input(self, node: onnx.NodeProto, *, axis: int | None = None) -> _Tracked:
        """Return the channels of the first input."""
        if node.input[0] not in self._tracked or (axis is not None and self._tracked[node.input[0]].axis != axis):
            raise _CannotFollowError
        return self._tracked[node.input[0]]

    def _constant(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that must be constant."""
        if name not in self._constants:
            raise _CannotFollowError
        return tuple(self._constants[name].dims)

    def _whole_numbers(self, node: onnx.NodeProto, attribute: str, index: int) -> list[int] | None:
        """Return a list that older opsets have as an attribute and newer ones as an input; None
        where it is left out."""
        value = rewrite.attribute(node, attribute)
        if value is not None:
            return [int(each) for each in np.atleast_1d(np.asarray(value))]
        if len(node.input) <= index or not node.input[index]:
            return None
        self._constant(node.input[index])
        return [int(each) for each in numpy_helper.to_array(self._constants[node.input[index]]).reshape(-1)]

    def _put(self, constant: str, axis: int, labels: Labels, role: str, node: onnx.NodeProto) -> None:
        self._found.axes.append(Axis(constant=constant, axis=axis, labels=labels, role=role, node=node.name))

    def _give(self, node: onnx.NodeProto, axis: int, labels: Labels) -> None:
        for name in node.output:
            if name:
                self._tracked[name] = _Tracked(axis=axis, labels=labels)

    def _layer(self, node: onnx.NodeProto, *, axis: int, reads: int, bias: tuple[str, int] | None = None) -> None:
        """Follow the channels along ``axis`` into a layer, and make new channels for its outputs.

        Args:
            reads: the axis of the weight, 0 or 1, that is summed over; the other one makes the new channels.
        """
        tracked, weight = self._fed(node, axis), node.input[1]
        labels = self._found.new(self._constant(weight)[1 - reads])
        if tracked is not None:
            self._put(weight, reads, tracked.labels, "reads", node)
        self._put(weight, 1 - reads, labels, "makes", node)
        if bias is not None:
            self._put(bias[0], bias[1], labels, "follows", node)
        if node.name in self._fixed:
            self._found.freeze(labels, "sent back")
        self._give(node, axis, labels)

    # --- layers

    def _conv(self, node: onnx.NodeProto) -> None:
        tracked = self._fed(node, 1)
        shape, group = self._constant(node.input[1]), _integer(node, "group", 1)
        bias = self._bias(node)
        if group == 1:
            self._layer(node, axis=1, reads=1, bias=bias)
        elif shape[:2] == (group, 1) and tracked is not None:  # depthwise: each channel by itself
            self._put(node.input[1], 0, tracked.labels, "follows", node)
            if bias is not None:
                self._put(bias[0], bias[1], tracked.labels, "follows", node)
            self._found.depthwise[node.name] = node.input[1]
            self._give(node, 1, tracked.labels)
        else:
            raise _CannotFollowError

    def _conv_transpose(self, node: onnx.NodeProto) -> None:
        if rewrite.attribute(node, "group", 1) != 1:
            raise _CannotFollowError
        self._layer(node, axis=1, reads=0, bias=self._bias(node))

    def _bias(self, node: onnx.NodeProto) -> tuple[str, int] | None:
        if len(node.input) < 3 or not node.input[2]:
            return None
        self._constant(node.input[2])
        return node.input[2], 0

    def _gemm(self, node: onnx.NodeProto) -> None:
        if rewrite.attribute(node, "transA", 0):
            raise _CannotFollowError
        turned = bool(rewrite.attribute(node, "transB", 0))
        bias = None
        if len(node.input) > 2 and node.input[2]:
            shape = self._constant(node.input[2])
            if shape and shape[-1] != 1:
                bias = (node.input[2], len(shape) - 1)
        self._layer(node, axis=1, reads=int(turned), bias=bias)

    def _matmul(self, node: onnx.NodeProto) -> None:
        rank = len(self._shape(node.input[0]))
        if len(self._constant(node.input[1])) != 2 or node.input[0] in self._constants or rank < 2:
            raise _CannotFollowError
        self._layer(node, axis=rank - 1, reads=0)

    # --- what keeps channels apart

    def _normalize(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node, axis=1)
        if rewrite.attribute(node, "training_mode", 0):
            raise _CannotFollowError
        for name in node.input[1:]:
            self._constant(name)
        for name in node.input[1:]:
            self._put(name, 0, tracked.labels, "follows", node)
        self._give(node, 1, tracked.labels)

    def _unary(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        self._give(node, tracked.axis, tracked.labels)

    def _broadcast(self, node: onnx.NodeProto) -> None:
        """Follow additions and similar operators: two channels at the same place become one."""
        shapes = [self._shape(name) for name in node.input]
        rank = max(len(shape) for shape in shapes)
        tracked = {
            name: (self._tracked[name].axis + rank - len(shape), self._tracked[name].labels)
            for name, shape in zip(node.input, shapes, strict=True)
            if name in self._tracked
        }
        place, labels = next(iter(tracked.values()))
        follow: list[tuple[str, int]] = []
        for name, shape in zip(node.input, shapes, strict=True):
            axis = place - (rank - len(shape))
            size = shape[axis] if axis >= 0 else 1
            if name in tracked:
                if tracked[name][0] != place or len(tracked[name][1]) != len(labels):
                    raise _CannotFollowError
            elif size == len(labels) and name in self._constants and size != 1:
                follow.append((name, axis))
            elif size != 1:
                raise _CannotFollowError
        for _, others in tracked.values():
            self._found.join(labels, others)
        for name, axis in follow:
            self._put(name, axis, labels, "follows", node)
        self._give(node, place, labels)

    def _pool(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node, axis=1)
        if len([name for name in node.output if name]) > 1:
            raise _CannotFollowError  # indices of a MaxPool count through all channels
        self._give(node, 1, tracked.labels)

    def _reduce(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        rank = len(self._shape(node.input[0]))
        axes = self._whole_numbers(node, "axes", 1)
        reduced = {axis % rank for axis in axes or []}
        if not reduced or tracked.axis in reduced:
            raise _CannotFollowError
        gone = 0 if rewrite.attribute(node, "keepdims", 1) else sum(axis < tracked.axis for axis in reduced)
        self._give(node, tracked.axis - gone, tracked.labels)

    def _softmax(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        axis = _integer(node, "axis", -1)
        if axis % len(self._shape(node.input[0])) == tracked.axis:
            raise _CannotFollowError
        self._give(node, tracked.axis, tracked.labels)

    def _pad(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        pads = self._whole_numbers(node, "pads", 1)
        rank = len(self._shape(node.input[0]))
        if pads is None or len(pads) != 2 * rank or pads[tracked.axis] or pads[tracked.axis + rank]:
            raise _CannotFollowError
        self._give(node, tracked.axis, tracked.labels)

    def _resize(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        if len(node.input) != 3 or node.input[2] not in self._constants or rewrite.attribute(node, "axes") is not None:
            raise _CannotFollowError  # sizes name the number of channels
        scales = numpy_helper.to_array(self._constants[node.input[2]]).reshape(-1)
        if len(scales) <= tracked.axis or scales[tracked.axis] != 1:
            raise _CannotFollowError
        self._give(node, tracked.axis, tracked.labels)

    # --- what moves channels

    def _flatten(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        shape = self._shape(node.input[0])
        axis = _integer(node, "axis", 1) % (len(shape) + 1)
        outer, inner = shape[axis : tracked.axis], shape[tracked.axis + 1 :]
        if axis > tracked.axis or None in outer or None in inner:
            raise _CannotFollowError
        repeated = np.repeat(tracked.labels, math.prod(size or 0 for size in inner))
        self._give(node, 1, np.tile(repeated, math.prod(size or 0 for size in outer)))

    def _reshape(self, node: onnx.NodeProto) -> None:
        """Follow a Reshape that leaves the dimensions before the channels alone, and keeps or flattens all that
        follows.
        """
        tracked = self._input(node)
        before, after, axis = self._shape(node.input[0]), self._shape(node.output[0]), tracked.axis
        target = self._whole_numbers(node, "shape", 1)
        if target is None or len(after) <= axis or not _same_front(before[:axis], after[:axis]):
            raise _CannotFollowError
        labels, inner = tracked.labels, before[axis + 1 :]
        if after[axis] != len(labels):
            size = math.prod(each or 0 for each in inner)
            if None in inner or len(after) != axis + 1 or after[axis] not in (None, size * len(labels)):
                raise _CannotFollowError
            labels = np.repeat(labels, size)
        if target[axis] > 0:
            self._put(node.input[1], axis, labels, "counts", node)
        self._give(node, axis, labels)

    def _transpose(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        rank = len(self._shape(node.input[0]))
        order = [int(each) for each in rewrite.attribute(node, "perm", range(rank - 1, -1, -1))]  # type: ignore[attr-defined]
        self._give(node, order.index(tracked.axis), tracked.labels)

    def _squeeze(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        rank, axes = len(self._shape(node.input[0])), self._whole_numbers(node, "axes", 1)
        gone = {axis % rank for axis in axes or []}
        if not gone or tracked.axis in gone:
            raise _CannotFollowError
        self._give(node, tracked.axis - sum(axis < tracked.axis for axis in gone), tracked.labels)

    def _unsqueeze(self, node: onnx.NodeProto) -> None:
        tracked = self._input(node)
        rank, axes = len(self._shape(node.input[0])), self._whole_numbers(node, "axes", 1)
        new = {axis % (rank + len(axes or [])) for axis in axes or []}
        kept = [axis for axis in range(rank + len(new)) if axis not in new]
        self._give(node, kept[tracked.axis], tracked.labels)

    def _concat(self, node: onnx.NodeProto) -> None:
        parts = [self._tracked.get(name) for name in node.input]
        known = [part for part in parts if part is not None]
        place = known[0].axis
        along = _integer(node, "axis")
        if any(part.axis != place for part in known):
            raise _CannotFollowError
        if along % len(self._shape(node.input[0])) != place:
            if len(known) != len(parts) or any(len(part.labels) != len(known[0].labels) for part in known):
                raise _CannotFollowError
            for part in known:
                self._found.join(known[0].labels, part.labels)
            self._give(node, place, known[0].labels)
            return
        labels = [
            self._unchanging(name, place) if part is None else part.labels
            for name, part in zip(node.input, parts, strict=True)
        ]
        self._give(node, place, np.concatenate(labels))

    def _unchanging(self, name: str, axis: int) -> Labels:
        """Make labels for channels that come from elsewhere; they stay as they are."""
        size = self._shape(name)[axis]
        if size is None:
            raise _CannotFollowError
        labels = self._found.new(size)
        self._found.freeze(labels, f"{name!r} has channels that no layer here makes")
        return labels


def _integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    value = rewrite.attribute(node, name, default)
    assert isinstance(value, int)
    return value


def _same_front(before: Shape, after: Shape) -> bool:
    """Say whether dimensions are the same; one unknown on both sides follows from the others."""
    unknown = [left is None or right is None for left, right in zip(before, after, strict=True)]
    return sum(unknown) <= 1 and all(
        left == right or is_unknown for left, right, is_unknown in zip(before, after, unknown, strict=True)
    )
