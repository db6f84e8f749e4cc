"""What a graph takes: sizes are fixed by name or by input, and a frozen batch is freed only where the graph works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.graph import interface
from compiler.recipe.shapes_section import Buckets, Shapes
from penstock.errors import ConfigError
from tests.compiler import small_models as small
from tests.factories import onnx_model

W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def frozen(nodes: Sequence[onnx.NodeProto], rows: int = 1, **constants: np.ndarray) -> onnx.ModelProto:
    return small.graph(nodes, {"w": W, **constants}, x=[rows, 2, 2], y=[rows, 3])


def flattened(shape: Sequence[int]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["logits"], name="product"),
    ]
    return frozen(nodes, rows=shape[0], shape=np.array(shape, np.int64))


def shapes(model: onnx.ModelProto) -> list[list[int | str]]:
    return [
        [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]


@pytest.mark.parametrize("shape", [[1, 4], [1, -1], [2, 4]])
def test_a_batch_in_a_constant_shape_is_freed_with_it(shape: list[int]) -> None:
    model = flattened(shape)
    before = model.SerializeToString()
    freed = interface.with_free_batch(model, seed=0)
    assert freed is not None
    assert shapes(freed) == [["batch", 2, 2], ["batch", 3]]
    x = np.random.default_rng(1).standard_normal((5, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(small.run(freed, x), x.reshape(5, 4) @ W, rtol=1e-4)
    assert model.SerializeToString() == before, "the model itself was changed"


def test_a_batch_is_not_freed_where_the_graph_takes_one_row_only() -> None:
    token = [
        helper.make_node("Concat", ["x", "token"], ["longer"], axis=2, name="class_token"),
        helper.make_node("ReduceMean", ["longer"], ["mean"], axes=[1], keepdims=0, name="mean"),
        helper.make_node("Identity", ["mean"], ["logits"], name="out"),
    ]
    model = frozen(token, token=np.ones((1, 2, 1), np.float32))
    assert interface.with_free_batch(model, seed=0) is None


def test_a_batch_is_not_freed_where_rows_change_each_others_answers() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1, name="over_the_batch"),
        helper.make_node("Add", ["x", "mean"], ["centred"], name="add"),
        helper.make_node("Reshape", ["centred", "shape"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["logits"], name="product"),
    ]
    assert interface.with_free_batch(frozen(nodes, shape=np.array([1, 4])), seed=0) is None


def test_what_has_no_frozen_batch_is_left_alone() -> None:
    free = small.graph([helper.make_node("MatMul", ["x", "w"], ["logits"])], {"w": W}, x=["n", 4], y=["n", 3])
    assert interface.frozen_batch(free) == 0
    assert interface.with_free_batch(free, seed=0) is None
    state = onnx_model([helper.make_node("Identity", ["x"], ["logits"])], inputs={"x": [1, 3], "state": [2, 1, 8]})
    assert interface.frozen_batch(state) == 0


def detector() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["boxes"], name="relu")]
    return onnx_model(nodes, inputs={"x": ["n", 3, "height", None]}, outputs={"boxes": ["n", 3, "height", "w"]})


def test_sizes_are_fixed_by_the_name_of_a_dimension_or_of_an_input() -> None:
    model = detector()
    interface.with_shapes(model, {"height": 64})
    assert shapes(model) == [["n", 3, 64, ""], ["n", 3, 64, "w"]]
    model = detector()
    interface.with_shapes(model, {"x": (-1, 3, 32, 48)})
    assert shapes(model)[0] == ["n", 3, 32, 48]


def test_a_dimension_that_is_held_to_a_few_sizes_stays_open_and_is_found_wherever_it_is() -> None:
    model = detector()
    (found,) = interface.with_shapes(model, {"height": Buckets(buckets=(64, 32))})
    assert (found.name, found.sizes, found.axes) == ("height", (32, 64), (("x", 2),))
    assert shapes(model) == shapes(detector())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"n": Buckets(buckets=(1, 2))}, "model.shapes.n: dimension 0 of input 'x'; buckets are for dimensions behind"),
        ({"heigth": 64}, "no free dimension 'heigth'; did you mean 'height'"),
        ({"x": 64}, r"'x' is an input; give its shape, or .*\(height, n\) a size or sizes"),
        ({"x": Buckets(buckets=(32, 64))}, "'x' is an input; give its shape"),
        ({"y": (1, 2)}, "no input 'y'; known: .*x"),
        ({"x": (-1, 4, 32, 48)}, r"x: \[-1, 4, 32, 48\] given, but the model takes \[-1, 3, -1, -1\]"),
        ({"x": (-1, 3)}, "but the model takes"),
    ],
)
def test_sizes_that_a_model_cannot_have_are_refused(wanted: Shapes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        interface.with_shapes(detector(), wanted)
