"""What many tests need one of: variant specs, certificates and tiny ONNX models.

Every field has a value that is valid and that no test should rely on: a test names what it is about, and nothing else.
onnx is imported only where a model is made, so that tests of values stay quick.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import VariantSpec
from penstock.wire.tensors import Array, TensorSpec

if TYPE_CHECKING:
    import onnx

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
LOGITS = TensorSpec(name="logits", datatype="FP32", shape=(-1, 3))

Shape = Sequence[int | str | None] | None
"""Dimensions of a tensor in a graph: a number, a name for what is free, None for what is unknown."""


def variant_spec(role: manifests.Role = "edge", **changes: Any) -> VariantSpec:
    """Return the spec of an ONNX classifier x [-1, 4] -> logits [-1, 3] of the model "digits"."""
    values: dict[str, Any] = {
        "model": "digits",
        "role": role,
        "engine": "onnx",
        "target": "cpu" if role == "cloud" else "any",
        "provider": "cpu",
        "precision": "fp32",
        "inputs": (X,),
        "outputs": (LOGITS,),
        "score_output": "logits",
    }
    return VariantSpec(**(values | changes))


def echo_spec(role: manifests.Role = "edge", **changes: Any) -> VariantSpec:
    """Return the spec of a variant that answers x with x; its weights are a JSON list of its tensors."""
    return variant_spec(role, **{"engine": "echo", "outputs": (X,), "score_output": "x"} | changes)


def certificate(**changes: Any) -> Certificate:
    """Return a certificate of one level, for digests that nothing has."""
    values: dict[str, Any] = {
        "model": "digits",
        "edge_digest": "sha256:" + "1" * 64,
        "cloud_digest": "sha256:" + "2" * 64,
        "preprocessing_digest": manifests.preprocessing_digest({}),
        "harm": "labels",
        "score": "max_prob",
        "temperature": 1.0,
        "threshold": 0.9,
        "max_harm": 0.02,
        "delta": 0.05,
        "n": 400,
        "harm_count": 1,
        "kept_count": 300,
        "coverage": 0.75,
        "coverage_low": 0.7,
        "coverage_high": 0.8,
        "audit_max_harm": 0.03,
        "data_digest": "sha256:" + "4" * 64,
    }
    return Certificate(**(values | changes))


def certificate_for(layout: Layout, *, role: str = "edge", target: str = "", **changes: Any) -> Certificate:
    """Return a certificate that binds a variant of the layout to its cloud variant."""
    artifact = layout.artifact()
    variant = artifact.variant(role, target) if target else artifact.variant(role)
    bound = {
        "model": artifact.model,
        "edge_digest": variant.digest,
        "cloud_digest": artifact.variant("cloud").digest,
        "preprocessing_digest": manifests.preprocessing_digest(variant.spec.preprocessing),
    }
    return certificate(**bound | changes)


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array] | None = None,
    *,
    inputs: Mapping[str, Shape] | None = None,
    outputs: Mapping[str, Shape] | None = None,
    ints: Collection[str] = (),
    opset: int = 17,
    **more: Any,
) -> onnx.ModelProto:
    """Return a model of these nodes.

    Args:
        constants: the graph's initializers.
        inputs: by default ``x [n, 4]``; float32 but for those named in ``ints``.
        outputs: by default ``logits [n, 3]``.
        ints: names of inputs and outputs that are int64.
        more: goes to ``onnx.helper.make_model``.
    """
    from onnx import TensorProto, helper, numpy_helper

    def values(named: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        kinds = {name: TensorProto.INT64 if name in ints else TensorProto.FLOAT for name in named}
        return [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in named.items()]

    graph = helper.make_graph(
        list(nodes),
        "g",
        values({"x": ["n", 4]} if inputs is None else inputs),
        values({"logits": ["n", 3]} if outputs is None else outputs),
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", opset)], "ir_version": 8} | more)


def linear_model(weights: Array, *, batch: int | str = "n") -> onnx.ModelProto:
    """Return x [batch, D] -> logits [batch, K] = x @ weights."""
    from onnx import helper

    features, classes = weights.shape
    product = helper.make_node("MatMul", ["x", "w"], ["logits"], name="product")
    shapes = {"inputs": {"x": [batch, features]}, "outputs": {"logits": [batch, classes]}}
    return onnx_model([product], {"w": weights}, **shapes)
