"""Dynamic INT8 on files: matrix products and tables, never convolutions."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.graph import coverage
from compiler.passes import int8_dynamic
from compiler.passes.job import PassResult
from penstock.errors import CompileError, ConfigError
from tests.compiler import small_models as small
from tests.factories import onnx_model


def quantized(directory: Path, model: onnx.ModelProto, **options: Any) -> tuple[PassResult, Path]:
    job = small.job(directory, model, **options)
    result = int8_dynamic.run(job)
    return result, job.out / result.model


def encoder() -> onnx.ModelProto:
    """ids [n, 7] -> logits [n, 3]: a table, a product of two activations, one with a constant, and a Gemm."""
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["found"], name="lookup"),
        helper.make_node("LayerNormalization", ["found", "gain"], ["e"], name="norm"),
        helper.make_node("Transpose", ["e"], ["t"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["e", "t"], ["scores"], name="attend"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax"),
        helper.make_node("MatMul", ["weights", "e"], ["mixed"], name="mix"),
        helper.make_node("MatMul", ["mixed", "w"], ["h"], name="dense"),
        helper.make_node("ReduceMean", ["h"], ["m"], name="mean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "head", "bias"], ["logits"], name="head", transB=1),
    ]
    tensors = {
        "table": source.normal(size=(50, 16)).astype(np.float32),
        "gain": np.ones(16, np.float32),
        "w": source.normal(size=(16, 32)).astype(np.float32),
        "head": source.normal(size=(3, 32)).astype(np.float32),
        "bias": source.normal(size=3).astype(np.float32),
    }
    return onnx_model(nodes, tensors, inputs={"ids": ["n", 7]}, ints=("ids",))


def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 50, (40, 7))


def weights(path: Path) -> dict[str, np.ndarray]:
    tensors = onnx.load(str(path)).graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors if len(t.dims) > 1}


def test_products_with_constants_and_tables_are_quantized(tmp_path: Path) -> None:
    result, path = quantized(tmp_path, encoder(), target=small.HERE)
    facts = result.facts
    assert facts["quantized"] == ["lookup", "dense", "head"]
    assert facts["integer_weight_bytes"] == 50 * 16 + 16 * 32 + 32 * 3
    assert facts["float_weight_bytes"] == 4 * (16 + 3)
    assert sum(facts["integer_nodes"].values()) == 2
    assert sum(facts["float_nodes"].values()) == 2  # products of two activations
    found, expected = small.run(path, ids()), small.run(encoder(), ids())
    assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)
    onnx.checker.check_model(onnx.load(str(path)))


def test_tables_can_stay_float(tmp_path: Path) -> None:
    result, path = quantized(tmp_path, encoder(), embeddings=False)
    assert result.facts["quantized"] == ["dense", "head"]
    assert np.dtype(np.float32) in {weight.dtype for weight in weights(path).values()}


def test_a_gemm_is_not_passed_over(tmp_path: Path) -> None:
    """The quantizer itself writes it as MatMul and Add, under another name; names to keep are the source's."""
    trained = small.mlp("digits")
    result, path = quantized(tmp_path, trained.model)
    assert result.facts["quantized"] == ["fc0", "fc1", "fc2"]
    assert {weight.dtype for weight in weights(path).values()} == {np.dtype(np.int8)}
    kept, path = quantized(tmp_path, trained.model, keep_float=["fc1"])
    assert kept.facts["quantized"] == ["fc0", "fc2"]
    assert [w.dtype for w in weights(path).values()].count(np.dtype(np.float32)) == 1


def test_a_gemm_that_cannot_be_rewritten_is_left_out_and_not_counted(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small.mlp("wine").model)
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.5))
    result, _ = quantized(tmp_path, model)
    assert result.facts["quantized"] == ["fc1", "fc2"]


def test_weights_have_a_scale_a_channel_or_one(tmp_path: Path) -> None:
    for per_channel, sizes in ((True, {3, 16, 32}), (False, {1})):
        _, path = quantized(tmp_path / str(per_channel), small.mlp("wine").model, per_channel=per_channel)
        tensors = onnx.load(str(path)).graph.initializer
        assert {int(np.prod(t.dims)) for t in tensors if t.name.endswith("_scale")} == sizes


@pytest.mark.parametrize(("target", "largest"), [("x86-64-vnni", 127), ("x86-64", 64), ("arm64", 127)])
def test_range_of_weights_is_the_targets(tmp_path: Path, target: str, largest: int) -> None:
    _, path = quantized(tmp_path, small.mlp("digits").model, target=target)
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights(path).values()) in (largest, largest + 1)


def test_convolutions_are_never_taken(tmp_path: Path) -> None:
    """In this form they run at a fifth of their float speed."""
    result, path = quantized(tmp_path, small.cnn().model)
    assert result.facts["quantized"] == ["head"]
    assert {node.op_type for node in onnx.load(str(path)).graph.node} & {"ConvInteger"} == set()
    assert coverage.executed(path).integer.get("ConvInteger", 0) == 0


def test_a_model_of_convolutions_only_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = small.graph(
        [helper.make_node("Conv", ["x", "f"], ["logits"], name="conv")],
        {"f": np.ones((2, 3, 1, 1), np.float32)},
        x=["n", 3, 4, 4],
        y=["n", 2, 4, 4],
    )
    with pytest.raises(CompileError, match="int8-dynamic: only convolutions have weights here, .*use int8"):
        quantized(tmp_path, model)


def test_nothing_to_quantize(tmp_path: Path) -> None:
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"], name="r")], {}, x=["n", 3], y=["n", 3])
    with pytest.raises(CompileError, match="int8-dynamic: there is no Gemm or MatMul"):
        quantized(tmp_path, model)
    with pytest.raises(CompileError, match="not kept in float"):
        quantized(tmp_path, encoder(), keep_float=["dense", "head"])  # a table alone computes nothing


def test_a_quantizer_that_does_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model: onnx.ModelProto, target: str, **options: Any) -> None:
        onnx.save(model, target)

    monkeypatch.setattr(int8_dynamic.ortq, "quantize_dynamic", lazy)
    with pytest.raises(CompileError, match="the quantizer changed nothing"):
        quantized(tmp_path, encoder())


def test_stale_notes_and_operators_of_other_domains_do_not_trip_it(tmp_path: Path) -> None:
    """Shapes left behind by an exporter, and a product behind an operator that onnx itself knows nothing of."""
    model = encoder()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    gelu = helper.make_node("Gelu", ["mixed"], ["g"], name="gelu", domain="com.microsoft")
    model.graph.node.insert(6, gelu)
    model.graph.node[7].input[0] = "g"
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", 3, 3]))
    model.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1]))
    result, _ = quantized(tmp_path, model)
    assert result.facts["quantized"] == ["lookup", "dense", "head"]


def test_the_quantizers_advice_is_not_the_users(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        quantized(tmp_path, encoder())
    assert "pre-processing" not in caplog.text


def test_answers_are_the_reference_evaluators(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, small.mlp("wine").model, target=small.HERE)
    x = small.mlp("wine").test
    (expected,) = ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": x})
    np.testing.assert_allclose(small.run(path, x), expected, rtol=1e-3, atol=0.02)


def test_bytes_repeat_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, encoder())
    program = (
        "import hashlib, sys, onnx; from pathlib import Path; from compiler.passes import int8_dynamic;"
        "from tests.compiler import small_models as small;"
        "j = small.job(Path(sys.argv[1]), onnx.load(sys.argv[2]));"
        "print(hashlib.sha256((j.out / int8_dynamic.run(j).model).read_bytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "other"), str(tmp_path / "float.onnx")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    )
    assert done.stdout.strip() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_options_and_targets_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'embedings'; did you mean 'embeddings'"):
        quantized(tmp_path, encoder(), embedings=True)
    with pytest.raises(CompileError, match="target tensorrt scales no activations at run time; use int8"):
        quantized(tmp_path, encoder(), target="tensorrt")
    with pytest.raises(CompileError, match="no node named 'densee'"):
        quantized(tmp_path, encoder(), keep_float=["densee"])
