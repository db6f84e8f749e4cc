"""Two small graphs of the kinds that engines are built of: a CNN and one layer of a BERT; weights seeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.compiler import small_models
from tests.factories import onnx_model

HIDDEN, HEADS, WORDS = 32, 4, 64


def cnn(batch: int | str = "batch") -> onnx.ModelProto:
    """Two convolutions and a head; weights seeded."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], name="body", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["logits"], name="head", transB=1),
    ]
    constants = {
        "w0": weight(32, 3, 3, 3), "b0": weight(32, 1)[:, 0],
        "w1": weight(32, 32, 3, 3), "b1": weight(32, 1)[:, 0],
        "w2": weight(10, 32), "b2": weight(10, 1)[:, 0],
    }  # fmt: skip
    return small_models.graph(nodes, constants, x=[batch, 3, 16, 16], y=[batch, 10])


def encoder() -> onnx.ModelProto:
    """One layer of a BERT: embeddings, masked attention, LayerNormalization, GELU; batch and sequence are free."""
    rng = np.random.default_rng(1)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "words": rng.standard_normal((WORDS, HIDDEN)).astype(np.float32),
        "gain": np.ones(HIDDEN, np.float32),
        "shift": np.zeros(HIDDEN, np.float32),
        "split": np.array([0, 0, HEADS, HIDDEN // HEADS], np.int64),
        "join": np.array([0, 0, HIDDEN], np.int64),
        "scale": np.array(np.sqrt(HIDDEN / HEADS), np.float32),
        "one": np.array(1, np.float32),
        "low": np.array(-1e4, np.float32),
        "half": np.array(0.5, np.float32),
        "root": np.array(np.sqrt(2), np.float32),
        "axes": np.array([1, 2], np.int64),
        "up": (rng.standard_normal((HIDDEN, 4 * HIDDEN)) / 8).astype(np.float32),
        "down": (rng.standard_normal((4 * HIDDEN, HIDDEN)) / 8).astype(np.float32),
        "head": (rng.standard_normal((HIDDEN, 3)) / 8).astype(np.float32),
    }
    constants |= {
        name: (rng.standard_normal((HIDDEN, HIDDEN)) / 6).astype(np.float32) for name in ("wq", "wk", "wv", "wo")
    }
    make = helper.make_node
    nodes = [make("Gather", ["words", "input_ids"], ["e"], name="embed")]
    for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            make("MatMul", ["e", f"w{part}"], [f"{part}0"], name=f"{part}/matmul"),
            make("Reshape", [f"{part}0", "split"], [f"{part}1"], name=f"{part}/split"),
            make("Transpose", [f"{part}1"], [part], name=f"{part}/turn", perm=perm),
        ]
    nodes += [
        make("MatMul", ["q", "k"], ["s0"], name="scores"),
        make("Div", ["s0", "scale"], ["s1"]),
        make("Cast", ["attention_mask"], ["m0"], to=TensorProto.FLOAT),
        make("Sub", ["one", "m0"], ["m1"]),
        make("Mul", ["m1", "low"], ["m2"]),
        make("Unsqueeze", ["m2", "axes"], ["m3"]),
        make("Add", ["s1", "m3"], ["s2"]),
        make("Softmax", ["s2"], ["a"], axis=-1, name="softmax"),
        make("MatMul", ["a", "v"], ["c0"], name="context"),
        make("Transpose", ["c0"], ["c1"], perm=[0, 2, 1, 3]),
        make("Reshape", ["c1", "join"], ["c2"]),
        make("MatMul", ["c2", "wo"], ["o"], name="output/matmul"),
        make("Add", ["o", "e"], ["r"]),
        make("LayerNormalization", ["r", "gain", "shift"], ["n"], name="norm"),
        make("MatMul", ["n", "up"], ["u"], name="up/matmul"),
        make("Div", ["u", "root"], ["g0"]),
        make("Erf", ["g0"], ["g1"]),
        make("Add", ["g1", "one"], ["g2"]),
        make("Mul", ["u", "g2"], ["g3"]),
        make("Mul", ["g3", "half"], ["g"]),
        make("MatMul", ["g", "down"], ["d"], name="down/matmul"),
        make("ReduceMean", ["d"], ["mean"], axes=[1], keepdims=0),
        make("MatMul", ["mean", "head"], ["logits"], name="head"),
    ]
    inputs = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    model = onnx_model(nodes, constants, inputs=inputs, outputs={"logits": ["batch", 3]}, ints=inputs)
    onnx.checker.check_model(model)
    return model
