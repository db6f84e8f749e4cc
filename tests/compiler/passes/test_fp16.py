"""Half precision: what overflows is found, named and left in float32; what is too far off is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from compiler.passes import fp16
from penstock.errors import CompileError, ConfigError
from tests.compiler.passes import build, graphs
from tests.factories import onnx_model

node = helper.make_node


def chain(*factors: float, kind: str = "Mul") -> onnx.ModelProto:
    """x times one factor after another, with a layer behind."""
    nodes, constants, name = [], {}, "x"
    for index, factor in enumerate(factors):
        constants[f"f{index}"] = np.array(factor, np.float32)
        nodes.append(node(kind, [name, f"f{index}"], [f"t{index}"], name=f"step{index}"))
        name = f"t{index}"
    constants["w"] = build.floats(4, 3)
    nodes.append(node("MatMul", [name, "w"], ["y"], name="layer"))
    return build.model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 3]})


def test_inputs_and_outputs_stay_float32_and_weights_halve(tmp_path: Path) -> None:
    source = graphs.encoder()
    made, result = build.apply(fp16.run, source, tmp_path)
    assert [value.type.tensor_type.elem_type for value in made.graph.output] == [TensorProto.FLOAT]
    assert result.facts["weight_bytes_after"] < 0.55 * result.facts["weight_bytes_before"]
    feeds = {"ids": np.arange(14).reshape(2, 7), "mask": np.array([[1] * 7, [1] * 4 + [0] * 3])}
    (expected,) = ReferenceEvaluator(source).run(None, feeds)
    np.testing.assert_allclose(build.answer(made, feeds)["logits"], expected, atol=0.01)
    np.testing.assert_allclose(ReferenceEvaluator(made).run(None, feeds)[0], expected, atol=0.02)


def test_a_value_that_overflows_keeps_its_operators_in_float32(tmp_path: Path) -> None:
    source = chain(1e3, 1e3, 1e-6)
    made, result = build.apply(fp16.run, source, tmp_path)
    assert list(result.facts["kept_float32"]) == ["step1", "step2"]
    assert "t1 reaches" in result.facts["kept_float32"]["step1"]
    x = {"x": build.floats(5, 4)}
    np.testing.assert_allclose(build.answer(made, x)["y"], build.answer(source, x)["y"], rtol=0.01, atol=0.01)


def test_between_two_kept_operators_there_is_no_half_precision(tmp_path: Path) -> None:
    """onnxruntime's converter casts down and up again there, and the value becomes infinite after all."""
    made, _ = build.apply(fp16.run, chain(1e3, 1e3, 1e-6), tmp_path)
    nodes = {n.name: n for n in made.graph.node}
    assert nodes["step2"].input[0] == nodes["step1"].output[0]


def test_an_input_that_is_too_large_goes_straight_to_its_reader(tmp_path: Path) -> None:
    source = chain(1e-6)
    examples = [{"x": 1e6 * build.floats(5, 4)}]
    made, result = build.apply(fp16.run, source, tmp_path, examples=examples)
    assert list(result.facts["kept_float32"]) == ["step0"]
    np.testing.assert_allclose(
        build.answer(made, examples[0])["y"], build.answer(source, examples[0])["y"], rtol=0.02, atol=0.01
    )


def test_a_constant_beyond_the_range_is_not_cut_off_in_silence(tmp_path: Path) -> None:
    source = chain(1e6, 1e-6)
    made, result = build.apply(fp16.run, source, tmp_path)
    assert "step0" in result.facts["kept_float32"]
    x = {"x": build.floats(5, 4)}
    np.testing.assert_allclose(build.answer(made, x)["y"], build.answer(source, x)["y"], rtol=0.01, atol=0.01)


def test_there_is_headroom_for_values_that_examples_do_not_show(tmp_path: Path) -> None:
    source = chain(1.0, 1e-3, 1.0)
    _, result = build.apply(fp16.run, source, tmp_path, examples=[{"x": np.full((2, 4), 40_000, np.float32)}])
    assert list(result.facts["kept_float32"]) == ["step0", "step1"]


def test_a_mask_written_as_the_lowest_number_keeps_nothing_in_float32(tmp_path: Path) -> None:
    """Otherwise every softmax of a transformer would stay behind."""
    made, result = build.apply(fp16.run, graphs.encoder(layers=1), tmp_path)
    assert len(result.facts["masks"]) == 1
    assert result.facts["kept_float32"] == {}
    feeds = {"ids": np.arange(10).reshape(2, 5), "mask": np.array([[1, 1, 0, 0, 0], [1] * 5])}
    assert np.isfinite(build.answer(made, feeds)["logits"]).all()


def test_bounds_of_a_clip_do_not_count_as_values(tmp_path: Path) -> None:
    nodes = [node("Clip", ["x", "low", "high"], ["c"]), node("MatMul", ["c", "w"], ["y"])]
    low, high = (np.array(sign * np.finfo(np.float32).max, np.float32) for sign in (-1, 1))
    source = build.model(nodes, {"low": low, "high": high, "w": build.floats(4, 3)}, {"x": ["n", 4]}, {"y": ["n", 3]})
    _, result = build.apply(fp16.run, source, tmp_path)
    assert (result.facts["kept_float32"], result.facts["masks"]) == ({}, [])


def test_too_large_an_error_is_refused_with_the_difference(tmp_path: Path) -> None:
    # 1 + x - 1: half precision has three digits behind the one, and x is smaller
    nodes = [node("Add", ["x", "one"], ["a"]), node("Sub", ["a", "one"], ["y"])]
    source = build.model(nodes, {"one": np.array(1000, np.float32)}, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(CompileError, match=r"fp16: output 'y' is off by 0\.\d+ where the largest value is"):
        build.apply(fp16.run, source, tmp_path)
    _, result = build.apply(fp16.run, source, tmp_path, {"max_error": 1.0})
    assert result.facts["largest_difference"] > 0.02


def test_an_overflow_that_only_the_conversion_shows_names_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp16, "_keep_overflows", lambda *arguments: None)
    with pytest.raises(CompileError, match="output 'y' overflows half precision, beginning at Mul 'step1'"):
        build.apply(fp16.run, chain(1e3, 1e3, 1e-6), tmp_path)


def test_operators_and_nodes_can_be_left_in_float32(tmp_path: Path) -> None:
    source = chain(2.0, 3.0)
    _, result = build.apply(fp16.run, source, tmp_path, keep_float=frozenset({"step1"}))
    assert result.facts["kept_float32"] == {"step1": "sent back to float"}
    made, result = build.apply(fp16.run, source, tmp_path, {"float32_operators": ["Mul"]})
    assert result.facts["half_nodes"] == 1
    assert build.constants(made)["f0"].dtype == np.float32


def test_operators_that_the_model_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="float32_operators names 'Softmax', and the model has none; it has MatMul"):
        build.apply(fp16.run, chain(2.0), tmp_path, {"float32_operators": ["Softmax"]})


def test_nothing_to_convert_is_an_error(tmp_path: Path) -> None:
    source = onnx_model([node("Add", ["x", "x"], ["y"])], inputs={"x": ["n"]}, outputs={"y": ["n"]}, ints=("x", "y"))
    with pytest.raises(CompileError, match="fp16: nothing was converted"):
        build.apply(fp16.run, source, tmp_path)


@pytest.mark.parametrize("max_error", [0, 1.5, "little"])
def test_an_error_that_cannot_be(tmp_path: Path, max_error: object) -> None:
    with pytest.raises(ConfigError, match="pass fp16: option 'max_error'"):
        build.apply(fp16.run, chain(2.0), tmp_path, {"max_error": max_error})
