"""Real graphs whose rows change each other's answers, each in its own way, and graphs whose rows do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper

from tests.factories import onnx_model

FEATURES, CLASSES = 16, 4
_FLOATS = np.random.default_rng(3)
WEIGHTS = _FLOATS.normal(size=(FEATURES, CLASSES)).astype(np.float32)
BIAS = np.zeros(CLASSES, dtype=np.float32)


def rows(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def graph(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:  # type: ignore[type-arg]
    """A model from x FP32 [n, 16] to logits FP32 [n, 4]; the last node reads ``hidden``."""
    last = helper.make_node("Gemm", ["hidden", "weights", "bias"], ["logits"], name="head")
    return onnx_model(
        [*nodes, last],
        {"weights": WEIGHTS, "bias": BIAS, **constants},
        inputs={"x": ["n", FEATURES]},
        outputs={"logits": ["n", CLASSES]},
    )


def _centred() -> onnx.ModelProto:
    return graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], name="mean", axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["hidden"], name="centre"),
        ]
    )


def _batch_norm() -> onnx.ModelProto:
    ones, zeros = np.ones(FEATURES, np.float32), np.zeros(FEATURES, np.float32)
    names = ["x", "scale", "shift", "running_mean", "running_var"]
    node = helper.make_node("BatchNormalization", names, ["hidden", "m", "v"], name="norm", training_mode=1)
    return graph([node], scale=ones, shift=zeros, running_mean=zeros, running_var=ones)


def _softmax() -> onnx.ModelProto:
    return graph([helper.make_node("Softmax", ["x"], ["hidden"], name="over rows", axis=0)])


def _running_sum() -> onnx.ModelProto:
    return graph([helper.make_node("CumSum", ["x", "axis"], ["hidden"], name="sum")], axis=np.array(0, np.int64))


def _sorted() -> onnx.ModelProto:
    return graph(
        [
            helper.make_node("Shape", ["x"], ["rows"], name="count", start=0, end=1),
            helper.make_node("TopK", ["x", "rows"], ["hidden", "places"], name="sort", axis=0),
        ]
    )


def _dynamic_int8() -> onnx.ModelProto:
    integers = np.clip(np.round(WEIGHTS / np.abs(WEIGHTS).max() * 127), -127, 127).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="quantize"),
        helper.make_node("MatMulInteger", ["q", "integers", "zero"], ["sums"], name="multiply"),
        helper.make_node("Cast", ["sums"], ["floats"], name="cast", to=1),
        helper.make_node("Mul", ["floats", "scale"], ["logits"], name="scale back"),
    ]
    return onnx_model(nodes, {"integers": integers}, inputs={"x": ["n", FEATURES]}, outputs={"logits": ["n", CLASSES]})


def _largest_scaled() -> onnx.ModelProto:
    """Divide by the largest value of the batch, through a transposed copy."""
    return graph(
        [
            helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=[1, 0]),
            helper.make_node("ReduceMax", ["turned"], ["largest"], name="largest", keepdims=0),
            helper.make_node("Div", ["x", "largest"], ["hidden"], name="divide"),
        ]
    )


MIXING: Mapping[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "mean over rows": (_centred, "'mean' (ReduceMean)"),
    "batch normalization in training mode": (_batch_norm, "'norm' (BatchNormalization)"),
    "softmax over rows": (_softmax, "'over rows' (Softmax)"),
    "sum over rows": (_running_sum, "'sum' (CumSum)"),
    "sort over rows": (_sorted, "'sort' (TopK)"),
    "dynamic quantization": (_dynamic_int8, "'quantize' (DynamicQuantizeLinear)"),
    "scaled by the batch": (_largest_scaled, "'largest' (ReduceMax)"),
}
"""By what they do: the graph, and its first operator that mixes rows."""


def _independent() -> onnx.ModelProto:
    return graph([helper.make_node("Relu", ["x"], ["hidden"])])


def _through_a_transpose() -> onnx.ModelProto:
    return graph(
        [
            helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0]),
            helper.make_node("Softmax", ["turned"], ["shares"], axis=0),
            helper.make_node("Transpose", ["shares"], ["hidden"], perm=[1, 0]),
        ]
    )


def _scaled_within_rows() -> onnx.ModelProto:
    return graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["hidden"]),
        ]
    )


INDEPENDENT: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "relu": _independent,
    "softmax through a transpose": _through_a_transpose,
    "mean within a row": _scaled_within_rows,
}
