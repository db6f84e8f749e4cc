"""What really runs in integers, read from the graph that onnxruntime executes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime import quantization as ortq
from onnxruntime.transformers import float16

from compiler.graph import coverage
from compiler.passes import int8_dynamic, int8_static
from compiler.passes.weights import weights_only
from penstock.errors import CompileError
from tests.compiler import small_models as small
from tests.factories import onnx_model


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


# --- what a model computes in, as it came


class Rows(ortq.CalibrationDataReader):
    def __init__(self, rows: np.ndarray) -> None:
        self._rows = iter([{"x": rows}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def of(path: Path) -> str:
    return coverage.precision_of(onnx.load(str(path)))


def test_a_float_model_is_fp32_and_its_halves_are_fp16() -> None:
    model = small.cnn().model
    assert coverage.precision_of(model) == "fp32"
    assert coverage.precision_of(float16.convert_float_to_float16(model, keep_io_types=True)) == "fp16"


def test_rounded_activations_are_int8_whoever_rounds_them(tmp_path: Path) -> None:
    assert of(static(tmp_path / "cpu", small.cnn())) == "int8"
    assert of(static(tmp_path / "gpu", small.cnn(), target="tensorrt")) == "int8", "weights rounded when it is loaded"
    dynamic = tmp_path / "dynamic.onnx"
    ortq.quantize_dynamic(saved(tmp_path, small.mlp("wine").model), dynamic)
    assert of(dynamic) == "int8-dynamic"
    operators = tmp_path / "operators.onnx"
    ortq.quantize_static(
        saved(tmp_path, small.mlp("wine").model),
        operators,
        Rows(small.mlp("wine").fit),
        quant_format=ortq.QuantFormat.QOperator,
    )
    assert of(operators) == "int8"


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_blocks_are_named_by_their_bits(tmp_path: Path, bits: int) -> None:
    job = small.job(tmp_path, small.mlp("digits", raw=True).model, bits=bits)
    assert of(job.out / weights_only.run(job).model) == f"int{bits}-weights"


def test_stored_integers_that_become_floats_are_weights_alone() -> None:
    model = small.graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
        ],
        {"q": np.ones((4, 3), np.int8), "scale": np.array(0.1, np.float32)},
        x=["n", 4],
        y=["n", 3],
    )
    assert coverage.precision_of(model) == "int8-weights"


def test_a_model_that_takes_integers_already_is_int8() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["pixels", "scale"], ["x"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    constants = {"q": np.ones((4, 3), np.int8), "scale": np.array(0.1, np.float32)}
    model = onnx_model(nodes, constants, inputs={"pixels": ["n", 4]})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    assert coverage.precision_of(model) == "int8"
