"""The first operator that mixes rows is named, whatever the graph does between it and the answer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.graph import row_independence
from compiler.passes import int8_dynamic, int8_static
from penstock.hosting import row_independence as hosting
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import Array
from tests.compiler import small_models as small
from tests.penstock.hosting import mixing_graphs as graphs
from tests.penstock.hosting import text_graphs


def mixed_by(path: Path, rows: Array, *, precision: str = "fp32") -> str:
    engine = load_engine("onnx", path, EngineOptions(threads=1))
    return row_independence.rows_mixed_by(path, engine, {"x": rows}, precision=precision)


@pytest.mark.parametrize("kind", graphs.MIXING)
def test_the_first_operator_that_mixes_rows_is_named(tmp_path: Path, kind: str) -> None:
    made, operator = graphs.MIXING[kind]
    onnx.save(made(), tmp_path / "m.onnx")
    assert mixed_by(tmp_path / "m.onnx", graphs.rows(16)).startswith(f"operator {operator} mixes rows: output 'logits'")


@pytest.mark.parametrize("kind", graphs.INDEPENDENT)
def test_rows_that_are_independent_are_said_to_be(tmp_path: Path, kind: str) -> None:
    onnx.save(graphs.INDEPENDENT[kind](), tmp_path / "m.onnx")
    assert mixed_by(tmp_path / "m.onnx", graphs.rows(16)) == ""


def test_what_is_packed_does_not_depend_on_how_busy_this_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that loads a model gives up after ten seconds; here each batch seems to take fifteen."""
    clock = itertools.count(0.0, 15.0)
    monkeypatch.setattr(hosting.time, "perf_counter", lambda: next(clock))
    onnx.save(next(iter(graphs.INDEPENDENT.values()))(), tmp_path / "m.onnx")
    assert mixed_by(tmp_path / "m.onnx", graphs.rows(16)) == ""
    engine = load_engine("onnx", tmp_path / "m.onnx", EngineOptions(threads=1))
    found = hosting.look(engine.run, engine, {"x": graphs.rows(16)}, precision="fp32", max_batch=64)
    assert "10 s were not enough" in found.reason


def test_our_own_dynamic_int8_answers_a_row_by_the_batch_it_came_in_and_is_known_for_it(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    job = small.job(tmp_path, trained.model)
    model = job.out / int8_dynamic.run(job).model
    assert "DynamicQuantize" in mixed_by(model, trained.fit[:16], precision="int8-dynamic")
    together = small.run(model, trained.test[:32])
    alone = np.concatenate([small.run(model, row[None]) for row in trained.test[:32]])
    assert not np.array_equal(together, alone)  # the reason for all this


def test_float_and_static_int8_answer_each_row_by_itself(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    job = small.job(tmp_path, trained.model, calibration=trained.fit)
    assert mixed_by(job.source, trained.fit[:16]) == ""
    assert mixed_by(job.out / int8_static.run(job).model, trained.fit[:16], precision="int8") == ""


def test_a_branch_that_mixes_rows_is_named_by_its_operator(tmp_path: Path) -> None:
    from onnx import helper

    made = helper.make_node("Softmax", ["x"], ["shares"], axis=0)
    shares = helper.make_tensor_value_info("shares", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([made], "branch", [], [shares])
    node = helper.make_node("If", ["yes"], ["hidden"], name="either", then_branch=branch, else_branch=branch)
    onnx.save(graphs.graph([node], yes=np.array(True)), tmp_path / "m.onnx")
    assert mixed_by(tmp_path / "m.onnx", graphs.rows(8)).startswith("operator 'either' (If) mixes rows")


def test_the_operator_that_mixes_texts_is_named(tmp_path: Path) -> None:
    onnx.save(text_graphs.longest(), tmp_path / "m.onnx")
    texts = np.array([["eins"], ["eins zwei"], ["🦕 zwei drei"], [""]], dtype=object)
    assert mixed_by(tmp_path / "m.onnx", texts).startswith("operator 'longest' (ReduceMax) mixes rows")
