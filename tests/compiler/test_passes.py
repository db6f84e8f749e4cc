"""The passes on files: what is read, what is quantized and to which types, and that nothing happens silently."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler import targets
from compiler.evaluation import Quantization
from compiler.graph import files
from compiler.passes import optimize, quantize
from compiler.targets import IntegerTypes
from penstock.errors import CalibrationError, CompileError, InvalidInput
from penstock.runtime import EngineOptions, load_engine

U8S8 = IntegerTypes(activations="QUInt8", weights="QInt8")


def calibration(workspace: Path) -> np.ndarray:
    with np.load(workspace / "data.npz") as file:
        x: np.ndarray = file["x_fit"]
    return x


def quantized(workspace: Path, types: IntegerTypes = U8S8, x: np.ndarray | None = None) -> tuple[Path, Quantization]:
    ready, target = workspace / "ready.onnx", workspace / "int8.onnx"
    optimize.optimize(workspace / "student.onnx", ready, field="edge.onnx")
    inputs = {"x": calibration(workspace) if x is None else x}
    return target, quantize.quantize(ready, target, types=types, inputs=inputs, max_batch=64)


def constants(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


# --- load


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"edge.onnx: .*absent.onnx: no such file"):
        files.read(tmp_path / "absent.onnx", field="edge.onnx")


@pytest.mark.parametrize("content", [b"", b"PK not onnx", b"\x08\x08\x12"])
def test_other_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CompileError, match="edge.onnx: model.onnx is not a valid ONNX model"):
        files.read(path, field="edge.onnx")


def test_truncated_model(workspace: Path) -> None:
    path = workspace / "student.onnx"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CompileError, match="not a valid ONNX model"):
        files.read(path, field="edge.onnx")


def test_a_model_in_one_file_is_used_where_it_is(workspace: Path, tmp_path: Path) -> None:
    path = workspace / "student.onnx"
    assert files.self_contained(path, tmp_path, field="edge.onnx") == path


def test_external_weights_are_brought_in(workspace: Path) -> None:
    model = onnx.load(str(workspace / "student.onnx"))
    split = workspace / "split.onnx"
    onnx.save(model, str(split), save_as_external_data=True, size_threshold=0, location="split.bin")
    whole = files.self_contained(split, workspace, field="edge.onnx")
    (workspace / "split.bin").unlink()
    x = calibration(workspace)[:5]
    found = load_engine("onnx", whole, EngineOptions()).run({"x": x})["logits"]
    expected = load_engine("onnx", workspace / "student.onnx", EngineOptions()).run({"x": x})["logits"]
    np.testing.assert_array_equal(found, expected)


def test_missing_external_weights_are_an_error(workspace: Path) -> None:
    split = workspace / "split.onnx"
    onnx.save(
        onnx.load(str(workspace / "student.onnx")),
        str(split),
        save_as_external_data=True,
        size_threshold=0,
        location="split.bin",
    )
    (workspace / "split.bin").unlink()
    with pytest.raises(CompileError, match="not a valid ONNX model"):
        files.read(split, field="edge.onnx")


# --- quantize


@pytest.mark.parametrize(
    ("types", "activation", "largest_weight"),
    [
        (targets.resolve("x86-64-vnni", here="x86-64-vnni").integers, np.uint8, 127),
        (targets.resolve("x86-64", here="x86-64-vnni").integers, np.uint8, 64),
        (targets.resolve("arm64", here="arm64").integers, np.int8, 127),
    ],
)
def test_integer_types_are_the_targets(
    workspace: Path, types: IntegerTypes, activation: type, largest_weight: int
) -> None:
    path, _ = quantized(workspace, types)
    found = constants(path)
    model = onnx.load(str(path))
    zero_points = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert {found[name].dtype.type for name in zero_points} == {activation}
    weights = [value for name, value in found.items() if value.ndim == 2]
    assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= largest_weight


def test_weights_have_a_scale_a_channel(workspace: Path) -> None:
    path, _ = quantized(workspace)
    model, found = onnx.load(str(path)), constants(path)
    scales = {
        found[node.input[0]].shape: found[node.input[1]].shape
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in found and found[node.input[0]].ndim == 2
    }
    assert scales == {(4, 6): (6,), (6, 3): (3,)}


def test_every_calibration_row_counts(workspace: Path) -> None:
    """One extreme value in the very last row must widen the input's range."""
    x = calibration(workspace).copy()
    _, plain = quantized(workspace, x=x)
    before = constants(workspace / "int8.onnx")["x_scale"]
    x[-1, 0] = 1000
    quantized(workspace, x=x)
    assert constants(workspace / "int8.onnx")["x_scale"] > 50 * before
    assert plain.rows == len(x)


def test_ranges_do_not_depend_on_the_batch_size(workspace: Path) -> None:
    path, _ = quantized(workspace)
    at_64 = path.read_bytes()
    quantize.quantize(workspace / "ready.onnx", path, types=U8S8, inputs={"x": calibration(workspace)}, max_batch=7)
    assert path.read_bytes() == at_64


def test_logits_stay_float_so_that_confidences_do_not_tie(workspace: Path) -> None:
    model = onnx.load(str(workspace / "student.onnx"))
    mixing = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    mixed = numpy_helper.to_array(mixing) + np.random.default_rng(0).normal(0, 0.3, (6, 3)).astype(np.float32)
    mixing.CopyFrom(numpy_helper.from_array(mixed, "w1"))
    onnx.save(model, workspace / "student.onnx")
    path, _ = quantized(workspace)
    last = onnx.load(str(path)).graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Gemm", ["logits"])
    logits = load_engine("onnx", path, EngineOptions()).run({"x": calibration(workspace)})["logits"]
    assert len(np.unique(logits)) > 300  # an 8-bit output has at most 256 values


def test_report_of_what_was_quantized(workspace: Path) -> None:
    _, done = quantized(workspace)
    assert done.integer_weight_bytes == 4 * 6 + 6 * 3
    assert done.float_weight_bytes == 0
    assert sum(done.integer_nodes.values()) + sum(done.float_nodes.values()) == 2


def test_quantized_model_agrees_with_the_reference_evaluator(workspace: Path) -> None:
    path, _ = quantized(workspace)
    x = calibration(workspace)
    found = load_engine("onnx", path, EngineOptions()).run({"x": x})["logits"]
    model = onnx.load(str(path))
    model.opset_import[0].version = 19  # the oldest that the evaluator knows; nothing in the graph has changed since
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    step = float(np.ptp(expected)) / 255
    assert np.abs(found - expected).max() <= 2 * step


def test_quantized_model_is_close_to_the_float_one(workspace: Path) -> None:
    path, _ = quantized(workspace)
    x = calibration(workspace)
    found = load_engine("onnx", path, EngineOptions()).run({"x": x})["logits"]
    expected = load_engine("onnx", workspace / "student.onnx", EngineOptions()).run({"x": x})["logits"]
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.98


def test_nothing_quantized_is_an_error(workspace: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), workspace / "student.onnx"
    )
    with pytest.raises(CompileError, match="int8 quantization changed nothing"):
        quantized(workspace)


def test_convolutions_run_in_integers_on_this_machine(tmp_path: Path) -> None:
    """Signed activations would leave them in float on x86; the target's types must not."""
    source = np.random.default_rng(0)
    constants = {
        "w": source.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(8, np.float32),
        "dense": source.normal(size=(8, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
            helper.make_node("MatMul", ["f", "dense"], ["logits"], name="dense"),
        ],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "student.onnx"
    )
    x = source.normal(size=(50, 3, 8, 8)).astype(np.float32)
    types = targets.integer_types(targets.resolve("host"))
    path, done = quantized(tmp_path, types, x)
    assert done.integer_nodes.get("QLinearConv") == 1
    assert sum(done.integer_nodes.values()) == 2
    assert done.float_nodes == {}
    found = load_engine("onnx", path, EngineOptions()).run({"x": x})["logits"]
    expected = load_engine("onnx", tmp_path / "student.onnx", EngineOptions()).run({"x": x})["logits"]
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)


def test_an_output_that_is_also_used_inside_keeps_its_rounding(
    workspace: Path, make_model: Callable[..., onnx.ModelProto]
) -> None:
    """Taking the pair off such an output would change what the other consumer reads."""
    model = onnx.load(str(workspace / "student.onnx"))
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["positive"], name="after"))
    model.graph.output.append(helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["batch", 3]))
    onnx.save(model, workspace / "student.onnx")
    path, _ = quantized(workspace)
    answers = load_engine("onnx", path, EngineOptions()).run({"x": calibration(workspace)})
    np.testing.assert_allclose(answers["positive"], np.maximum(answers["logits"], 0), atol=1e-6)


def test_an_old_opset_is_lifted_to_one_with_per_channel_scales(workspace: Path) -> None:
    model = onnx.load(str(workspace / "student.onnx"))
    model.opset_import[0].version = 11  # its operators have not changed since
    onnx.save(model, workspace / "student.onnx")
    path, done = quantized(workspace)
    assert done.integer_weight_bytes == 42
    assert onnx.load(str(path)).opset_import[0].version >= 13


def test_a_quantizer_that_leaves_rows_unread_is_found_out(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = quantize.ortq.quantize_static

    def lazy(source: str, target: str, feed: object, **options: object) -> None:
        whole = quantize.Feed({"x": calibration(workspace)}, max_batch=64)
        original(source, target, whole, **options)

    monkeypatch.setattr(quantize.ortq, "quantize_static", lazy)
    with pytest.raises(CalibrationError, match="read 0 of 200"):
        quantized(workspace)


def test_bytes_repeat_in_another_process_with_another_hash_seed(workspace: Path) -> None:
    path, _ = quantized(workspace)
    here = hashlib.sha256(path.read_bytes()).hexdigest()
    program = (
        "import hashlib, sys, numpy as np; from pathlib import Path; from compiler.passes import optimize, quantize;"
        "from compiler.targets import IntegerTypes; w = Path(sys.argv[1]); x = np.load(w / 'data.npz')['x_fit'];"
        "optimize.optimize(w / 'student.onnx', w / 'r.onnx', field='e');"
        "quantize.quantize(w / 'r.onnx', w / 'q.onnx', types=IntegerTypes(activations='QUInt8', weights='QInt8'),"
        "inputs={'x': x}, max_batch=64); print(hashlib.sha256((w / 'q.onnx').read_bytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(workspace)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert done.stdout.strip() == here
