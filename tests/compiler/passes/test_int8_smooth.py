"""Channels evened out before dynamic INT8: the model stays what it was, and rounds better where channels differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.passes import int8_dynamic, int8_smooth
from tests.compiler import small_models as small

CHANNELS = 32


def branching(*, opset: int = 17, spread: float = 300.0) -> tuple[onnx.ModelProto, np.ndarray]:
    """Two products and a Gemm that read x, of whose channels one is ``spread`` times the others; and rows for it."""
    source = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("MatMul", ["x", "w1"], ["b"], name="second"),
        helper.make_node("Gemm", ["x", "w2", "bias"], ["c"], name="third", transB=1),
        helper.make_node("Sum", ["a", "b", "c"], ["logits"], name="sum"),
    ]
    constants = {
        "w0": source.normal(size=(CHANNELS, 8)).astype(np.float32),
        "w1": source.normal(size=(CHANNELS, 8)).astype(np.float32),
        "w2": source.normal(size=(8, CHANNELS)).astype(np.float32),
        "bias": source.normal(size=8).astype(np.float32),
    }
    for name in ("w0", "w1"):
        constants[name][3] /= spread
    constants["w2"][:, 3] /= spread
    rows = source.normal(size=(64, CHANNELS)).astype(np.float32)
    rows[:, 3] *= spread
    return small.graph(nodes, constants, x=["n", CHANNELS], y=["n", 8], opset=opset), rows


def decibels(exact: np.ndarray, given: np.ndarray) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - given) ** 2).sum()))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_the_model_computes_what_it_did_before(opset: int) -> None:
    model, rows = branching(opset=opset)
    before = small.run(model, rows)
    changed = int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(rows), strength=0.8)
    assert changed == 3
    assert [node.op_type for node in model.graph.node].count("Mul") == 1, "one division for all that read x"
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(small.run(model, rows), before, rtol=1e-4, atol=1e-4)


def test_a_large_channel_no_longer_costs_the_others_their_steps(tmp_path: Path) -> None:
    model, rows = branching()
    exact = small.run(model, rows)
    found = {}
    for strength in (0.0, 0.8):
        job = small.job(tmp_path, model, calibration=rows, smooth=strength)
        result = int8_dynamic.run(job)
        found[strength] = decibels(exact, small.run(job.out / result.model, rows))
        assert result.facts["smoothed"] == (3 if strength else 0)
    assert found[0.8] > found[0.0] + 15


def test_every_batch_counts() -> None:
    """The large value comes in the last batch only."""
    model, rows = branching(spread=1.0)
    rows[-1, 7] = 1000.0
    assert int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(rows, size=8), strength=0.8) == 3


def test_channels_of_like_size_are_left_alone() -> None:
    model, rows = branching(spread=1.0)
    before = model.SerializeToString()
    assert int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(rows), strength=0.8) == 0
    assert model.SerializeToString() == before


def test_weights_that_something_else_reads_are_left_alone() -> None:
    model, rows = branching()
    model.graph.node[1].input[1] = "w0"  # the first two products share their weights
    before = small.run(model, rows)
    assert int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(rows), strength=0.8) == 1
    np.testing.assert_allclose(small.run(model, rows), before, rtol=1e-4, atol=1e-4)


def test_a_product_that_stays_in_float_reads_what_it_read(tmp_path: Path) -> None:
    model, rows = branching()
    job = small.job(tmp_path, model, calibration=rows, keep_float=["second"])
    made = onnx.load(str(job.out / int8_dynamic.run(job).model))
    (second,) = (node for node in made.graph.node if node.name == "second")
    assert list(second.input) == ["x", "w1"]


def test_values_that_are_not_finite_are_left_to_the_model() -> None:
    model, rows = branching()
    rows[0, 0] = np.inf
    assert int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(rows), strength=0.8) == 0


def test_without_examples_nothing_is_evened_out(tmp_path: Path) -> None:
    model, _ = branching()
    assert int8_dynamic.run(small.job(tmp_path, model)).facts["smoothed"] == 0


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    model, rows = branching()
    jobs = [small.job(tmp_path, model, calibration=rows) for _ in range(2)]
    first, second = ((job.out / int8_dynamic.run(job).model).read_bytes() for job in jobs)
    assert first == second


def test_a_channel_that_was_quiet_on_the_examples_does_not_drown_the_others_when_it_speaks(tmp_path: Path) -> None:
    model, rows = branching()
    quiet = rows.copy()
    quiet[:, 7] = 0
    int8_smooth.smooth(model, list(model.graph.node)[:3], small.batches(quiet), strength=0.8)
    (division,) = (node for node in model.graph.node if node.op_type == "Mul")
    factors = next(t for t in model.graph.initializer if t.name == division.input[1])
    scale = onnx.numpy_helper.to_array(factors)
    assert scale[7] <= 3 * np.median(scale)
