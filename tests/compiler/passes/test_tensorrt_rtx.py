"""Engines ahead of time: built here without a GPU, the same bytes each time, and refusals in a user's words."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler.passes import fp16, int8_static, tensorrt_rtx
from compiler.passes.job import PassJob, PassResult
from penstock import toolchain as toolchains
from penstock.errors import CompileError, ConfigError, MissingToolchain
from penstock.runtime import engine_header
from penstock.runtime.engine_header import EngineHeader, Range
from penstock.toolchain import gpu
from tests.compiler import small_models
from tests.compiler.passes.engine_models import WORDS, cnn, encoder

RUN_ENGINE = Path(tensorrt_rtx.__file__).parents[1] / "runners" / "tensorrt_run.py"


@pytest.fixture(autouse=True)
def _installed(toolchain: Callable[[str], str]) -> None:
    toolchain("tensorrt-rtx")


def quantized(bias_type: int) -> onnx.ModelProto:
    """A convolution as a CPU quantizer writes it: its bias dequantized from int32 (or one that stays in float)."""
    rng = np.random.default_rng(2)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "xs": np.array(0.05, np.float32),
        "xz": np.array(0, np.int8),
        "w": rng.integers(-127, 128, (16, 16, 3, 3)).astype(np.int8),
        "ws": np.full(16, 0.01, np.float32),
        "wz": np.zeros(16, np.int8),
        "b": rng.integers(-1000, 1000, 16).astype(np.int32),
        "bs": np.full(16, 0.0005, np.float32),
        "bz": np.zeros(16, np.int32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
    ]
    if bias_type == TensorProto.INT32:
        nodes.append(helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], name="conv/bias", axis=0))
    else:
        constants["bd"] = constants.pop("b").astype(np.float32) * np.float32(0.0005)
        del constants["bs"], constants["bz"]
    nodes.append(helper.make_node("Conv", ["xd", "wd", "bd"], ["logits"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    return small_models.graph(nodes, constants, x=["n", 16, 8, 8], y=["n", 16, 8, 8])


def job(directory: Path, model: onnx.ModelProto, **options: Any) -> PassJob:
    return small_models.job(directory, model, target="tensorrt-rtx", **options)


def tokens(lengths: Sequence[int]) -> Callable[[], Any]:
    rng = np.random.default_rng(3)

    def batches() -> Any:
        for length in lengths:
            yield {
                "input_ids": rng.integers(0, WORDS, (4, length)),
                "attention_mask": np.ones((4, length), np.int64),
            }

    return batches


def built(made: PassJob) -> tuple[PassResult, EngineHeader]:
    result = tensorrt_rtx.run(made)
    assert sorted(path.name for path in made.out.iterdir()) == ["engine.json", "model.engine"]
    return result, engine_header.decode((made.out / engine_header.FILE).read_bytes())


def digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_engine_says_what_it_was_built_from_by_what_and_for_what(tmp_path: Path) -> None:
    made = job(tmp_path, cnn(), compute_capabilities=["8.9", "8.6"], batch=[1, 2, 4])
    result, header = built(made)
    assert header.onnx_digest == digest(made.source)
    assert header.engine_digest == digest(made.out / result.model)
    assert header.version == toolchains.describe("tensorrt-rtx")["tensorrt-rtx-cu13-bindings"]
    assert header.compute_capabilities == ("8.6", "8.9")
    assert header.precision == "fp32"
    assert header.profiles == {"x": Range(least=(1, 3, 16, 16), best=(2, 3, 16, 16), most=(4, 3, 16, 16))}
    assert result.facts["inputs"] == [{"name": "x", "dtype": "float", "shape": [-1, 3, 16, 16]}]
    assert result.facts["outputs"] == [{"name": "logits", "dtype": "float", "shape": [-1, 10]}]
    assert result.facts["size_bytes"] == (made.out / "model.engine").stat().st_size
    assert result.summary == f"TensorRT for RTX {header.version}, fp32, for compute capability 8.6, 8.9"


@pytest.mark.parametrize("model", [cnn, encoder])
def test_the_same_job_gives_the_same_bytes(tmp_path: Path, model: Callable[[], onnx.ModelProto]) -> None:
    first, again = (
        replace(job(tmp_path, model(), compute_capabilities=["8.9"]), calibration=tokens([16])) for _ in range(2)
    )
    built(first)
    built(again)
    for name in ("model.engine", "engine.json"):
        assert (first.out / name).read_bytes() == (again.out / name).read_bytes()


def test_another_option_is_another_cache_key(tmp_path: Path) -> None:
    keys = [
        built(job(tmp_path, cnn(), **options))[1].cache_key
        for options in ({}, {"batch": [1, 1, 1]}, {"compute_capabilities": ["8.9"]}, {"optimization_level": 1})
    ]
    assert len(set(keys)) == len(keys)


def test_progress_grows_to_the_end(tmp_path: Path) -> None:
    seen: list[float] = []
    tensorrt_rtx.run(replace(job(tmp_path, cnn()), progress=lambda share, note: seen.append(share)))
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert len(seen) > 10
    assert 0.5 < seen[-1] <= 1.0


def test_lengths_of_sequences_come_from_the_examples(tmp_path: Path) -> None:
    made = replace(job(tmp_path, encoder(), batch=[1, 4, 8]), calibration=tokens([16, 5, 24]))
    _, header = built(made)
    expected = Range(least=(1, 5), best=(4, 24), most=(8, 24))
    assert header.profiles == {"input_ids": expected, "attention_mask": expected}


def test_lengths_that_a_recipe_names_win_over_the_examples(tmp_path: Path) -> None:
    made = replace(job(tmp_path, encoder(), dims={"sequence": [1, 32, 64]}), calibration=tokens([16]))
    _, header = built(made)
    assert header.profiles["input_ids"] == Range(least=(1, 1), best=(8, 32), most=(64, 64))


def test_a_free_axis_that_nobody_knows_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"input 'input_ids': axis 1 \(sequence\).*set dims = \{ sequence = \[least"):
        tensorrt_rtx.run(job(tmp_path, encoder()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": [4, 2, 8]}, "batch: [4, 2, 8] is not in order; expected [least, best, most]"),
        (
            {"dims": {"sequnce": [1, 2, 3]}},
            "dims.sequnce: the model has no axis of that name; its axes of free",
        ),
        ({"batch": [0, 1, 2]}, "pass tensorrt-rtx: option"),
        ({"compute_capabilities": []}, "pass tensorrt-rtx: option 'compute_capabilities'"),
        ({"compute_capabilities": ["SM89"]}, "pass tensorrt-rtx: option"),
        ({"capabilities": ["8.9"]}, "unknown option 'capabilities'; did you mean 'compute_capabilities'?"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tensorrt_rtx.run(job(tmp_path, cnn(), **options))
    assert words in caught.value.message


def test_a_gpu_that_it_does_not_build_for_is_refused_with_those_that_it_does(tmp_path: Path) -> None:
    made = job(tmp_path, cnn(), compute_capabilities=["9.0"])
    with pytest.raises(CompileError, match="9.0 is unknown to TensorRT for RTX .*; it builds for 7.5, 8.0, 8.6, 8.9"):
        tensorrt_rtx.run(made)
    assert list(made.out.iterdir()) == []


def test_turing_has_no_float_products(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="on compute capability 8.0 and later only; leave 7.5 out"):
        tensorrt_rtx.run(job(tmp_path, cnn(), compute_capabilities=["7.5"]))


def test_an_int32_bias_is_refused_with_the_node_and_what_to_do(tmp_path: Path) -> None:
    made = job(tmp_path, quantized(TensorProto.INT32))
    with pytest.raises(CompileError) as caught:
        tensorrt_rtx.run(made)
    assert caught.value.message == (
        "node 'conv/bias' (DequantizeLinear): input has type Int32 but must have type FP8, FP4, Int4, Int8, or UInt8; "
        "biases must stay in float for TensorRT for RTX: quantize for this target, not for a CPU"
    )
    assert list(made.out.iterdir()) == []


def test_the_same_with_its_bias_in_float_is_accepted(tmp_path: Path) -> None:
    _, header = built(job(tmp_path, quantized(TensorProto.FLOAT)))
    assert header.precision == "int8"


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["logits"], name="determinant")]
    model = small_models.graph(nodes, {}, x=["n", 3, 3], y=["n"])
    with pytest.raises(CompileError, match="node 'determinant' \\(Det\\): TensorRT for RTX has no such operator"):
        tensorrt_rtx.run(job(tmp_path, model))


def test_an_fp16_model_becomes_an_fp16_engine(tmp_path: Path) -> None:
    half = job(tmp_path, cnn())
    converted = half.out / fp16.run(half).model
    made = replace(job(tmp_path, cnn(), compute_capabilities=["7.5", "8.9"]), source=converted)
    result, header = built(made)
    assert header.precision == "fp16"
    assert result.facts["outputs"][0]["dtype"] == "float"  # inputs and outputs stay as they were


@pytest.mark.parametrize("kind", ["cnn", "encoder"])
def test_what_our_quantizer_makes_for_this_target_is_accepted(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(4)
    model, examples = (
        (cnn(), small_models.batches(rng.standard_normal((32, 3, 16, 16)).astype(np.float32), 8))
        if kind == "cnn"
        else (encoder(), tokens(list(itertools.repeat(16, 4))))
    )
    whole = replace(job(tmp_path, model), calibration=examples)
    made = replace(job(tmp_path, model), calibration=examples, source=whole.out / int8_static.run(whole).model)
    _, header = built(made)
    assert header.precision == "int8"


def test_an_engine_is_not_run_where_there_is_no_driver(tmp_path: Path) -> None:
    made = job(tmp_path, cnn())
    built(made)
    run = {"engine": made.out / "model.engine", "inputs": {}, "out": tmp_path, "repeats": 1}
    if (reason := gpu.driver_problem()) is None:
        pytest.skip("there is a driver here; hw_tests run engines")
    assert "driver" in reason
    with pytest.raises(CompileError, match="no NVIDIA driver here"):
        toolchains.call("tensorrt-rtx", RUN_ENGINE, run)


def test_without_the_toolchain_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path / "none"))
    with pytest.raises(MissingToolchain, match="penstock toolchain install tensorrt-rtx"):
        tensorrt_rtx.run(job(tmp_path, cnn()))
