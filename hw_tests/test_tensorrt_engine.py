"""TensorRT engines on a GPU: the same answers as onnxruntime gives on the CPU first, then figures, which are printed.

Needs an NVIDIA GPU and ``penstock toolchain install tensorrt`` (or ``tensorrt-rtx``); the comparison of speed needs
onnxruntime-gpu as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.passes import fp16, int8_static, tensorrt, tensorrt_rtx
from compiler.passes.job import PassJob
from compiler.recipe import targets
from penstock import toolchain
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine
from penstock.toolchain import gpu, locations
from penstock.toolchain.definitions import find
from penstock.toolchain.doctor import diagnose
from tests.compiler.passes.engine_models import WORDS, cnn, encoder

RUNNER = Path(tensorrt.__file__).parents[1] / "runners" / "tensorrt_run.py"
LENGTH = 16
REPEATS = 200
Arrays = dict[str, np.ndarray[Any, Any]]

MODELS: dict[str, Callable[[], Any]] = {"cnn": cnn, "encoder": encoder}
# of the spread of the answers: TF32 keeps 10 bits of a product's factors, as fp16 does; int8 is checked by its pairs
TOLERANCE = {"fp32": 0.01, "fp16": 0.02, "int8": 0.05}


def needs(name: str) -> None:
    if (reason := gpu.driver_problem()) is not None:
        pytest.skip(reason)
    if locations.look(find(name)).python is None:
        pytest.skip(f"toolchain {name} is not installed: penstock toolchain install {name}")


def batch(kind: str, rows: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    if kind == "cnn":
        return {"x": rng.standard_normal((rows, 3, 16, 16)).astype(np.float32)}
    return {
        "input_ids": rng.integers(0, WORDS, (rows, LENGTH)),
        "attention_mask": np.ones((rows, LENGTH), np.int64),
    }


def source(directory: Path, kind: str, precision: str, target: str) -> PassJob:
    """A job to build an engine from the model in a precision."""
    path = directory / f"{kind}.onnx"
    onnx.save(MODELS[kind](), path)
    for name, run in (("fp16", fp16.run), ("int8", int8_static.run)):
        if name == precision:
            job = _job(path, directory / name, kind, target)
            path = job.out / run(job).model
    return _job(path, directory / "engine", kind, target)


def _job(path: Path, out: Path, kind: str, target: str) -> PassJob:
    out.mkdir()
    return PassJob(
        source=path,
        out=out,
        target=targets.resolve(target),
        calibration=lambda: (batch(kind, 8, seed) for seed in range(4)),
    )


def run_engine(name: str, engine: Path, inputs: Arrays, scratch: Path, repeats: int = 0) -> tuple[Arrays, float]:
    """Answers by name, and the seconds of a batch."""
    files = {}
    for index, (key, value) in enumerate(inputs.items()):
        file = scratch / f"in{index}"
        file.write_bytes(np.ascontiguousarray(value).tobytes())
        files[key] = {"file": file, "shape": list(value.shape)}
    job = {"engine": engine, "inputs": files, "out": scratch, "repeats": repeats}
    found = toolchain.call(name, RUNNER, job, timeout_s=600)
    names = {"float": np.float32, "half": np.float16, "int64": np.int64, "int32": np.int32}
    outputs = {
        key: np.frombuffer(Path(value["file"]).read_bytes(), names[value["dtype"]]).reshape(value["shape"])
        for key, value in found["outputs"].items()
    }
    return outputs, found["seconds"]


def assert_same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_a_tensorrt_engine_answers_as_onnxruntime_does(tmp_path: Path, kind: str, precision: str, rows: int) -> None:
    needs("tensorrt")
    job = source(tmp_path, kind, precision, targets.TENSORRT)
    result = tensorrt.run(job)
    inputs = batch(kind, rows, seed=9)
    expected = load_engine("onnx", job.source, EngineOptions()).run(inputs)["logits"]
    answers, _ = run_engine("tensorrt", job.out / result.model, inputs, tmp_path)
    assert_same(answers["logits"], expected, TOLERANCE[precision])
    assert (job.out / tensorrt.TIMING_CACHE_FILE).stat().st_size > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_an_engine_built_without_a_gpu_answers_as_onnxruntime_does(tmp_path: Path, kind: str, precision: str) -> None:
    needs("tensorrt-rtx")
    job = source(tmp_path, kind, precision, targets.TENSORRT_RTX)
    result = tensorrt_rtx.run(job)
    inputs = batch(kind, 8, seed=9)
    expected = load_engine("onnx", job.source, EngineOptions()).run(inputs)["logits"]
    try:
        answers, _ = run_engine("tensorrt-rtx", job.out / result.model, inputs, tmp_path)
    except CompileError as error:
        if "the runtime refuses the engine" not in error.message:
            raise
        pytest.skip(f"TensorRT for RTX does not run on this GPU: {error.message[:200]}")
    assert_same(answers["logits"], expected, TOLERANCE[precision])


def test_doctor_finds_that_it_works(tmp_path: Path) -> None:
    needs("tensorrt")
    found = diagnose("tensorrt")
    assert found.verdict == "works", found.problems


@pytest.mark.usefixtures("cuda_runtime")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_speed_against_onnxruntime_on_cuda(tmp_path: Path, kind: str, precision: str) -> None:
    needs("tensorrt")
    job = source(tmp_path, kind, precision, targets.TENSORRT)
    engine = job.out / tensorrt.run(job).model
    inputs = batch(kind, 64, seed=9)
    _, ours = run_engine("tensorrt", engine, inputs, tmp_path, repeats=REPEATS)
    cuda = load_engine("onnx", job.source, EngineOptions(provider="cuda"))
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        cuda.run(inputs)
        took.append(time.perf_counter() - start)
    theirs = statistics.median(took)
    print(
        f"\n{kind} {precision}, 64 rows: TensorRT {ours * 1e3:.3f} ms without copies, "
        f"onnxruntime CUDA {theirs * 1e3:.3f} ms with them"
    )
    assert ours > 0
    assert theirs > 0
