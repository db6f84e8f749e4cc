"""Which operators are quantized: everything around convolutions, products alone around attention."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.passes import int8_plan
from tests.compiler import small_models as small

SQUARE = np.ones((8, 8), np.float32)
FILTER = np.ones((8, 8, 1, 1), np.float32)
NONE: frozenset[str] = frozenset()


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def planned(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> set[str]:
    tensors = {"w": SQUARE, "f": FILTER, **constants}
    used = {name for one in nodes for name in one.input}
    constants = {name: tensor for name, tensor in tensors.items() if name in used}
    model = small.graph(nodes, constants, x=["n", 8, 5, 5], y=["n", 8, 5, 5], output="out")
    return set(int8_plan.cpu(model.graph, keep_float=NONE).nodes)


def test_sums_pooling_and_activations_follow_convolutions() -> None:
    nodes = [
        node("Conv", "x f", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r f", "d"),
        node("Add", "d r", "s"),
        node("Sigmoid", "s", "g"),
        node("Mul", "s g", "m"),
        node("Concat", "m r", "j", axis=1),
        node("MaxPool", "j", "p", kernel_shape=[2, 2]),
        node("Conv", "p f2", "out"),
    ]
    assert planned(nodes, f2=np.ones((8, 16, 1, 1), np.float32)) == {n.name for n in nodes}


def test_only_products_with_weights_around_attention() -> None:
    nodes = [
        node("MatMul", "x w8", "q"),
        node("MatMul", "x w8", "k"),
        node("MatMul", "q k", "s"),
        node("Softmax", "s", "a"),
        node("MatMul", "a w8", "v"),
        node("Add", "v x", "r"),
        node("LayerNormalization", "r scale", "l"),
        node("MatMul", "l w8", "u"),
        node("Add", "u r", "out"),
    ]
    found = planned(nodes, w8=np.ones((5, 5), np.float32), scale=np.ones(5, np.float32))
    assert found == {"q", "k", "v", "u"}


def test_a_patch_embedding_does_not_pull_the_residual_stream_in() -> None:
    nodes = [
        node("Conv", "x f", "c"),
        node("LayerNormalization", "c scale", "l"),
        node("MatMul", "l w5", "u"),
        node("Add", "u c", "r"),
        node("Relu", "r", "h"),
        node("MatMul", "h w5", "out"),
    ]
    assert planned(nodes, w5=np.ones((5, 5), np.float32), scale=np.ones(5, np.float32)) == {"c", "u", "out"}


def test_what_comes_before_the_first_convolution_stays_float() -> None:
    nodes = [node("Mul", "x third", "s"), node("Conv", "s f", "c"), node("Relu", "c", "r"), node("Conv", "r f", "out")]
    assert planned(nodes, third=np.array(1 / 3, np.float32)) == {"c", "r", "out"}


def test_the_tail_before_an_output_stays_float() -> None:
    nodes = [node("Conv", "x f", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "out")]
    assert planned(nodes) == {"c"}


def test_weights_that_are_no_constants_or_no_matrix_are_left() -> None:
    cube = np.ones((3, 5, 5), np.float32)
    nodes = [node("MatMul", "x cube", "a"), node("MatMul", "a a", "b"), node("Conv", "b f", "out")]
    assert planned(nodes, cube=np.ones((1, 8, 5, 5), np.float32)) == {"out"}
    assert planned([node("MatMul", "w5 x", "out")], w5=cube[0]) == set()


@pytest.mark.parametrize(
    ("low", "high", "taken"), [(0, 6, True), (-1, 1, True), (1, 3, False), (-3, -1, False), (None, 6, True)]
)
def test_clips_are_taken_where_their_bounds_hold_zero(low: float | None, high: float, taken: bool) -> None:
    bounds = {"high": np.array(high, np.float32)} | ({} if low is None else {"low": np.array(low, np.float32)})
    clip = helper.make_node("Clip", ["c", "" if low is None else "low", "high"], ["k"], name="k")
    nodes = [node("Conv", "x f", "c"), clip, node("Conv", "k f", "out")]
    assert ("k" in planned(nodes, **bounds)) == taken


def test_a_clip_with_computed_bounds_is_left() -> None:
    nodes = [
        node("ReduceMin", "x", "low", keepdims=0),
        node("Conv", "x f", "c"),
        node("Clip", "c low", "k"),
        node("Conv", "k f", "out"),
    ]
    assert "k" not in planned(nodes)


def test_kept_nodes_are_not_planned() -> None:
    model = small.cnn().model
    whole = int8_plan.cpu(model.graph, keep_float=NONE)
    assert whole.products == 3
    assert int8_plan.cpu(model.graph, keep_float=frozenset({"conv1"})).nodes == tuple(
        name for name in whole.nodes if name != "conv1"
    )


@pytest.mark.parametrize(
    ("shape", "group", "taken"),
    [((16, 16, 1, 1), 1, True), ((8, 16, 1, 1), 1, False), ((16, 8, 1, 1), 1, False), ((16, 1, 1, 1), 16, True)],
)
def test_tensorrt_takes_convolutions_of_sixteen_channels(shape: tuple[int, ...], group: int, taken: bool) -> None:
    conv = helper.make_node("Conv", ["x", "f"], ["logits"], name="conv", group=group)
    model = small.graph(
        [conv], {"f": np.ones(shape, np.float32)}, x=["n", shape[1] * group, 4, 4], y=["n", shape[0], 4, 4]
    )
    assert int8_plan.tensorrt(model.graph, keep_float=NONE, shapes={}).products == taken
