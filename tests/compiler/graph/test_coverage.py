"""What really runs in integers, read from the graph that onnxruntime executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.graph import coverage
from compiler.passes import int8_dynamic, int8_static
from penstock.errors import CompileError
from tests.compiler import small_models as small


def saved(directory: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, str(directory / "model.onnx"))
    return directory / "model.onnx"


def static(directory: Path, trained: small.Trained, **options: object) -> Path:
    job = small.job(directory, trained.model, calibration=trained.fit, **options)
    return job.out / int8_static.run(job).model


def test_a_float_model_has_float_products_only(tmp_path: Path) -> None:
    found = coverage.executed(saved(tmp_path, small.cnn().model))
    assert found.integer == {}
    assert sum(found.floating.values()) == 3
    assert found.conversions == 0
    assert str(found).startswith("0 of 3 products in integers (")


def test_a_quantized_model_by_operator_and_by_name(tmp_path: Path) -> None:
    found = coverage.executed(static(tmp_path, small.cnn()))
    assert found.integer == {"QGemm": 1, "QLinearConv": 2}
    assert found.floating == {}
    kinds = {node.name: (node.operator, node.kind) for node in found.nodes if node.kind != "convert"}
    assert kinds == {
        "conv0": ("QLinearConv", "integer"),
        "conv1": ("QLinearConv", "integer"),
        "head": ("QGemm", "integer"),
    }
    assert found.conversions == sum(node.kind == "convert" for node in found.nodes)
    assert str(found) == f"3 of 3 products in integers, {found.conversions} conversions left"


def test_what_is_left_in_float_is_named(tmp_path: Path) -> None:
    found = coverage.executed(static(tmp_path, small.cnn(), keep_float=["conv1"]))
    assert [node.name for node in found.nodes if node.kind == "float"] == ["conv1"]
    assert sum(found.floating.values()) == 1


def test_dynamic_operators_have_their_sources_names(tmp_path: Path) -> None:
    job = small.job(tmp_path, small.cnn().model)
    found = coverage.executed(job.out / int8_dynamic.run(job).model)
    assert sum(found.integer.values()) == 1
    assert {node.name for node in found.nodes if node.kind == "float"} == {"conv0", "conv1"}


def test_bytes_of_weights_leave_scales_and_zero_points_out(tmp_path: Path) -> None:
    assert coverage.weight_bytes(saved(tmp_path, small.mlp("wine").model)) == coverage.WeightBytes(
        integer=0, floating=4 * (13 * 32 + 32 + 32 * 16 + 16 + 16 * 3 + 3)
    )
    assert coverage.weight_bytes(static(tmp_path, small.mlp("wine"))) == coverage.WeightBytes(
        integer=13 * 32 + 32 * 16 + 16 * 3, floating=0
    )


def test_a_weight_that_only_ends_like_a_scale_is_counted(tmp_path: Path) -> None:
    model = small.graph(
        [helper.make_node("LayerNormalization", ["x", "norm_scale"], ["logits"])],
        {"norm_scale": np.ones(4, np.float32)},
        x=["n", 4],
        y=["n", 4],
    )
    assert coverage.weight_bytes(saved(tmp_path, model)).floating == 16


def test_files_that_cannot_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="absent.onnx"):
        coverage.executed(tmp_path / "absent.onnx")
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"])], {}, x=["n", 4], y=["n", 4])
    model.graph.node[0].op_type = "Hologram"
    with pytest.raises(CompileError, match="Hologram"):
        coverage.executed(saved(tmp_path, model))
