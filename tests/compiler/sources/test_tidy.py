"""Tidying what exporters write: nothing that is computed changes, and nothing of the machine stays in the file."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from compiler.sources import tidy
from compiler.sources.equivalence import Case


def model() -> onnx.ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["inside"], doc_string="/home/me/net.py")],
        "inner",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    inner.value_info.append(helper.make_tensor_value_info("inside", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [
            helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["s7", "3", "height", 16]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["s9", "s2"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["s7", "s2", "5"])],
    )
    graph.node[0].metadata_props.add(key="stack_trace", value="/home/me/net.py:3")
    graph.value_info.append(helper.make_tensor_value_info("stale", TensorProto.FLOAT, [9]))
    made = helper.make_model(graph, doc_string="made on a Tuesday")
    made.metadata_props.add(key="path", value="/home/me")
    return made


CASE = Case(inputs={"pixel_values": np.zeros((2, 3, 8, 16)), "mask": np.ones((2, 6), dtype=bool)}, outputs={})


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_paths_traces_and_stale_shapes_go() -> None:
    tidied = model()
    tidy.tidy(tidied, CASE)
    content = tidied.SerializeToString()
    for word in (b"/home/me", b"Tuesday", b"stack_trace", b"stale"):
        assert word not in content
    inner = tidied.graph.node[0].attribute[0].g
    assert not inner.value_info
    assert [node.op_type for node in inner.node] == ["Identity"]


def test_the_batch_is_named_and_images_keep_their_size() -> None:
    tidied = model()
    tidy.tidy(tidied, CASE)
    assert shape(tidied.graph.input[0]) == ["batch", 3, 8, 16]
    assert shape(tidied.graph.input[1]) == ["batch", "s2"]
    assert shape(tidied.graph.output[0]) == ["batch", "s2", 5]
