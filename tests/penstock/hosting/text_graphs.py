"""Graphs that take text: words looked up in an embedding, and one whose rows are changed by the longest text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = tuple(f"wört {number}" for number in range(100))
WIDTH, HIDDEN, CLASSES = 32, 128, 3


def embedding() -> onnx.ModelProto:
    """x BYTES [n, 2], words of ``WORDS``, to logits FP32 [n, 3] by an embedding and two products."""
    source = np.random.default_rng(0)
    shapes = {"table": (len(WORDS) + 1, WIDTH), "w1": (2 * WIDTH, HIDDEN), "w2": (HIDDEN, CLASSES)}
    constants = {name: source.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {"b1": np.zeros(HIDDEN, np.float32), "b2": np.zeros(CLASSES, np.float32)}
    lookup = helper.make_node(
        "LabelEncoder",
        ["x"],
        ["places"],
        name="lookup",
        domain="ai.onnx.ml",
        keys_strings=WORDS,
        values_int64s=list(range(len(WORDS))),
        default_int64=len(WORDS),
    )
    nodes = [
        lookup,
        helper.make_node("Gather", ["table", "places"], ["embedded"], name="embed"),
        helper.make_node("Flatten", ["embedded"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["wide"], name="first"),
        helper.make_node("Relu", ["wide"], ["hidden"], name="relu"),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"], name="second"),
    ]
    return _model(nodes, constants, columns=2)


def longest() -> onnx.ModelProto:
    """x BYTES [n, 1] to logits FP32 [n, 3]: words in a text, as a share of those in the longest text of the batch."""
    constants = {
        "column": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "weights": np.ones((1, CLASSES), np.float32),
    }
    nodes = [
        helper.make_node("Squeeze", ["x", "column"], ["texts"], name="texts"),
        helper.make_node("StringSplit", ["texts"], ["words", "counts"], name="split"),
        helper.make_node("Cast", ["counts"], ["lengths"], name="lengths", to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["lengths"], ["most"], name="longest", keepdims=1),
        helper.make_node("Max", ["most", "one"], ["whole"], name="never zero"),
        helper.make_node("Div", ["lengths", "whole"], ["shares"], name="shares"),
        helper.make_node("Unsqueeze", ["shares", "column"], ["column of shares"], name="columns"),
        helper.make_node("MatMul", ["column of shares", "weights"], ["logits"], name="head"),
    ]
    return _model(nodes, constants, columns=1)


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], *, columns: int) -> onnx.ModelProto:  # type: ignore[type-arg]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", columns])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
