"""Whether an export is the same model: what differs is shown, with where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.sources import equivalence
from compiler.sources.equivalence import Case
from penstock.errors import CompileError, InvalidInput
from tests.factories import onnx_model

Floats = NDArray[np.float32]
WEIGHT = np.eye(4, 3, dtype=np.float32)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(nodes: list[onnx.NodeProto] | None = None, batch: int | str = "batch") -> Path:
        nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
        constants = {"w": WEIGHT, "two": np.array([2, 3], np.int64)}
        path = tmp_path / "model.onnx"
        onnx.save(onnx_model(nodes, constants, inputs={"x": [batch, 4]}, outputs={"y": None}), str(path))
        return path

    return write


def case(rows: int, change: Callable[[Floats], Floats] = lambda y: y) -> Case:
    x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
    return Case(inputs={"x": x}, outputs={"y": change(x @ WEIGHT)})


def test_the_same_model_passes_with_its_figures(save: Callable[..., Path]) -> None:
    seen = equivalence.check(save(), [case(2), case(3)], tolerance=1e-4)
    assert [found["rows"] for found in seen["cases"]] == [2, 3]
    assert seen["cases"][1]["outputs"]["y"]["max_abs"] <= 1e-6


def test_a_difference_is_shown_with_its_size_and_place(save: Callable[..., Path]) -> None:
    def nudge(y: Floats) -> Floats:
        y = y.copy()
        y[1, 2] += 0.5
        return y

    with pytest.raises(CompileError, match=r"output 'y' is off by up to 0.5, .* \(1 of 6 values\), most at \[1, 2\]"):
        equivalence.check(save(), [case(2, nudge)], tolerance=1e-4)


def test_the_tolerance_grows_with_the_answers(save: Callable[..., Path]) -> None:
    large = Case(inputs={"x": np.full((2, 4), 1e4, np.float32)}, outputs={"y": np.full((2, 3), 1e4 + 0.5, np.float32)})
    equivalence.check(save(), [large], tolerance=1e-4)
    with pytest.raises(CompileError, match="is off by up to 0.5"):
        equivalence.check(save(), [large], tolerance=1e-5)


def test_an_export_that_answers_nan_differs(save: Callable[..., Path]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Sub", ["h", "h"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["y"]),
    ]
    with pytest.raises(CompileError, match="is off by up to inf"):
        equivalence.check(save(nodes), [case(2)], tolerance=1e-4)


def test_an_original_that_answers_nan_proves_nothing(save: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match="the original itself answers NaN"):
        equivalence.check(save(), [case(2, lambda y: y * np.float32("nan"))], tolerance=1e-4)


def test_a_fixed_batch_is_refused(save: Callable[..., Path]) -> None:
    with pytest.raises(CompileError, match=r"fixed the batch: input 'x' is FP32\[2, 4\]"):
        equivalence.check(save(batch=2), [case(2), case(3)], tolerance=1e-4)


def test_a_size_frozen_inside_shows_with_the_second_batch(save: Callable[..., Path]) -> None:
    frozen = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Reshape", ["h", "two"], ["y"])]
    with pytest.raises(CompileError, match=r"cannot answer 3 rows \(x \[3, 4\]\): exported with 2 rows"):
        equivalence.check(save(frozen), [case(2), case(3)], tolerance=1e-4)


def test_another_shape_or_type_is_shown(save: Callable[..., Path]) -> None:
    with pytest.raises(CompileError, match=r"is float32\[2, 3\], and the original gives float32\[3, 2\]"):
        equivalence.check(save(), [case(2, lambda y: y.T)], tolerance=1e-4)


def test_integers_must_be_equal(save: Callable[..., Path]) -> None:
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)]
    path = save(nodes)
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, str(path))
    x = np.eye(4, dtype=np.float32)
    equivalence.check(path, [Case(inputs={"x": x}, outputs={"y": np.arange(4)})], tolerance=1e-4)
    with pytest.raises(CompileError, match=r"differs in 1 of 4 values, most at \[3\]: 3 instead of 0"):
        equivalence.check(path, [Case(inputs={"x": x}, outputs={"y": np.array([0, 1, 2, 0])})], tolerance=1e-4)


def test_an_output_that_the_original_does_not_give(save: Callable[..., Path]) -> None:
    unnamed = Case(inputs=case(2).inputs, outputs={})
    with pytest.raises(CompileError, match="an output 'y' that the original does not give"):
        equivalence.check(save(), [unnamed], tolerance=1e-4)


def test_saved_cases_are_read_and_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", **{"inputs/x": np.ones((2, 4)), "outputs/y": np.ones(2)})
    read = equivalence.read_case(tmp_path / "case.npz")
    assert (set(read.inputs), set(read.outputs), read.rows) == ({"x"}, {"y"}, 2)
    np.savez(tmp_path / "evil.npz", **{"inputs/x": np.array([{}], dtype=object)})
    with pytest.raises(CompileError, match="cannot be read"):
        equivalence.read_case(tmp_path / "evil.npz")
