"""Tensors: round trips for every datatype, and a clear refusal for bytes that do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock.errors import InvalidInput
from penstock.rest import codec as rest
from penstock.rpc import codec as rpc
from penstock.wire import tensors
from penstock.wire.inference import InferRequest
from penstock.wire.tensors import Array, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))


@given(
    st.sampled_from([d for d in tensors.DATATYPES if d != "BYTES"]).flatmap(
        lambda d: hnp.arrays(tensors.numpy_dtype(d), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4))
    )
)
def test_raw_bytes_round_trip(array: np.ndarray) -> None:
    back = tensors.from_bytes(tensors.to_bytes(array), tensors.datatype_of(array), array.shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_elements_round_trip(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    assert list(tensors.from_bytes(tensors.to_bytes(array), "BYTES", (len(items),))) == items


@given(st.binary(max_size=64), st.integers(0, 8))
def test_arbitrary_bytes_elements_are_refused_or_parsed_never_crash(data: bytes, count: int) -> None:
    try:
        parsed = tensors.from_bytes(data, "BYTES", (count,))
    except InvalidInput:
        return
    assert tensors.to_bytes(parsed) == data


def test_big_endian_arrays_travel_little_endian() -> None:
    array = np.array([1, 2], dtype=">i4")
    assert tensors.datatype_of(array) == "INT32"
    assert tensors.to_bytes(array) == np.array([1, 2], dtype="<i4").tobytes()


def test_truncated_raw_bytes_say_how_many_are_needed() -> None:
    with pytest.raises(InvalidInput, match="11 raw bytes.*needs 12"):
        tensors.from_bytes(b"\0" * 11, "FP32", (1, 3), field="x")


def test_a_huge_declared_shape_costs_no_memory() -> None:
    with pytest.raises(InvalidInput, match="cannot hold"):
        tensors.from_bytes(b"\0" * 4, "BYTES", (2**40,))


def test_negative_dimension_is_refused() -> None:
    with pytest.raises(InvalidInput, match="negative dimension"):
        tensors.from_bytes(b"", "FP32", (-1, 3))


def test_unknown_datatype_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="'FLOAT'.*FP32"):
        tensors.from_bytes(b"", "FLOAT", (1,))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"y": np.zeros((1, 3), "f4")}, "no input named 'y'.*x FP32"),
        ({}, "'x' is missing"),
        ({"x": np.zeros((1, 3), "f8")}, "datatype is FP64, expected FP32"),
        ({"x": np.zeros((1, 4), "f4")}, r"shape is \[1, 4\], expected \[-1, 3\]"),
        ({"x": np.zeros((3,), "f4")}, r"shape is \[3\]"),
        ({"x": np.zeros((0, 3), "f4")}, "no rows"),
    ],
)
def test_wrong_inputs_say_what_was_expected(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tensors.check_inputs(inputs, [X])


def test_inputs_must_agree_on_the_number_of_rows() -> None:
    specs = [X, TensorSpec(name="y", datatype="FP32", shape=(-1,))]
    with pytest.raises(InvalidInput, match="2 rows, but another input has 1"):
        tensors.check_inputs({"x": np.zeros((1, 3), "f4"), "y": np.zeros(2, "f4")}, specs)


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape)


@pytest.mark.parametrize(
    ("specs", "sent", "rows"),
    [
        ([spec("x", -1, 4), spec("state", 2, -1, 8), spec("rate")], [(3, 4), (2, 3, 8), ()], 3),
        ([spec("x", 1, 4), spec("state", 2, 1, 8)], [(1, 4), (2, 1, 8)], 1),
        ([spec("x", 4, 3), spec("y", 4)], [(4, 3), (4,)], 4),
        ([spec("rate")], [()], 1),
    ],
    ids=["a state on another axis", "one call", "a fixed batch", "a number"],
)
def test_what_is_no_batch_does_not_count_rows(specs: list[TensorSpec], sent: list[tuple[int, ...]], rows: int) -> None:
    inputs: dict[str, Array] = {one.name: np.zeros(shape, "f4") for one, shape in zip(specs, sent, strict=True)}
    assert tensors.check_inputs(inputs, specs) == rows


def test_check_inputs_counts_rows() -> None:
    assert tensors.check_inputs({"x": np.zeros((5, 3), "f4")}, [X]) == 5


def test_pack_is_deterministic_and_round_trips() -> None:
    named = {"x": np.arange(6, dtype="f4").reshape(2, 3), "y": np.array([b"a", b""], dtype=object)}
    data = tensors.pack(named)
    assert data == tensors.pack(named)
    back = tensors.unpack(data)
    np.testing.assert_array_equal(back["x"], named["x"])
    assert list(back["y"]) == [b"a", b""]


@given(st.binary(max_size=64))
def test_unpack_refuses_anything_else(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        assert isinstance(tensors.unpack(data), dict)


@pytest.mark.parametrize("item", [5, True, None, 1.5, [1], "\ud800"], ids=repr)
@pytest.mark.parametrize(
    "write",
    [
        tensors.to_bytes,
        lambda array: rpc.encode_request(InferRequest(model="m", inputs={"x": array})),
        lambda array: rest.encode_request(InferRequest(model="m", inputs={"x": array})),
        lambda array: rest.encode_request(InferRequest(model="m", inputs={"x": array}), binary=False),
    ],
    ids=["bytes", "grpc", "http", "json"],
)
def test_what_is_neither_text_nor_bytes_is_refused_by_its_place(write: Callable[[Array], object], item: object) -> None:
    """``bytes(5)`` is five zeros: such a request was answered, wrongly and without a word."""
    array = np.empty((2, 2), dtype=object)
    array[:] = b"a"
    array[1, 0] = item
    with pytest.raises(InvalidInput, match=r"\[1, 0\].*expected text or bytes"):
        write(array)


@pytest.mark.parametrize(
    ("shape", "datatype", "fits"),
    [((-1, 3), "FP32", True), ((-1, -1), "FP32", True), ((4, 3), "FP32", True), ((-1, 4), "FP32", False),
     ((-1,), "FP32", False), ((-1, 3), "FP16", False)],
)  # fmt: skip
def test_descriptions_agree_where_both_know_a_size(shape: tuple[int, ...], datatype: str, fits: bool) -> None:
    other = TensorSpec(name="x", datatype=datatype, shape=shape)
    assert tensors.is_compatible([X], [other]) is tensors.is_compatible([other], [X]) is fits


def test_descriptions_of_other_names_never_agree() -> None:
    y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
    assert not tensors.is_compatible([X], [y])
    assert not tensors.is_compatible([X, y], [X])
    assert tensors.is_compatible([X, y], [y, X])
