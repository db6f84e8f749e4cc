"""Trained digits models as ONNX files: input ``x`` FP32 [-1, 64], raw pixels 0..16; output ``logits`` FP32 [-1, 10].

Normalisation is part of the graph, so that nobody who sends pixels can get it wrong. Same weights, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]

_OPSET, _IR_VERSION = 17, 8  # old enough for every onnxruntime that Penstock supports
_PIXELS, _DIGITS, _WHITE = 64, 10, 16.0


def mlp(weights: Sequence[Floats], biases: Sequence[Floats]) -> bytes:
    """Build a multi-layer perceptron with ReLU between its layers.

    Args:
        weights: one [in, out] array a layer, for pixels scaled to 0..1.
        biases: one [out] array a layer.
    """
    tensors: dict[str, Floats] = {"scale": np.array(1 / _WHITE, np.float32)}
    nodes = [helper.make_node("Mul", ["x", "scale"], ["h0"], name="normalise")]
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        is_last = index == len(weights) - 1
        tensors |= {f"w{index}": weight, f"b{index}": bias}
        out = "logits" if is_last else f"z{index}"
        nodes.append(helper.make_node("Gemm", [f"h{index}", f"w{index}", f"b{index}"], [out], name=f"layer{index}"))
        if not is_last:
            nodes.append(helper.make_node("Relu", [out], [f"h{index + 1}"], name=f"relu{index}"))
    return _model("digits-mlp", nodes, tensors)


def kernel_machine(centres: Floats, coefficients: Floats, *, gamma: float, scale: float) -> bytes:
    """Build the polarity-blind Gaussian kernel machine that ``train.fit_teacher`` fits; its output is logits.

    logits = scale * sum_i coefficients_i (exp(-gamma |c - s_i|^2) + exp(-gamma |-c - s_i|^2)), c = x / 8 - 1.

    Args:
        centres: s, [M, 64], in -1..1.
        coefficients: [M, 10].
    """
    tensors = {
        "half_white": np.array(_WHITE / 2, np.float32),
        "one": np.array(1, np.float32),
        "centres": np.ascontiguousarray((2 * gamma * centres).T, dtype=np.float32),
        "centre_norms": (gamma * (centres * centres).sum(axis=1)).astype(np.float32),
        "gamma": np.array(gamma, np.float32),
        "axes": np.array([1], np.int64),
        "coefficients": (scale * coefficients).astype(np.float32),
    }
    steps = [
        ("Div", ["x", "half_white"], "unit"),
        ("Sub", ["unit", "one"], "c"),
        ("Mul", ["c", "c"], "squares"),
        ("ReduceSum", ["squares", "axes"], "norm"),
        ("Mul", ["norm", "gamma"], "own"),
        ("Add", ["own", "centre_norms"], "norms"),
        ("MatMul", ["c", "centres"], "cross"),
        ("Sub", ["cross", "norms"], "exponent"),
        ("Exp", ["exponent"], "near"),
        ("Add", ["cross", "norms"], "negated"),  # -c flips the sign of the cross term only
        ("Neg", ["negated"], "mirrored"),
        ("Exp", ["mirrored"], "near_inverted"),
        ("Add", ["near", "near_inverted"], "kernel"),
        ("MatMul", ["kernel", "coefficients"], "logits"),
    ]
    nodes = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in steps]
    return _model("digits-kernel", nodes, tensors)


def _model(name: str, nodes: Sequence[onnx.NodeProto], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", _PIXELS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _DIGITS])],
        [numpy_helper.from_array(array, key) for key, array in tensors.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="penstock-digits",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
