"""The student as the first step of a recipe: what it depends on, and that it fits its cloud."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.data import loading
from compiler.passes import distill
from compiler.passes.distill import DistillJob
from compiler.recipe import recipes
from penstock.artifact.blobs import digest_of_file
from penstock.artifact.manifests import canonical_json
from penstock.runtime import EngineOptions, load_engine
from tests.compiler.distill.conftest import NETS, Digits

RECIPE = """
[model]
name = "digits"

[edge]
model = "nets.py:make"
distill = true

[cloud]
model = "teacher.onnx"

[data]
source = "data.npz"

[distill]
epochs = 2
threads = 1
"""


@pytest.fixture
def job_of(digits: Digits, tmp_path: Path, torch: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DistillJob]:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "teacher.onnx").write_bytes(digits.teacher.read_bytes())
    (tmp_path / "nets.py").write_text(NETS)
    arrays = {f"x_{name}": split.inputs["x"] for name, split in digits.splits.items()}
    arrays |= {f"y_{name}": split.labels for name, split in digits.splits.items() if split.labels is not None}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle

    def make(text: str = RECIPE) -> DistillJob:
        (tmp_path / "recipe.toml").write_text(text)
        recipe = recipes.load(tmp_path / "recipe.toml")
        engine = load_engine("onnx", digits.teacher, EngineOptions())
        return DistillJob(
            recipe=recipe,
            student=recipe.rungs[0].section.model,
            teacher=tmp_path / "teacher.onnx",
            content=digest_of_file(digits.teacher),
            data=loading.load(recipe.data, tmp_path, engine.inputs, classes=10),
        )

    return make


def test_a_smoke_run_trains_one_epoch_on_few_rows(job_of: Callable[..., DistillJob], tmp_path: Path) -> None:
    job = job_of(RECIPE.replace("[distill]", '[distill]\nsplit = "train"'))
    smoke = replace(job, data=job.data.thinned(40), smoke_rows=40)
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    student = distill.run(smoke, tmp_path / "out", tmp_path / "work", lambda share, note: None)
    assert student.path == tmp_path / "out" / distill.STUDENT_FILE
    assert (tmp_path / "out" / distill.METRICS_FILE).is_file()
    assert student.metrics.epochs == 1
    assert student.metrics.train_rows + student.metrics.validation_rows == 40
    ours, clouds = (load_engine("onnx", path, EngineOptions()) for path in (student.path, job.teacher))
    assert (ours.inputs, ours.outputs) == (clouds.inputs, clouds.outputs)


def test_what_a_student_depends_on(job_of: Callable[..., DistillJob], tmp_path: Path) -> None:
    def key(job: DistillJob) -> bytes:
        return canonical_json(distill.key(job))

    keys = [key(job_of())]
    assert key(job_of()) == keys[0]
    keys.append(key(job_of(RECIPE.replace("epochs = 2", "epochs = 3"))))
    keys.append(key(job_of(RECIPE.replace("[distill]", '[distill]\nsplit = "train"'))))
    keys.append(key(replace(job_of(), content="sha256:another teacher")))
    keys.append(key(job_of(RECIPE.replace("[distill]", '[distill]\nteacher = "grpc://core:8001/digits"'))))
    (tmp_path / "nets.py").write_text(NETS + "\n# changed\n")
    keys.append(key(job_of()))
    assert len(set(keys)) == len(keys)
