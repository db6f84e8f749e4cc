"""The optimize pass: what every model becomes before anything else, and that its answers stay."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import quantization as ortq

from compiler.graph import equivalence, names, rewrite
from compiler.passes import optimize
from penstock.errors import CompileError, ConfigError
from tests.compiler.passes import build, graphs
from tests.factories import onnx_model

node = helper.make_node


def linear(**changes: Any) -> onnx.ModelProto:
    nodes = [node("Gemm", ["x", "w", "b"], ["z"]), node("Relu", ["z"], ["y"])]
    constants = {"w": build.floats(4, 3), "b": build.floats(3)}
    return build.model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 3]}, **changes)


# --- what it does


def test_an_old_model_gets_an_opset_with_scales_per_channel(tmp_path: Path) -> None:
    made, result = build.apply(optimize.run, linear(opset=9), tmp_path)
    assert result.facts["opset"] >= 13
    assert made.ir_version >= 8


def test_weights_that_old_exporters_list_as_inputs_become_constants(tmp_path: Path) -> None:
    source = linear()
    source.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    made, _ = build.apply(optimize.run, source, tmp_path)
    assert [value.name for value in made.graph.input] == ["x"]


def test_stale_shapes_of_an_exporter_are_dropped_so_that_quantizers_work(tmp_path: Path) -> None:
    source = linear()
    source.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 77]))
    made, _ = build.apply(optimize.run, source, tmp_path, {"gemm_to_matmul": True})
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.value_info}
    assert all(77 not in shape for shape in shapes.values())
    onnx.save(made, tmp_path / "made.onnx")
    ortq.quantize_dynamic(str(tmp_path / "made.onnx"), str(tmp_path / "int8.onnx"))  # fails on stale shapes


def test_constants_are_folded_and_dead_parts_dropped(tmp_path: Path) -> None:
    nodes = [
        node("Add", ["a", "b"], ["c"]),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["c", "two"], ["d"]),
        node("Mul", ["x", "d"], ["y"]),
        node("Relu", ["x"], ["nobody reads this"]),
    ]
    constants = {"a": build.floats(4), "b": build.floats(4, seed=1), "unused": build.floats(9)}
    made, result = build.apply(optimize.run, build.model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path)
    assert build.kinds(made) == ["Mul"]
    (folded,) = build.constants(made).values()
    np.testing.assert_allclose(folded, 2 * (constants["a"] + constants["b"]), rtol=1e-6)
    assert (result.facts["nodes_before"], result.facts["nodes_after"]) == (5, 1)


def test_every_node_has_a_name_of_its_own_that_repeats(tmp_path: Path) -> None:
    twice = [build.apply(optimize.run, graphs.encoder(), tmp_path)[0] for _ in range(2)]
    first, second = ([n.name for n in made.graph.node] for made in twice)
    assert first == second
    assert all(first)
    assert len(set(first)) == len(first)


def test_paths_of_the_exporting_machine_are_removed(tmp_path: Path) -> None:
    source = linear()
    source.graph.node[0].doc_string = "/home/somebody/train.py(12)"
    made, _ = build.apply(optimize.run, source, tmp_path)
    assert b"somebody" not in made.SerializeToString()


def test_only_operators_of_onnx_come_out_and_the_reference_evaluator_agrees(tmp_path: Path) -> None:
    source = graphs.encoder()
    made, result = build.apply(optimize.run, source, tmp_path)
    assert {entry.domain for entry in made.opset_import} == {""}
    assert result.facts["onnxslim"] == "applied"
    assert "LayerNormalization" in build.kinds(made)  # it was spelt out in eight operators
    feeds = {"ids": np.arange(14).reshape(2, 7), "mask": np.array([[1] * 7, [1] * 4 + [0] * 3])}
    (expected,) = ReferenceEvaluator(source).run(None, feeds)
    np.testing.assert_allclose(ReferenceEvaluator(made).run(None, feeds)[0], expected, atol=1e-5)
    np.testing.assert_allclose(build.answer(made, feeds)["logits"], expected, atol=1e-5)


def test_free_dimensions_stay_free(tmp_path: Path) -> None:
    made, _ = build.apply(optimize.run, graphs.encoder(), tmp_path)
    for rows, length in ((1, 3), (5, 11)):
        feeds = {"ids": np.zeros((rows, length), np.int64), "mask": np.ones((rows, length), np.int64)}
        assert build.answer(made, feeds)["logits"].shape == (rows, 3)


def test_subgraphs_and_what_they_capture_survive(tmp_path: Path) -> None:
    def branch(kind: str) -> onnx.GraphProto:
        body = helper.make_node(kind, ["h", "w"], ["out"])
        return helper.make_graph([body], kind, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])

    nodes = [
        node("Relu", ["x"], ["h"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("Add")),
    ]
    constants = {"w": build.floats(4), "zero": np.array(0, np.float32)}
    source = build.model(nodes, constants, {"x": ["n", 4]}, {"y": ["n", 4]})
    made, _ = build.apply(optimize.run, source, tmp_path)
    for sign in (1, -1):
        feeds = {"x": sign * np.ones((2, 4), np.float32)}
        np.testing.assert_array_equal(build.answer(made, feeds)["y"], build.answer(source, feeds)["y"])


# --- Gemm as MatMul and Add


@pytest.mark.parametrize("turned", list(itertools.product([0, 1], [0, 1])))
@pytest.mark.parametrize("scaled", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("bias", ["none", "row", "scalar", "full"])
@pytest.mark.parametrize("is_constant", [True, False])
def test_every_form_of_gemm_is_split(
    turned: tuple[int, int], scaled: tuple[float, float], bias: str, is_constant: bool
) -> None:
    shapes = {"x": (4, 5) if turned[0] else (5, 4), "w": (3, 4) if turned[1] else (4, 3)}
    biases: dict[str, tuple[int, ...]] = {"row": (3,), "scalar": (), "full": (5, 3)}
    if bias != "none":
        shapes["c"] = biases[bias]
    arrays = {name: np.asarray(build.floats(*shape, seed=index)) for index, (name, shape) in enumerate(shapes.items())}
    attributes = {"transA": turned[0], "transB": turned[1], "alpha": scaled[0], "beta": scaled[1]}
    gemm = node("Gemm", list(arrays), ["y"], name="gemm", **attributes)
    fixed = {name: value for name, value in arrays.items() if is_constant and name != "x"}
    given = {name: value for name, value in arrays.items() if name not in fixed}
    source = build.model([gemm], fixed, {name: list(value.shape) for name, value in given.items()}, {"y": [5, 3]})
    (expected,) = ReferenceEvaluator(source).run(None, given)
    assert rewrite.gemm_to_matmul(source.graph, {}) == 1
    assert "Gemm" not in build.kinds(source)
    assert [n.op_type for n in source.graph.node if n.name == "gemm"] == ["MatMul"]
    onnx.checker.check_model(source, full_check=True)
    np.testing.assert_allclose(ReferenceEvaluator(source).run(None, given)[0], expected, rtol=1e-5, atol=1e-6)
    if is_constant and not turned[0]:
        assert set(build.kinds(source)) <= {"MatMul", "Add"}  # constants took the rest


def test_gemm_in_a_subgraph_is_split_too() -> None:
    body = helper.make_graph(
        [node("Gemm", ["x", "w"], ["out"], transB=1)], "b", [], [helper.make_tensor_value_info("out", 1, None)]
    )
    source = build.model(
        [node("If", ["c"], ["y"], then_branch=body, else_branch=body)],
        {"w": build.floats(3, 4), "c": np.array(True)},
        {"x": [2, 4]},
        {"y": [2, 3]},
    )
    feeds = {"x": build.floats(2, 4)}
    expected = build.answer(source, feeds)["y"]
    assert rewrite.gemm_to_matmul(names.named(source).graph, {}) == 2
    np.testing.assert_allclose(build.answer(source, feeds)["y"], expected, rtol=1e-6)


def test_gemm_is_kept_for_static_int8_and_split_when_asked(tmp_path: Path) -> None:
    assert "Gemm" in build.kinds(build.apply(optimize.run, linear(), tmp_path)[0])
    made, _ = build.apply(optimize.run, linear(), tmp_path, {"gemm_to_matmul": True})
    assert build.kinds(made) == ["MatMul", "Add", "Relu"]  # onnxruntime would have made it a Gemm again


# --- what it refuses


def test_a_result_that_differs_is_refused_with_the_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = optimize._by_onnxruntime

    def broken(model: onnx.ModelProto, *, keep_matmul: bool) -> onnx.ModelProto:
        made = original(model, keep_matmul=keep_matmul)
        tensor = made.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
        return made

    monkeypatch.setattr(optimize, "_by_onnxruntime", broken)
    with pytest.raises(CompileError, match=r"optimize: output 'y' is off by [\d.]+ where the largest value is"):
        build.apply(optimize.run, linear(), tmp_path)


def test_onnxslim_that_breaks_a_graph_is_not_believed(tmp_path: Path) -> None:
    """It drops the input of a Reshape whose target the caller gives."""
    reshape = node("Reshape", ["x", "shape"], ["y"])
    source = onnx_model([reshape], inputs={"x": [2, 3], "shape": [2]}, outputs={"y": [3, 2]}, ints=("shape",))
    feeds = {"x": build.floats(2, 3), "shape": np.array([3, 2])}
    made, result = build.apply(optimize.run, source, tmp_path, examples=[feeds])
    assert result.facts["onnxslim"].startswith("declined: ")
    assert [value.name for value in made.graph.input] == ["x", "shape"]


def test_onnxslim_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slim(model: onnx.ModelProto) -> onnx.ModelProto:
        raise UnboundLocalError("onnx_tensor")

    monkeypatch.setattr(optimize.onnxslim, "slim", slim)
    _, result = build.apply(optimize.run, linear(), tmp_path)
    assert result.facts["onnxslim"] == "declined: UnboundLocalError: onnx_tensor"


def test_onnxslim_that_changes_answers_is_declined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slim(model: onnx.ModelProto) -> onnx.ModelProto:
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        return model

    monkeypatch.setattr(optimize.onnxslim, "slim", slim)
    source = linear()
    made, result = build.apply(optimize.run, source, tmp_path)
    assert "declined: CompileError: onnxslim: output 'y'" in result.facts["onnxslim"]
    x = {"x": build.floats(3, 4)}
    np.testing.assert_allclose(build.answer(made, x)["y"], build.answer(source, x)["y"], atol=1e-6)


def test_a_random_model_cannot_be_checked(tmp_path: Path) -> None:
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])]
    with pytest.raises(CompileError, match="output 'y' of the model itself is random"):
        build.apply(optimize.run, build.model(nodes, {}, {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path)


def test_inputs_that_cannot_be_made_up_are_asked_for(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    source = build.model(nodes, {"shape": np.array([7, 11])}, {"x": ["n", "m"]}, {"y": [7, 11]})
    with pytest.raises(CompileError, match="no inputs of our making suit the model.*give it examples"):
        build.apply(optimize.run, source, tmp_path)
    _, result = build.apply(optimize.run, source, tmp_path, examples=[{"x": build.floats(11, 7)}])
    assert result.facts["largest_difference"] == 0


def test_a_misspelt_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass optimize: unknown option 'slimm'; did you mean 'slim'"):
        build.apply(optimize.run, linear(), tmp_path, {"slimm": True})
    with pytest.raises(ConfigError, match="pass optimize: option 'slim': Expected `bool`, got `str`"):
        build.apply(optimize.run, linear(), tmp_path, {"slim": "yes"})


# --- how answers are compared


def test_differences_are_relative_to_the_largest_value() -> None:
    left, right = np.array([100.0, 1.0], np.float32), np.array([100.0, 1.5], np.float32)
    assert equivalence.difference({"y": left}, {"y": right}).relative == pytest.approx(0.005)


@pytest.mark.parametrize(
    "found",
    [
        np.array([1.0, np.nan], np.float32),
        np.array([1.0, np.inf], np.float32),
        np.array([1.0], np.float32),
        np.array([1.0, 2.0], np.float64),
        [1.0, 2.0],
    ],
)
def test_other_shapes_types_and_lost_numbers_are_never_close(found: Any) -> None:
    assert equivalence.difference({"y": np.array([1.0, 2.0], np.float32)}, {"y": found}).relative == np.inf


def test_the_same_infinities_are_no_difference() -> None:
    value = np.array([np.inf, -np.inf, np.nan, 3.0], np.float32)
    assert equivalence.difference({"y": value}, {"y": value.copy()}).relative == 0


def test_whole_numbers_are_compared_one_by_one() -> None:
    assert equivalence.difference({"y": np.arange(4)}, {"y": np.array([0, 1, 2, 4])}).relative == 0.25
