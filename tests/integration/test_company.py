"""A model whose rows change each other's answers, from compile to agent and core, beside a client of extremes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.artifact import evaluation
from compiler.cache.steps import StepCache
from compiler.pipeline import compilation
from compiler.progress import Lines
from compiler.recipe import recipes
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.errors import CompileError
from penstock.wire.tensors import Array
from tests.factories import onnx_model
from tests.processes import AgentProcess, CoreProcess

CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
RECIPE = """
[model]
name = "blobs"

[edge]
model = "student.onnx"
precisions = ["fp32"]

[cloud]
model = "teacher.onnx"

[data]
source = "data.npz"

[certificate]
max_harm = 0.02
"""
ASKED = 200


def normalized(scale: float) -> onnx.ModelProto:
    """x FP32 [n, 4] less half of its mean over the batch, to logits FP32 [n, 3]."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], name="mean", axes=[0], keepdims=1),
        helper.make_node("Mul", ["mean", "half"], ["part"], name="part"),
        helper.make_node("Sub", ["x", "part"], ["centred"], name="centre"),
        helper.make_node("MatMul", ["centred", "weights"], ["logits"], name="head"),
    ]
    return onnx_model(nodes, {"half": np.array(0.5, np.float32), "weights": CENTRES.T * np.float32(scale)})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    source = np.random.default_rng(7)
    onnx.save(normalized(1.0), tmp_path / "student.onnx")
    onnx.save(normalized(2.0), tmp_path / "teacher.onnx")
    arrays = {}
    for split, rows in {"fit": 200, "certify": 600, "test": 300}.items():
        labels = source.integers(0, 3, rows)
        arrays[f"x_{split}"] = (CENTRES[labels] + source.normal(0, 0.7, (rows, 4))).astype(np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def compiled(workspace: Path) -> Layout:
    recipe = recipes.load(workspace / "recipe.toml")
    cache = StepCache(workspace / "cache", reuse=True)
    compilation.compile_recipe(recipe, workspace / "out", cache=cache, watcher=Lines(lambda line: None))
    return Layout(workspace / "out")


def expected(rows: Array, served_by: str) -> Array:
    """What each row gets alone: less half of itself."""
    found: Array = rows / 2 @ (CENTRES.T * np.float32(1.0 if served_by == "edge" else 2.0))
    return found


def wrong(target: str, rows: Array, at_once: int) -> int:
    """Ask for rows, a few at once, while another client sends extremes; count the wrong answers."""
    done = Event()

    def send_extremes() -> None:
        extreme = np.full((1, 4), 1e30, np.float32)
        with Client(target) as client:
            while not done.is_set():
                client.infer("blobs", extreme)

    def ask() -> int:
        count = 0
        with Client(target) as client:
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                answer = client.infer("blobs", some)
                given = answer.outputs["logits"]
                ways = [expected(some, by) for by in ("edge", "cloud")]
                right = [np.isclose(given, way, rtol=1e-4, atol=1e-4).all(axis=1) for way in ways]
                count += int(np.sum(~(right[0] | right[1])))
        return count

    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(send_extremes) for _ in range(2)]
        asking = [threads.submit(ask) for _ in range(2)]
        try:
            return sum(one.result() for one in asking)
        finally:
            done.set()
            for one in others:
                one.result()


def test_what_was_certified_is_answered_whoever_else_asks(
    workspace: Path, core_factory: Callable[..., CoreProcess], agent_factory: Callable[..., AgentProcess]
) -> None:
    layout = compiled(workspace)
    assert {variant.spec.max_batch for variant in layout.artifact().variants} == {1}
    found = evaluation.decode((layout.root / "evaluation.json").read_bytes())
    operator = "operator 'mean' (ReduceMean) mixes rows"
    assert found.targets[0].variant.rows_mixed.startswith(operator)
    assert found.cloud.rows_mixed.startswith(operator)
    assert "runs one row at a time" in (layout.root / "report.html").read_text()
    core = core_factory()
    core.push(layout.root)
    agent = agent_factory(core)
    core.release("blobs:v1")
    agent.wait_until_runs("blobs", "v1")
    with np.load(workspace / "data.npz") as data:
        rows = data["x_test"][:ASKED]
    for target in (core.grpc_target, core.http_url, agent.target):
        assert wrong(target, rows, 1) == 0
        assert wrong(target, rows, 50) == 0


def test_a_recipe_may_refuse_such_a_model_and_the_operator_is_named(workspace: Path) -> None:
    (workspace / "recipe.toml").write_text(RECIPE + '\n[quality]\nmixed_rows = "refuse"\n')
    with pytest.raises(CompileError, match=r"cloud: operator 'mean' \(ReduceMean\) mixes rows.*mixed_rows"):
        compiled(workspace)
    assert not (workspace / "out").exists()
