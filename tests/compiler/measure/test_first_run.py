"""First runs: what loops without end or needs too much memory is refused in a sentence, and ends only a child."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compiler.graph import broken_weights
from compiler.measure.first_run import FirstRuns, Limits
from penstock.errors import CompileError
from tests.factories import onnx_model

ROW = {"x": np.ones((1, 3), np.float32)}
ROOM = 600_000_000


@pytest.fixture(scope="module")
def runs() -> Iterator[FirstRuns]:
    found = FirstRuns()
    yield found
    found.close()


def fine(path: Path) -> Path:
    onnx.save(
        onnx_model([helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["n", 3]}, outputs={"y": ["n", 3]}), path
    )
    return path


def looping(path: Path, *, batch: int | str = "n") -> Path:
    """A Loop of 2^62 rounds."""
    size = [None, 3]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, size),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, size),
        ],
    )
    constants = {"rounds": np.array(2**62), "yes": np.array(True), "one": np.ones(1, np.float32)}
    loop = helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=body)
    onnx.save(onnx_model([loop], constants, inputs={"x": [batch, 3]}, outputs={"y": [batch, 3]}), path)
    return path


def hungry(path: Path) -> Path:
    """Three numbers become a tensor of 2.4 GB."""
    nodes = [
        helper.make_node("Tile", ["x", "times"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["y"], axes=[1], keepdims=1),
    ]
    constants = {"times": np.array([1, 200_000_000])}
    onnx.save(onnx_model(nodes, constants, inputs={"x": ["n", 3]}, outputs={"y": ["n", 1]}), path)
    return path


def test_what_goes_over_a_limit_is_told_and_the_next_model_is_tried_all_the_same(
    runs: FirstRuns, tmp_path: Path
) -> None:
    limits = Limits(seconds=2, memory_bytes=ROOM)
    runs.run(fine(tmp_path / "fine.onnx"), ROW, limits, what="edge.model")
    child = runs._child
    with pytest.raises(CompileError, match=r"edge\.model: .* more than the 0\.6 GiB of memory.*model\.max_run_bytes"):
        runs.run(hungry(tmp_path / "hungry.onnx"), ROW, limits, what="edge.model")
    with pytest.raises(CompileError, match=r"edge\.model: .*did not end within 2 s .*a Loop or Scan"):
        runs.run(looping(tmp_path / "loop.onnx"), ROW, limits, what="edge.model")
    assert child is not None
    assert child.returncode is not None
    runs.run(tmp_path / "fine.onnx", ROW, limits, what="edge.model")
    runs.run(tmp_path / "fine.onnx", None, limits, what="edge.model")


def test_a_model_of_fixed_sizes_is_tried_before_there_are_examples(runs: FirstRuns, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"did not end within 1 s"):
        runs.run(looping(tmp_path / "loop.onnx", batch=1), None, Limits(seconds=1), what="model")


def test_a_child_that_the_system_ended_is_told_from_one_that_took_too_long(runs: FirstRuns, tmp_path: Path) -> None:
    limits = Limits(seconds=5)
    runs.run(fine(tmp_path / "fine.onnx"), ROW, limits, what="m")
    assert runs._child is not None
    os.kill(runs._child.pid, signal.SIGKILL)
    with pytest.raises(CompileError, match=r"was ended \(code -9\), with .* GiB of memory allowed"):
        runs.run(tmp_path / "fine.onnx", ROW, limits, what="m")
    runs.run(tmp_path / "fine.onnx", ROW, limits, what="m")


def test_other_faults_of_a_model_are_left_to_those_who_tell_them_better(runs: FirstRuns, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    runs.run(tmp_path / "broken.onnx", ROW, Limits(), what="m")
    runs.run(fine(tmp_path / "fine.onnx"), {"x": np.ones((1, 5), np.float32)}, Limits(), what="m")


def test_weights_that_are_nan_are_told_with_their_place_and_marks_of_what_is_missing_are_not() -> None:
    weight = np.ones((4, 3), np.float32)
    weight[1, 2] = np.nan
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = onnx_model([product], {"w": weight}, inputs={"x": ["n", 4]}, outputs={"y": ["n", 3]})
    with pytest.raises(CompileError, match=r"NaN: 1 of 12 numbers of 'w', first at \[1, 2\], which MatMul computes"):
        broken_weights.check(model)
    mask = np.array([0.0, -np.inf], np.float32)
    fill = np.array([np.nan], np.float32)
    nodes = [helper.make_node("Add", ["x", "mask"], ["z"]), helper.make_node("Where", ["c", "z", "fill"], ["y"])]
    constants = {"mask": mask, "fill": fill, "c": np.array([True, True])}
    broken_weights.check(onnx_model(nodes, constants, inputs={"x": ["n", 2]}, outputs={"y": ["n", 2]}))
