"""Tensors inside a graph: types, sizes, values; and that no more of the graph is run than they need."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from compiler.graph import probe
from compiler.graph.onnx_libraries import ort, session_options
from tests.compiler import small_models as small


def test_values_inside_are_the_models() -> None:
    trained = small.mlp("wine")
    opened = probe.Probe(trained.model, ["x", "h0", "logits"])
    found = opened.run({"x": trained.test})
    np.testing.assert_array_equal(found["x"], trained.test)
    assert (found["h0"] >= 0).all()
    np.testing.assert_allclose(found["logits"], small.run(trained.model, trained.test), rtol=1e-5, atol=1e-5)


def test_counts_leave_the_graph_instead_of_tensors() -> None:
    found = probe.element_counts(small.mlp("wine").model, ["x", "z0", "logits"], {"x": small.mlp("wine").test[:5]})
    assert found == {"x": 65, "z0": 160, "logits": 15}


def test_only_what_a_tensor_needs_is_kept() -> None:
    kept = probe.pruned(small.mlp("wine").model, ["h0"])
    assert [node.name for node in kept.graph.node] == ["fc0", "relu0"]
    assert {tensor.name for tensor in kept.graph.initializer} == {"w0", "b0"}


def test_what_a_subgraph_captures_is_kept() -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["a", "c"], ["inner"])], "b", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch),
        helper.make_node("Neg", ["a"], ["unused"]),
    ]
    model = small.graph(nodes, {"c": np.ones(3, np.float32)}, x=["n", 3], y=["n", 3])
    kept = probe.pruned(model, ["logits"])
    assert [node.op_type for node in kept.graph.node] == ["Relu", "ReduceMax", "Cast", "If"]
    x = np.array([[1, -2, 3]], np.float32)
    assert probe.Probe(model, ["logits"]).run({"x": x})["logits"].tolist() == [[2, 1, 4]]


def test_types_are_known_behind_other_domains_and_stale_notes_are_gone() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("Cast", ["g"], ["i"], to=TensorProto.INT64),
        helper.make_node("Relu", ["g"], ["logits"]),
    ]
    model = small.graph([helper.make_node("Relu", ["x"], ["logits"])], {}, x=["n", 3], y=["n", 3])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("gone", TensorProto.INT8, [1]))
    found = probe.typed(model)
    assert found == {
        "x": TensorProto.FLOAT,
        "g": TensorProto.FLOAT,
        "i": TensorProto.INT64,
        "logits": TensorProto.FLOAT,
    }
    assert {value.name for value in model.graph.value_info} == {"g", "i"}


def test_threads_of_a_session_do_not_spin_between_calls() -> None:
    options = session_options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
