"""Models whose answers depend on the batch are known by their operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from compiler.graph import row_independence
from compiler.passes import int8_dynamic, int8_static
from tests.compiler import small_models as small


def test_dynamic_int8_answers_a_row_by_the_batch_it_came_in_and_is_known_for_it(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    job = small.job(tmp_path, trained.model)
    model = job.out / int8_dynamic.run(job).model
    assert row_independence.affect_each_other(model)
    together = small.run(model, trained.test[:32])
    alone = np.concatenate([small.run(model, row[None]) for row in trained.test[:32]])
    assert not np.array_equal(together, alone)  # the reason for all this


def test_float_and_static_int8_answer_each_row_by_itself(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    job = small.job(tmp_path, trained.model, calibration=trained.fit)
    assert not row_independence.affect_each_other(job.source)
    assert not row_independence.affect_each_other(job.out / int8_static.run(job).model)


def test_branches_are_looked_into(tmp_path: Path) -> None:
    made = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    branch = helper.make_graph([made], "branch", [], [])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), tmp_path / "m.onnx")
    assert row_independence.affect_each_other(tmp_path / "m.onnx")
