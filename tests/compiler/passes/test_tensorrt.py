"""The full TensorRT pass as far as it goes without a GPU: refusals, what the builder is told, what is kept.

Builds and answers on a real GPU are in ``hw_tests/test_tensorrt_engine.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.passes import engines, tensorrt
from compiler.passes.job import PassJob
from penstock import toolchain
from penstock.errors import CompileError, ConfigError, MissingToolchain
from penstock.runtime import engine_header
from penstock.toolchain import gpu
from tests.compiler import small_models

FACTS: Mapping[str, Any] = {
    "version": "10.16.1.11",
    "layers": 1,
    "inputs": [],
    "outputs": [],
    "flags": ["TF32"],
    "diagnostics": [],
    "compute_capabilities": ["8.9"],
    "driver": "13.0",
    "gpu": "NVIDIA L4",
}


class Builder:
    """Stands for ``toolchain.call``: an engine of a few bytes, a timing cache that grows by one byte each time."""

    def __init__(self, facts: Mapping[str, Any] = FACTS) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.facts = facts
        self.error: BaseException | None = None

    def __call__(self, name: str, runner: Path, job: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        assert (name, runner.name, runner.is_file()) == ("tensorrt", "tensorrt_build.py", True)
        self.jobs.append(dict(job))
        cache = job["timing_cache"]
        cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"t")
        job["engine"].write_bytes(b"engine")
        if self.error is not None:
            raise self.error
        return dict(self.facts)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """A machine with a GPU, as far as the pass can tell."""
    made = Builder()
    monkeypatch.setattr(gpu, "driver_problem", lambda: None)
    monkeypatch.setattr(toolchain, "call", made)
    return made


def model() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])]
    return small_models.graph(nodes, {"w": np.eye(4, dtype=np.float32)}, x=["n", 4], y=["n", 4])


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., PassJob]:
    (tmp_path / "work").mkdir()

    def make(**options: Any) -> PassJob:
        return replace(small_models.job(tmp_path, model(), target="tensorrt", **options), work=tmp_path / "work")

    return make


def test_without_a_gpu_it_is_refused_and_the_other_target_named(
    make_job: Callable[..., PassJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver here")
    with pytest.raises(MissingToolchain) as caught:
        tensorrt.run(make_job())
    assert caught.value.message == (
        "pass tensorrt builds on the GPU that runs the engine: no NVIDIA driver here. "
        "Target tensorrt-rtx is built without one"
    )


def test_the_header_names_the_gpu_the_driver_and_the_shapes(make_job: Callable[..., PassJob], builder: Builder) -> None:
    job = make_job(batch=[1, 2, 3], version_compatible=True)
    result = tensorrt.run(job)
    header = engine_header.decode((job.out / engine_header.FILE).read_bytes())
    assert header.format == "tensorrt"
    assert (header.compute_capabilities, header.driver, header.flags["gpu"]) == (("8.9",), "13.0", "NVIDIA L4")
    assert header.is_version_compatible
    assert (header.profiles["x"].least, header.profiles["x"].most) == ((1, 4), (3, 4))
    assert result.summary == "TensorRT 10.16.1.11, fp32, for NVIDIA L4"
    assert builder.jobs[0]["version_compatible"]
    assert sorted(path.name for path in job.out.iterdir()) == ["engine.json", "model.engine", "timing.cache"]


def test_the_timing_cache_is_kept_for_the_next_build_of_the_same_step(
    make_job: Callable[..., PassJob], builder: Builder
) -> None:
    first, second = make_job(), make_job()
    tensorrt.run(first)
    tensorrt.run(second)
    assert (first.out / "timing.cache").read_bytes() == b"t"
    assert (second.out / "timing.cache").read_bytes() == b"tt"
    assert len(builder.jobs) == 2


def test_another_driver_is_another_cache_key(make_job: Callable[..., PassJob], builder: Builder) -> None:
    keys = []
    for facts in (FACTS, {**FACTS, "driver": "13.1"}, {**FACTS, "version": "10.16.2.1"}):
        builder.facts = facts
        job = make_job()
        tensorrt.run(job)
        keys.append(engine_header.decode((job.out / engine_header.FILE).read_bytes()).cache_key)
    assert len(set(keys)) == 3


def test_a_failed_build_leaves_no_engine(make_job: Callable[..., PassJob], builder: Builder) -> None:
    builder.error = CompileError("node 'x' (Det): TensorRT has no such operator")
    job = make_job()
    with pytest.raises(CompileError, match="no such operator"):
        tensorrt.run(job)
    assert not (job.out / "model.engine").exists()


def test_an_engine_that_its_own_runtime_cannot_read_is_refused(
    make_job: Callable[..., PassJob], builder: Builder
) -> None:
    builder.facts = {**FACTS, "diagnostics": ["MALFORMED_ENGINE"]}
    with pytest.raises(CompileError, match="cannot read the engine that was just built from float.onnx"):
        tensorrt.run(make_job())


def test_options_of_the_other_pass_are_refused(make_job: Callable[..., PassJob], builder: Builder) -> None:
    with pytest.raises(ConfigError, match="unknown option 'compute_capabilities'"):
        tensorrt.run(make_job(compute_capabilities=["8.9"]))
    assert builder.jobs == []


def test_an_open_axis_is_built_for_the_sizes_of_its_examples_best_for_the_most_frequent() -> None:
    sizes = engines.seen_sizes(lambda: iter([{"x": np.zeros((1, size))} for size in (4, 2, 8, 4)]))
    open_model = small_models.graph([helper.make_node("Relu", ["x"], ["logits"])], {}, x=["n", "width"], y=["n", "m"])
    found = engines.ranges(open_model, engines.Options(batch=(1, 2, 3)), sizes)["x"]
    assert (found.least, found.best, found.most) == ((1, 2), (2, 4), (3, 8))
