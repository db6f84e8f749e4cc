"""A QDQ graph read for training and written back: what is trained, what stays, and what is refused. No torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.graph import fake_quantized
from compiler.graph.fake_quantized import Program
from compiler.passes import int8_static
from compiler.passes.int8_static import Quantized
from penstock.errors import CompileError
from tests.compiler import small_models as small
from tests.compiler.passes import build

RUNNER = Path(__file__).parents[3] / "compiler" / "runners" / "qat_program.py"
TARGETS = {"x86-64-vnni": 127, "x86-64": 64, "arm64": 127}


@cache
def trained_models() -> dict[str, small.Trained]:
    return {"cnn": small.cnn(), "mlp": small.mlp("digits")}


def read(
    directory: Path, name: str = "cnn", target: str = "x86-64-vnni", *, per_channel: bool = True
) -> tuple[Quantized, Program]:
    trained = trained_models()[name]
    job = small.job(directory, trained.model, calibration=trained.fit[:128], target=target, per_channel=per_channel)
    made = int8_static.quantized(job)
    return made, fake_quantized.program(made.model, made.exact, highest=TARGETS[target])


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "per_channel"), [("cnn", True), ("cnn", False), ("mlp", True)])
def test_what_was_not_trained_is_rounded_as_the_quantizer_rounds_it(
    tmp_path: Path, name: str, target: str, *, per_channel: bool
) -> None:
    made, program = read(tmp_path, name, target, per_channel=per_channel)
    before, after = stored(made.model), stored(fake_quantized.with_values(made.model, program, {}))
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        assert after[tensor].dtype == value.dtype
        if tensor in program.weights:  # where the quantizer adjusted a scale to its bias, a half may round otherwise
            assert np.abs(after[tensor].astype(int) - value.astype(int)).max() <= 1
            assert np.abs(after[tensor].astype(int)).max() <= TARGETS[target]
        else:
            np.testing.assert_allclose(after[tensor], value, rtol=1e-6, err_msg=tensor)


def test_products_are_trained_from_their_floats_and_everything_else_is_the_graphs(tmp_path: Path) -> None:
    made, program = read(tmp_path)
    exact = stored(made.exact)
    assert [weight.axis for weight in program.weights.values()] == [0, 0, 1]
    for name in program.weights:
        np.testing.assert_array_equal(program.values[name], exact[name.removesuffix("_quantized")])
    roundings = [step for step in program.steps if step.op == fake_quantized.FAKE_QUANTIZE]
    assert len(roundings) == sum(node.op_type == "QuantizeLinear" for node in made.model.graph.node)
    assert {(step.attributes["low"], step.attributes["high"]) for step in roundings} == {(0, 255)}
    assert len(program.biases) == 3
    assert program.values.keys() == program.scales | program.weights.keys() | program.biases.keys()


def test_trained_values_are_written_as_integers_of_their_scales(tmp_path: Path) -> None:
    made, program = read(tmp_path)
    name, weight = next(iter(program.weights.items()))
    bias_name, bias = next((key, one) for key, one in program.biases.items() if one.scales[1] == weight.scale)
    scale = program.values[weight.scale] * np.float32(2)
    values = {weight.scale: scale, bias_name: np.full_like(program.values[bias_name], 0.5)}
    after = stored(fake_quantized.with_values(made.model, program, values))
    halved = np.rint(program.values[name] / scale[:, None, None, None])
    np.testing.assert_array_equal(after[name], halved)
    expected = program.values[bias.scales[0]] * scale
    np.testing.assert_allclose(after[bias.scale], expected, rtol=1e-6)
    np.testing.assert_allclose(after[bias_name] * expected, 0.5, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [(np.nan, "cannot be used"), (0.0, "cannot be used"), (1e-30, "does not fit into 32 bits")],
)
def test_values_that_no_integer_can_hold_are_refused(tmp_path: Path, change: float, message: str) -> None:
    made, program = read(tmp_path)
    (bias_name, bias), *_ = program.biases.items()
    values = {
        bias.scales[1]: np.full_like(program.values[bias.scales[1]], change),
        bias_name: np.ones_like(program.values[bias_name]),
    }
    with pytest.raises(CompileError, match=message):
        fake_quantized.with_values(made.model, program, values)


def test_an_operator_that_cannot_be_trained_through_is_named() -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Det", ["h"], ["y"], name="odd")]
    model = build.model(nodes, {"w": build.floats(4, 4)}, {"x": ["n", 4]}, {"y": ["n"]})
    with pytest.raises(CompileError, match=r"knows no operator Det \('odd'\): leave distill.quantization_aware out"):
        fake_quantized.program(model, model, highest=127)


def test_floats_of_16_bits_are_refused() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = build.model(nodes, {"w": build.floats(4, 4)}, {"x": ["n", 4]}, {"y": ["n", 4]})
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT16
    with pytest.raises(CompileError, match="floats of 32 bits, and 'w'"):
        fake_quantized.program(model, model, highest=127)


def test_the_runner_has_a_row_for_every_operator() -> None:
    tables = [
        node.value
        for node in ast.parse(RUNNER.read_text()).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "OPERATORS"
    ]
    assert isinstance(tables[0], ast.Dict)
    rows = {key.value for key in tables[0].keys if isinstance(key, ast.Constant)}
    assert rows == fake_quantized.OPERATORS
