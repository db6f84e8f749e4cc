"""What is measured: the digits student (a compact MLP), a CNN of ResNet-18's size and shape, and one of uneven cost.

Both are packed as artifacts whose edge and cloud variants are the same file, with a certificate that keeps every
answer: what is measured is the way an answer takes, not the cascade's choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from examples.digits import train
from penstock.artifact import golden
from penstock.artifact.blobs import digest_of
from penstock.artifact.certificates import Certificate
from penstock.artifact.golden import Golden
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Role, VariantSpec, preprocessing_digest
from penstock.wire.tensors import TensorSpec

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model file, one row FP32 [1, ...] to send, and the logits FP32 [1, classes] that must come back.

    ``in_thread`` says whether the yardstick serves it better from a thread: a batch takes longer than a hand-over.
    """

    name: str
    path: Path
    row: Rows
    logits: Rows
    max_batch: int
    in_thread: bool
    layout: Path


def digits(directory: Path) -> Model:
    """Return the second student of the digits example, as trained there (64-64-10, fp32), and one
    of its test digits."""
    directory.mkdir(parents=True, exist_ok=True)
    train.train(directory)
    with np.load(directory / "data.npz") as data:
        row: Rows = data["x_test"][:1]
    return _packed("digits", directory / "student_v2.onnx", row, max_batch=64, in_thread=False)


def resnet18(directory: Path, *, seed: int = 0, size: int = 224) -> Model:
    """Build ResNet-18 (He et al., arXiv 1512.03385, table 1) with batch norms folded: 11.7 M parameters, FP32.

    Args:
        size: of its pictures, in both directions.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(value: str, fan_in: int, fan_out: int, size: int, stride: int, *, relu: bool) -> str:
        name = f"conv{len(nodes)}"
        shape = (fan_out, fan_in, size, size)
        weights.append(numpy_helper.from_array(_he(rng, shape, fan_in * size * size), f"{name}.w"))
        weights.append(numpy_helper.from_array(np.zeros(fan_out, np.float32), f"{name}.b"))
        pads = [size // 2] * 4
        nodes.append(
            helper.make_node("Conv", [value, f"{name}.w", f"{name}.b"], [name], strides=[stride, stride], pads=pads)
        )
        return activate(name) if relu else name

    def activate(value: str) -> str:
        nodes.append(helper.make_node("Relu", [value], [f"{value}.relu"]))
        return f"{value}.relu"

    def block(value: str, fan_in: int, fan_out: int, stride: int) -> str:
        inner = conv(conv(value, fan_in, fan_out, 3, stride, relu=True), fan_out, fan_out, 3, 1, relu=False)
        around = value if stride == 1 and fan_in == fan_out else conv(value, fan_in, fan_out, 1, stride, relu=False)
        name = f"add{len(nodes)}"
        nodes.append(helper.make_node("Add", [inner, around], [name]))
        return activate(name)

    value = conv("x", 3, 64, 7, 2, relu=True)
    nodes.append(helper.make_node("MaxPool", [value], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    value, channels = "pool", 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        value = block(block(value, channels, width, stride), width, width, 1)
        channels = width
    weights.append(numpy_helper.from_array(_he(rng, (512, 1000), 512), "fc.w"))
    weights.append(numpy_helper.from_array(np.zeros(1000, np.float32), "fc.b"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"]),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    path = _save(directory / "resnet18.onnx", nodes, weights, row=[3, size, size], classes=1000)
    return _packed("resnet18", path, rng.random((1, 3, size, size), dtype=np.float32), max_batch=8, in_thread=True)


def peak(directory: Path) -> Model:
    """Build a model that finds the largest number of a picture: 602 KB a row on the way, and next to nothing to do."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("ReduceMax", ["flat"], ["logits"], axes=[1], keepdims=1),
    ]
    directory.mkdir(parents=True, exist_ok=True)
    path = _save(directory / "peak.onnx", nodes, [], row=[3, 224, 224], classes=1)
    row = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    return _packed("peak", path, row, max_batch=8, in_thread=True)


def uneven(directory: Path, *, row_steps: int = 100, size: int = 160) -> Model:
    """Build a model that multiplies matrices as many times as the largest value among its rows FP32 [N, 4] says.

    Its logits are its rows, so the rows of a batch do not change each other's answers, only how long they take.
    """
    square, info = [size, size], helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes_on"]), helper.make_node("MatMul", ["m", "eye"], ["next"])],
        "step",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("m", TensorProto.FLOAT, square)],
        [info("goes_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, square)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["steps"], to=TensorProto.INT64),
        helper.make_node("Loop", ["steps", "true", "eye"], ["last"], body=body),
        helper.make_node("ReduceMin", ["last"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["logits"]),
    ]
    weights = [numpy_helper.from_array(np.eye(size, dtype=np.float32), "eye")]
    weights.append(numpy_helper.from_array(np.array(True), "true"))
    directory.mkdir(parents=True, exist_ok=True)
    path = _save(directory / "uneven.onnx", nodes, weights, row=[4], classes=4)
    return _packed("uneven", path, np.full((1, 4), row_steps, np.float32), max_batch=4, in_thread=True)


def _he(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Rows:
    weights: Rows = rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))
    return weights


def _save(
    path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], *, row: list[int], classes: int
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *row])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def _packed(name: str, path: Path, row: Rows, *, max_batch: int, in_thread: bool) -> Model:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: Rows = session.run(None, {"x": row})[0]
    layout = path.parent / name
    _pack(name, path, row, logits, max_batch, layout)
    return Model(name=name, path=path, row=row, logits=logits, max_batch=max_batch, in_thread=in_thread, layout=layout)


def _pack(name: str, path: Path, row: Rows, logits: Rows, max_batch: int, directory: Path) -> None:
    layout = Layout.create(directory)
    vectors = golden.encode(Golden(inputs={"x": row}, outputs={"logits": logits}))
    roles: tuple[Role, Role] = ("edge", "cloud")
    drafts = [
        VariantDraft(spec=_spec(name, role, row, logits, max_batch), weights=path, golden=vectors) for role in roles
    ]
    artifact = layout.pack(drafts, tag="v1")
    certificate = Certificate(
        model=name,
        edge_digest=artifact.variant("edge").digest,
        cloud_digest=artifact.variant("cloud").digest,
        preprocessing_digest=preprocessing_digest({}),
        harm="disagreement",
        score="max_prob",
        temperature=1.0,
        threshold=0.0,
        max_harm=0.02,
        delta=0.05,
        n=149,
        harm_count=0,
        kept_count=149,
        coverage=1.0,
        coverage_low=0.0,
        coverage_high=1.0,
        audit_max_harm=0.02,
        data_digest=digest_of(row.tobytes()),
        method="none: both variants are the same file, for measurements",
    )
    layout.attach_certificate(certificate)


def _spec(name: str, role: Role, row: Rows, logits: Rows, max_batch: int) -> VariantSpec:
    return VariantSpec(
        model=name,
        role=role,
        engine="onnx",
        target="any" if role == "edge" else "cpu",
        provider="cpu",
        precision="fp32",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *row.shape[1:])),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, logits.shape[1])),),
        score_output="logits",
        max_batch=max_batch,
        golden_tolerance=1e-2,
    )
