"""Static INT8 on files: what becomes integer, to which types, and that nothing happens in silence."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization as ortq

from compiler.graph import coverage
from compiler.passes import int8_static
from compiler.passes.job import PassResult
from penstock.errors import CalibrationError, CompileError, ConfigError
from tests.compiler import small_models as small

ON_X86 = platform.machine().lower() in ("x86_64", "amd64")


def quantized(directory: Path, trained: small.Trained, **options: Any) -> tuple[PassResult, Path]:
    job = small.job(directory, trained.model, calibration=trained.fit, **options)
    result = int8_static.run(job)
    return result, job.out / result.model


def constants(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def weights(path: Path) -> list[np.ndarray]:
    return [value for value in constants(path).values() if value.ndim > 1]


def quantized_tensors(path: Path) -> set[str]:
    return {node.input[0] for node in onnx.load(str(path)).graph.node if node.op_type == "QuantizeLinear"}


# --- integer types


@pytest.mark.parametrize(
    ("target", "activation", "largest"),
    [("x86-64-vnni", np.uint8, 127), ("x86-64", np.uint8, 64), ("arm64", np.int8, 127)],
)
def test_integer_types_are_the_targets(tmp_path: Path, target: str, activation: type, largest: int) -> None:
    _, path = quantized(tmp_path, small.cnn(), target=target)
    found = constants(path)
    zero_points = {n.input[2] for n in onnx.load(str(path)).graph.node if n.op_type == "QuantizeLinear"}
    assert {found[name].dtype.type for name in zero_points} == {activation}
    assert {weight.dtype for weight in weights(path)} == {np.dtype(np.int8)}
    sizes = [int(np.abs(weight.astype(int)).max()) for weight in weights(path)]
    assert max(sizes) == largest


def test_weights_have_a_scale_a_channel_or_one(tmp_path: Path) -> None:
    for per_channel, shapes in ((True, [(16,), (32,), (10,)]), (False, [(), (), ()])):
        _, path = quantized(tmp_path / str(per_channel), small.cnn(), per_channel=per_channel)
        found = constants(path)
        scales = [
            found[node.input[1]].shape
            for node in onnx.load(str(path)).graph.node
            if node.op_type == "DequantizeLinear" and found.get(node.input[0], np.zeros(1)).ndim > 1
        ]
        assert scales == shapes


def saturating_dot(activations: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """u8 x s8 products as vpmaddubsw adds them on x86 without VNNI: in pairs, clipped to 16 bits."""
    products = activations.astype(np.int32)[:, :, None] * weight.astype(np.int32)[None]
    pairs = products[:, ::2] + products[:, 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(1)


@pytest.mark.parametrize(("target", "survives"), [("x86-64", True), ("x86-64-vnni", False)])
def test_sums_cannot_saturate_on_x86_without_vnni(tmp_path: Path, target: str, survives: bool) -> None:
    source = np.random.default_rng(0)
    weight = np.sign(source.normal(size=(8, 4))).astype(np.float32)  # every weight is as large as any
    model = small.graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], name="fc")], {"w": weight}, x=["n", 8], y=["n", 4]
    )
    _, path = quantized(
        tmp_path, small.Trained(model=model, fit=np.ones((4, 8), np.float32), test=None, labels=None), target=target
    )
    (integers,) = weights(path)
    brightest = np.full((1, 8), 255, np.uint8)
    exact = brightest.astype(int) @ integers.astype(int)
    assert np.array_equal(saturating_dot(brightest, integers), exact) == survives


def residual() -> small.Trained:
    """Two convolutions with a way around the second."""
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "f0"], ["a"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="relu0"),
        helper.make_node("Conv", ["r", "f1"], ["b"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "r"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["t"], name="relu1"),
        helper.make_node("Conv", ["t", "f1"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["logits"], name="flat"),
    ]
    tensors = {
        "f0": source.normal(size=(16, 3, 3, 3)).astype(np.float32),
        "f1": source.normal(size=(16, 16, 3, 3)).astype(np.float32),
    }
    x = source.normal(size=(40, 3, 8, 8)).astype(np.float32)
    model = small.graph(nodes, tensors, x=["n", 3, 8, 8], y=["n", 16])
    return small.Trained(model=model, fit=x, test=x, labels=np.zeros(40, np.int64))


@pytest.mark.skipif(not ON_X86, reason="the kernels of x86 are what is compared")
def test_the_quantizers_default_types_leave_convolutions_in_float_and_ours_do_not(tmp_path: Path) -> None:
    trained = residual()
    result, _ = quantized(tmp_path, trained)
    assert result.facts["integer_nodes"] == {"QLinearConv": 3}
    assert result.facts["integer_other_nodes"] == {"QLinearAdd": 1}
    assert result.facts["float_nodes"] == {}

    class Feed:
        def __init__(self) -> None:
            self._batches = small.batches(trained.fit)()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    plain = tmp_path / "plain.onnx"
    ortq.quantize_static(str(tmp_path / "float.onnx"), str(plain), Feed())
    left = coverage.executed(plain)
    assert set(left.floating) & {"Conv", "FusedConv"}
    assert left.conversions > result.facts["conversions"]


def test_a_sum_of_two_is_an_addition_in_integers(tmp_path: Path) -> None:
    trained = residual()
    next(node for node in trained.model.graph.node if node.name == "add").op_type = "Sum"
    result, _ = quantized(tmp_path, trained)
    assert "add" in result.facts["quantized"]
    assert result.facts["integer_other_nodes"] == {"QLinearAdd": 1}


def test_float_readers_of_a_float_tensor_do_not_read_its_rounding(tmp_path: Path) -> None:
    """The quantizer would put a residual sum behind the rounding that only the product beside it needs."""
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "n"], ["logits"], name="around"),
    ]
    tensors = {"gain": np.ones(16, np.float32), "w": source.normal(size=(16, 16)).astype(np.float32)}
    x = source.normal(size=(50, 16)).astype(np.float32)
    trained = small.Trained(
        model=small.graph(nodes, tensors, x=["n", 16], y=["n", 16]), fit=x, test=x, labels=np.zeros(50, np.int64)
    )
    result, path = quantized(tmp_path, trained)
    assert result.facts["quantized"] == ["fc"]
    around = next(node for node in onnx.load(str(path)).graph.node if node.name == "around")
    assert list(around.input) == ["m", "n"]


# --- what is said


def test_facts_of_a_cnn(tmp_path: Path) -> None:
    result, path = quantized(tmp_path, small.cnn(), calibrator="entropy")
    facts = result.facts
    assert result.summary == "int8 u8s8 per channel, entropy ranges from 900 rows, 1 smoothed"
    assert facts["rows"] == 900
    assert facts["integer_weight_bytes"] == 16 * 9 + 32 * 16 * 9 + 512 * 10
    assert facts["float_weight_bytes"] == 4 * 512  # the factors of evened channels
    assert {"conv0", "relu0", "conv1", "relu1", "pool", "head"} <= set(facts["quantized"])
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)


def test_nothing_is_said_of_kernels_that_are_not_here(tmp_path: Path) -> None:
    """On x86 the s8s8 convolutions of arm64 would be counted as float, which they are not there."""
    result, _ = quantized(tmp_path, small.cnn(), target="arm64")
    assert result.facts["integer_nodes"] is None
    assert result.facts["integer_weight_bytes"] > 0


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    trained = small.mlp("wine")
    job = small.job(tmp_path, trained.model, calibration=trained.fit)
    int8_static.run(replace(job, progress=lambda share, note: told.append((share, note))))
    assert told[0][0] == 0
    assert told[-1][0] == 1


# --- scores stay float


def test_logits_stay_float_so_that_confidences_do_not_tie(tmp_path: Path) -> None:
    for name, trained in (("cnn", small.cnn()), ("mlp", small.mlp("digits"))):
        _, path = quantized(tmp_path / name, trained)
        assert len(np.unique(small.run(path, trained.test))) > 3000  # an 8-bit output has at most 256 values


@pytest.mark.parametrize("tail", ["Softmax", "Relu", "Sigmoid"])
def test_so_do_scores_behind_an_operator_of_their_own(tmp_path: Path, tail: str) -> None:
    trained = small.cnn()
    model = onnx.ModelProto()
    model.CopyFrom(trained.model)
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node(tail, ["inner"], ["logits"], name="tail"))
    with_tail = small.Trained(model=model, fit=trained.fit, test=trained.test, labels=trained.labels)
    _, path = quantized(tmp_path, with_tail, target=small.HERE)
    found, expected = small.run(path, trained.test), small.run(model, trained.test)
    assert len(np.unique(found)) > 500
    assert found.min() >= 0  # a ReLU that was dropped for its rounding, and then lost with it, would show here
    assert np.abs(found - expected).max() < 0.1


def convolution_last(
    tail: list[onnx.NodeProto], y: list[int | str], more: dict[str, np.ndarray] | None = None
) -> small.Trained:
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "f0"], ["a"], name="conv0"),
        helper.make_node("Relu", ["a"], ["r"], name="relu0"),
        helper.make_node("Conv", ["r", "f1"], ["b"], name="conv1"),
        *tail,
    ]
    tensors = {
        "f0": source.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "f1": source.normal(size=(5, 8, 1, 1)).astype(np.float32),
        **(more or {}),
    }
    x = source.normal(size=(80, 3, 6, 6)).astype(np.float32)
    model = small.graph(nodes, tensors, x=["n", 3, 6, 6], y=y)
    return small.Trained(model=model, fit=x, test=x, labels=np.zeros(80, np.int64))


def test_a_relu_before_an_output_is_not_lost(tmp_path: Path) -> None:
    """The quantizer drops a ReLU because rounding clips; taking that rounding off would let negative values out."""
    trained = convolution_last([helper.make_node("Relu", ["b"], ["logits"], name="last")], ["n", 5, 4, 4])
    _, path = quantized(tmp_path, trained)
    assert small.run(path, trained.test).min() == 0


def test_pooled_convolutions_have_fine_scores(tmp_path: Path) -> None:
    tail = [
        helper.make_node("GlobalAveragePool", ["b"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["logits"], name="flat"),
    ]
    trained = convolution_last(tail, ["n", 5])
    _, path = quantized(tmp_path, trained)
    assert len(np.unique(small.run(path, trained.test))) > 300
    assert coverage.executed(path).floating == {}  # an average of integers is fine enough; the convolution stays one


def test_an_output_that_is_also_used_inside_keeps_its_rounding(tmp_path: Path) -> None:
    tail = [
        helper.make_node("Identity", ["b"], ["logits"], name="same"),
        helper.make_node("Conv", ["b", "f2"], ["more"], name="conv2"),
    ]
    trained = convolution_last(tail, ["n", 5, 4, 4], {"f2": np.ones((2, 5, 1, 1), np.float32)})
    trained.model.graph.output.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["n", 2, 4, 4]))
    result, _ = quantized(tmp_path, trained)
    assert result.facts["integer_nodes"].get("QLinearConv", 0) >= 2


def test_a_clip_whose_bounds_leave_zero_out_is_kept(tmp_path: Path) -> None:
    """Every range holds zero, so that the range of its result cannot stand for a Clip to [1, 3]."""
    tail = [
        helper.make_node("Clip", ["b", "low", "high"], ["c"], name="clip"),
        helper.make_node("Conv", ["c", "f2"], ["logits"], name="conv2"),
    ]
    more = {"low": np.array(1, np.float32), "high": np.array(3, np.float32), "f2": np.ones((2, 5, 1, 1), np.float32)}
    trained = convolution_last(tail, ["n", 2, 4, 4], more)
    result, path = quantized(tmp_path, trained)
    assert "clip" not in result.facts["quantized"]
    assert small.run(path, trained.test).min() > 4.9  # five channels of at least 1


# --- oracles


@small.needs_vnni
def test_quantized_convolutions_are_bit_equal_to_the_reference_evaluator(tmp_path: Path) -> None:
    trained = small.cnn()
    _, path = quantized(tmp_path, trained)
    model = onnx.load(str(path))
    last = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][-1].output[0]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(last, onnx.TensorProto.UINT8, None))
    found = small.run(model, trained.test[:40])
    model.opset_import[0].version = 19  # the oldest that the evaluator knows; nothing in the graph has changed since
    (expected,) = ReferenceEvaluator(model).run(None, {"x": trained.test[:40]})
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 100
    np.testing.assert_array_equal(found, expected)


def test_logits_are_the_reference_evaluators_to_the_last_bits(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    _, path = quantized(tmp_path, trained)
    model = onnx.load(str(path))
    model.opset_import[0].version = 19
    (expected,) = ReferenceEvaluator(model).run(None, {"x": trained.test[:100]})
    np.testing.assert_allclose(small.run(path, trained.test[:100]), expected, rtol=1e-4, atol=1e-4)


# --- which rows and batches


def test_ranges_are_found_once_for_all_jobs_on_a_model_and_change_nothing(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    walks = 0

    def counted() -> Iterator[dict[str, np.ndarray]]:
        nonlocal walks
        walks += 1
        yield from small.batches(trained.fit)()

    first = replace(
        small.job(tmp_path / "a", trained.model, calibration=trained.fit, calibrator="entropy"), calibration=counted
    )
    int8_static.run(first)
    before = walks
    kept = small.job(tmp_path / "b", trained.model, calibration=trained.fit, keep_float=["fc0"], calibrator="entropy")
    remembered = replace(kept, calibration=counted, memo=first.memo)
    made = remembered.out / int8_static.run(remembered).model
    assert walks <= before + 1  # to see how many rows the model takes
    fresh = small.job(tmp_path / "c", trained.model, calibration=trained.fit, keep_float=["fc0"], calibrator="entropy")
    assert made.read_bytes() == (fresh.out / int8_static.run(fresh).model).read_bytes()


@pytest.mark.parametrize("row", [0, 449, 898])
def test_every_calibration_row_counts(tmp_path: Path, row: int) -> None:
    """An option of the quantizer (CalibMaxIntermediateOutputs) loses rows in silence; one extreme must always show."""
    trained = small.mlp("digits")
    x = trained.fit[:899].copy() if len(trained.fit) >= 899 else trained.fit.copy()
    row = min(row, len(x) - 1)
    x[row, 5] = 1000
    moved = small.Trained(model=trained.model, fit=x, test=trained.test, labels=trained.labels)
    result, path = quantized(tmp_path, moved, smooth=0.0)
    scale = constants(path)["x_scale"]
    assert scale == pytest.approx(1000 / 255, rel=0.05)
    assert result.facts["rows"] == len(x)


def test_another_models_ranges_are_never_reused(tmp_path: Path) -> None:
    """The quantizer's calibration cache is keyed on nothing; here two models share a directory."""
    quantized(tmp_path, small.mlp("digits"))
    _, after = quantized(tmp_path, small.mlp("wine"))
    _, fresh = quantized(tmp_path / "fresh", small.mlp("wine"))
    assert after.read_bytes() == fresh.read_bytes()


def test_memory_setting_does_not_change_the_result(tmp_path: Path) -> None:
    _, roomy = quantized(tmp_path / "a", small.cnn(), calibrator="percentile")
    _, tight = quantized(tmp_path / "b", small.cnn(), calibrator="percentile", memory_mib=1)
    assert roomy.read_bytes() == tight.read_bytes()


def test_bytes_repeat_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    _, path = quantized(tmp_path, small.cnn(), calibrator="entropy")
    program = (
        "import hashlib, sys; from pathlib import Path; from compiler.passes import int8_static;"
        "from tests.compiler import small_models as small; t = small.cnn();"
        "j = small.job(Path(sys.argv[1]), t.model, calibration=t.fit, calibrator='entropy');"
        "print(hashlib.sha256((j.out / int8_static.run(j).model).read_bytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "other")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "4711"},
    )
    assert done.stdout.strip() == hashlib.sha256(path.read_bytes()).hexdigest()


# --- kept in float


def test_kept_nodes_stay_float_and_the_rest_does_not(tmp_path: Path) -> None:
    result, path = quantized(tmp_path, small.cnn(), keep_float=["conv1"])
    nodes = {node.name: node for node in coverage.executed(path).nodes}
    assert nodes["conv0"].kind == "integer"
    assert nodes["conv1"].kind == "float"
    assert "conv1" not in result.facts["quantized"]
    assert result.facts["kept_float"] == ["conv1"]
    assert np.dtype(np.float32) in {w.dtype for w in weights(path)}


def test_a_relu_behind_a_kept_convolution_is_not_lost(tmp_path: Path) -> None:
    trained = small.cnn()
    _, path = quantized(tmp_path, trained, keep_float=["conv0", "head"])
    assert np.abs(small.run(path, trained.test) - small.run(trained.model, trained.test)).max() < 0.2


def test_keeping_everything_leaves_nothing_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="int8: there is nothing to quantize; .* not kept in float"):
        quantized(tmp_path, small.cnn(), keep_float=["conv0", "conv1", "head"])


def test_a_name_that_no_node_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no node named 'conv9'"):
        quantized(tmp_path, small.cnn(), keep_float=["conv9"])


def test_unnamed_nodes_are_told_apart(tmp_path: Path) -> None:
    """The quantizer compares names: one empty name kept in float would keep all that have none."""
    trained = small.cnn()
    model = onnx.ModelProto()
    model.CopyFrom(trained.model)
    for node in model.graph.node:
        node.name = ""
    blank = small.Trained(model=model, fit=trained.fit, test=trained.test, labels=trained.labels)
    result, _ = quantized(tmp_path, blank, keep_float=["Conv/a1"])
    assert "Conv/a0" in result.facts["quantized"]
    assert "Conv/a1" not in result.facts["quantized"]
    assert result.facts["integer_nodes"]["QLinearConv"] == 1


# --- what onnxruntime's quantizer fails on


def with_bias(bias: np.ndarray, *, rows: int | str = "n") -> onnx.ModelProto:
    """Two Gemms; the first adds a bias so large that the quantizer adjusts the weights to it."""
    source = np.random.default_rng(0)
    constants = {
        "w0": source.standard_normal((16, 8)).astype(np.float32),
        "b0": bias.astype(np.float32),
        "w1": source.standard_normal((8, 3)).astype(np.float32),
        "b1": np.zeros(3, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["z"], name="first"),
        helper.make_node("Relu", ["z"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["logits"], name="second"),
    ]
    return small.graph(nodes, constants, x=[rows, 16], y=[rows, 3])


@pytest.mark.parametrize("shape", [(1, 8), (1,), ()], ids=["[1, N]", "[1]", "a scalar"])
def test_a_bias_of_another_shape_is_quantized_as_the_same_bias(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """ValueError: the truth value of an array with more than one element is ambiguous."""
    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    found = []
    for given in (np.full(shape, 1e4), np.full(8, 1e4)):
        job = small.job(tmp_path / str(given.shape), with_bias(given), calibration=x)
        result = int8_static.run(job)
        assert result.facts["cure"] == ""
        assert "per channel" in result.summary
        found.append(small.run(job.out / result.model, x))
    np.testing.assert_array_equal(*found)


def test_where_weights_cannot_be_adjusted_they_are_not_and_the_summary_says_so(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    model = with_bias(np.full((4, 8), 1e4), rows=4)  # a bias of its own for each row of a fixed batch
    job = small.job(tmp_path, model, calibration=x)
    result = int8_static.run(job)
    assert "weights not adjusted to their biases" in result.summary
    assert result.facts["integer_weight_bytes"] == 16 * 8 + 8 * 3
    exact, rounded = small.run(model, x[:4]), small.run(job.out / result.model, x[:4])
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_what_no_way_of_quantizing_cures_is_told_with_the_first_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = iter(["the first", "the second", "the third"])

    def fails(self: object) -> None:
        raise ValueError(next(reasons))

    monkeypatch.setattr(int8_static.QDQQuantizer, "quantize_model", fails)
    with pytest.raises(CompileError, match="also per tensor and without adjusting .*: ValueError: the first"):
        quantized(tmp_path, small.cnn())
    assert not list(reasons), "not every way was tried"


# --- refusals


def test_no_examples(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="int8: ranges of activations need examples"):
        int8_static.run(small.job(tmp_path, small.cnn().model))


def test_nothing_to_quantize(tmp_path: Path) -> None:
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"], name="relu")], {}, x=["n", 4], y=["n", 4])
    with pytest.raises(CompileError, match="there is nothing to quantize; int8 needs a convolution, Gemm"):
        int8_static.run(small.job(tmp_path, model, calibration=np.ones((4, 4), np.float32)))


def test_a_quantizer_that_does_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_static.QDQQuantizer, "quantize_model", lambda self: None)
    with pytest.raises(CompileError, match="the quantizer changed nothing"):
        quantized(tmp_path, small.cnn())
    assert not list(tmp_path.glob("job*/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrater": "minmax"}, "unknown option 'calibrater'; did you mean 'calibrator'"),
        ({"calibrator": "kl"}, "calibrator"),
        ({"percentile": 10}, "percentile"),
        ({"percentile": 100.5}, "percentile"),
        ({"memory_mib": 0}, "memory_mib"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(tmp_path, small.cnn(), **options)


def test_no_target_for_everything(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="not the same on every processor"):
        quantized(tmp_path, small.cnn(), target="any")


def test_an_old_opset_is_sent_to_the_optimize_pass(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small.mlp("wine").model)
    model.opset_import[0].version = 11
    with pytest.raises(CompileError, match="opset 11, and scales per channel need 13"):
        int8_static.run(small.job(tmp_path, model, calibration=small.mlp("wine").fit))


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    trained = small.cnn()
    _, path = quantized(tmp_path, trained)
    with pytest.raises(CompileError, match="quantized already"):
        int8_static.run(small.job(tmp_path / "again", onnx.load(str(path)), calibration=trained.fit))


@pytest.mark.parametrize(
    ("domain", "message"), [("", "operator Hologram.*opset 17|Hologram"), ("acme", "operator Hologram .*'acme'")]
)
def test_an_operator_that_cannot_run_is_named(tmp_path: Path, domain: str, message: str) -> None:
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"], name="odd")], {}, x=["n", 4], y=["n", 4])
    model.graph.node[0].op_type, model.graph.node[0].domain = "Hologram", domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 3))
    with pytest.raises(CompileError, match=message):
        int8_static.run(small.job(tmp_path, model, calibration=np.ones((4, 4), np.float32)))


def test_stale_notes_on_shapes_and_types_do_not_matter(tmp_path: Path) -> None:
    trained = small.cnn()
    model = onnx.ModelProto()
    model.CopyFrom(trained.model)
    model.graph.value_info.append(helper.make_tensor_value_info("a0", onnx.TensorProto.FLOAT, ["n", 7, 7]))
    model.graph.value_info.append(helper.make_tensor_value_info("gone", onnx.TensorProto.FLOAT, [1]))
    stale = small.Trained(model=model, fit=trained.fit, test=trained.test, labels=trained.labels)
    _, found = quantized(tmp_path / "a", stale)
    _, expected = quantized(tmp_path / "b", trained)
    assert found.read_bytes() == expected.read_bytes()


# --- TensorRT


def test_tensorrt_gets_symmetric_pairs_and_float_weights_and_biases(tmp_path: Path) -> None:
    result, path = quantized(tmp_path, small.cnn(), target="tensorrt", keep_float=["head"])
    model, found = onnx.load(str(path)), constants(path)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {int(np.abs(found[node.input[2]]).max()) for node in pairs} == {0}
    assert {found[node.input[2]].dtype for node in pairs} == {np.dtype(np.int8)}
    assert all(value.dtype == np.float32 for value in found.values() if value.ndim > 1)  # weights, behind pairs
    assert all(value.dtype != np.int32 for value in found.values())  # its parser takes no int32 bias
    assert result.facts["quantized"] == ["conv1"]  # conv0 has one input channel
    assert result.facts["integer_weight_bytes"] == 32 * 16 * 9
    assert quantized_tensors(path) == {"r0", "f1"}
    axes = [a.i for node in pairs for a in node.attribute if a.name == "axis" and node.input[0] == "f1"]
    assert axes == [0]


def test_tensorrt_leaves_out_products_with_a_vector(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"], name="wide"),
        helper.make_node("MatMul", ["m", "b"], ["logits"], name="narrow"),
    ]
    tensors = {
        "a": source.normal(size=(32, 16)).astype(np.float32),
        "b": source.normal(size=(16, 1)).astype(np.float32),
    }
    x = source.normal(size=(9, 32)).astype(np.float32)
    for rows, expected in (("n", ["wide"]), (1, None)):
        model = small.graph(nodes, tensors, x=[rows, 32], y=[rows, 1])
        job = small.job(tmp_path / str(rows), model, calibration=x, target="tensorrt-rtx")
        if expected is None:
            with pytest.raises(CompileError, match="nothing to quantize"):
                int8_static.run(job)
        else:
            assert int8_static.run(job).facts["quantized"] == expected


def test_a_transposed_convolution_is_tensorrts_alone(tmp_path: Path) -> None:
    """Its channels lie on axis 1; on a CPU there is no integer kernel for it."""
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "f0"], ["a"], name="conv"),
        helper.make_node("ConvTranspose", ["a", "f1"], ["logits"], name="up"),
    ]
    tensors = {
        "f0": source.normal(size=(16, 16, 1, 1)).astype(np.float32),
        "f1": source.normal(size=(16, 24, 2, 2)).astype(np.float32),
    }
    x = source.normal(size=(9, 16, 4, 4)).astype(np.float32)
    trained = small.Trained(
        model=small.graph(nodes, tensors, x=["n", 16, 4, 4], y=["n", 24, 5, 5]), fit=x, test=x, labels=None
    )
    on_cpu, _ = quantized(tmp_path / "cpu", trained)
    assert on_cpu.facts["quantized"] == ["conv"]
    on_gpu, path = quantized(tmp_path / "gpu", trained, target="tensorrt")
    assert on_gpu.facts["quantized"] == ["conv", "up"]
    node = next(n for n in onnx.load(str(path)).graph.node if n.input[0] == "f1" and n.op_type == "QuantizeLinear")
    assert [a.i for a in node.attribute if a.name == "axis"] == [1]
