"""A head in a graph computes what it was trained to, and changes no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from compiler.certificate.probe import Head, Seen
from compiler.graph import confidence_head
from compiler.graph.confidence_head import FEATURES_OUTPUT, PROBE_OUTPUT
from compiler.passes import int8_dynamic, int8_static
from compiler.passes.job import PassJob
from compiler.recipe import targets
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array
from tests.factories import onnx_model

SOURCE = np.random.default_rng(3)
X = SOURCE.normal(size=(24, 4)).astype(np.float32)
IMAGES = SOURCE.normal(size=(8, 3, 6, 6)).astype(np.float32)
TOKENS = SOURCE.normal(size=(8, 5, 4)).astype(np.float32)


def drawn(*shape: int) -> NDArray[np.float32]:
    return SOURCE.normal(size=shape).astype(np.float32)


def dense(classes: int = 3, *, softmax: bool = False) -> onnx.ModelProto:
    """x [n, 4] -> 8 hidden units -> logits, or their softmax."""
    constants = {"w0": drawn(4, 8), "b0": drawn(8), "w1": drawn(8, classes), "b1": drawn(classes)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"], name="first"),
        helper.make_node("Relu", ["z"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["scaled" if softmax else "logits"], name="last"),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["scaled"], ["logits"], axis=1))
    return onnx_model(nodes, constants, outputs={"logits": ["n", classes]}, opset=13)


def convolutional() -> onnx.ModelProto:
    """x [n, 3, 6, 6] -> a last convolution whose places are averaged."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["z"], name="first"),
        helper.make_node("Relu", ["z"], ["h"], name="relu"),
        helper.make_node("Conv", ["h", "w1"], ["places"], name="last"),
        helper.make_node("GlobalAveragePool", ["places"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    constants = {"w0": drawn(5, 3, 3, 3), "w1": drawn(3, 5, 1, 1)}
    return onnx_model(nodes, constants, inputs={"x": ["n", 3, 6, 6]}, opset=11)


def tokens() -> onnx.ModelProto:
    """x [n, 5, 4] -> a product for each token, the largest of which counts."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"], name="tanh"),
        helper.make_node("MatMul", ["h", "w"], ["each"], name="last"),
        helper.make_node("ReduceMax", ["each"], ["logits"], axes=[1], keepdims=0),
    ]
    return onnx_model(nodes, {"w": drawn(4, 3)}, inputs={"x": ["n", 5, 4]}, opset=12)


def head(classes: int, width: int, kind: Any = "logits") -> Head:
    return Head(
        temperature=0.7,
        kind=kind,
        bias=-1.5,
        base=np.array([-0.3, 0.2, -0.4, 0.05]),
        offsets=SOURCE.normal(size=classes),
        slopes=0.1 * SOURCE.normal(size=classes),
        weights=SOURCE.normal(size=width),
        ridges=(),
    )


def run(model: onnx.ModelProto, directory: Path, x: Array) -> dict[str, Array]:
    onnx.checker.check_model(model)
    path = directory / "probed.onnx"
    onnx.save(model, path)
    return load_engine("onnx", path, EngineOptions(threads=1)).run({"x": x})


@pytest.mark.parametrize(
    ("make", "x", "reader", "kind"),
    [
        (dense, X, "last", "logits"),
        (lambda: dense(2), X, "last", "logits"),
        (lambda: dense(12, softmax=True), X, "last", "probabilities"),
        (convolutional, IMAGES, "last", "logits"),
        (tokens, TOKENS, "last", "logits"),
    ],
)
def test_the_graph_computes_the_heads_formula_and_no_other_answer(
    make: Any, x: Array, reader: str, kind: Any, tmp_path: Path
) -> None:
    model = make()
    plain = run(model, tmp_path, x)["logits"]
    found = confidence_head.find(model, "logits")
    assert found.reader == reader
    opened = onnx.ModelProto.FromString(model.SerializeToString())
    rank = len(x.shape)
    confidence_head.with_features(opened, found, rank=rank)
    features = run(opened, tmp_path, x)[FEATURES_OUTPUT]
    assert features.shape == (len(x), features.shape[1])
    trained = head(plain.shape[1], features.shape[1], kind)
    confidence_head.with_head(model, found, trained, output="logits", rank=rank)
    outputs = run(model, tmp_path, x)
    np.testing.assert_array_equal(outputs["logits"], plain)
    expected = trained.confidences(Seen(outputs=plain, features=features, kind=kind))
    assert np.ptp(expected) > 0.02
    np.testing.assert_allclose(outputs[PROBE_OUTPUT], expected, atol=2e-5)


@pytest.mark.parametrize("quantize", [int8_static, int8_dynamic])
def test_features_are_found_in_the_float_numbers_of_a_quantized_graph(quantize: Any, tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "float.onnx")
    job = PassJob(
        source=tmp_path / "float.onnx",
        out=tmp_path,
        target=targets.resolve(targets.HOST),
        calibration=lambda: iter([{"x": X}]),
    )
    model = onnx.load(tmp_path / quantize.run(job).model)
    found = confidence_head.find(model, "logits")
    confidence_head.with_features(model, found, rank=2)
    hidden = np.maximum(X @ _constant("w0", tmp_path) + _constant("b0", tmp_path), 0)
    features = run(model, tmp_path, X)[FEATURES_OUTPUT]
    np.testing.assert_allclose(features, hidden, atol=0.1 * hidden.max())


def test_a_graph_without_a_product_has_no_features() -> None:
    model = onnx_model([helper.make_node("Softmax", ["x"], ["logits"])], outputs={"logits": ["n", 4]})
    with pytest.raises(CompileError, match="no matrix product or convolution is before output 'logits'"):
        confidence_head.find(model, "logits")


def test_a_product_of_two_results_has_no_features() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["logits"], name="similar"),
    ]
    with pytest.raises(CompileError, match="'similar', multiplies results with each other and not with weights"):
        confidence_head.find(onnx_model(nodes, outputs={"logits": ["n", "m"]}), "logits")


@pytest.mark.parametrize(
    ("model", "refusal"),
    [
        (onnx_model([helper.make_node("MatMul", ["x", "w"], ["logits"])], {"w": drawn(4, 3)}, opset=9), "opset 9"),
        (
            onnx_model(
                [
                    helper.make_node("MatMul", ["x", "w"], ["logits"]),
                    helper.make_node("Identity", ["logits"], [PROBE_OUTPUT]),
                ],
                {"w": drawn(4, 3)},
            ),
            f"a tensor named '{PROBE_OUTPUT}' already",
        ),
    ],
)
def test_a_graph_that_cannot_hold_a_head_is_refused(model: onnx.ModelProto, refusal: str) -> None:
    found = confidence_head.find(model, "logits")
    with pytest.raises(CompileError, match=refusal):
        confidence_head.with_head(model, found, head(3, 4), output="logits", rank=2)


def _constant(name: str, directory: Path) -> Array:
    graph = onnx.load(directory / "float.onnx").graph
    (found,) = (tensor for tensor in graph.initializer if tensor.name == name)
    return onnx.numpy_helper.to_array(found)
