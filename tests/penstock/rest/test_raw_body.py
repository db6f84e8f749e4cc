"""Bodies without a JSON part: which shape follows from their bytes."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.errors import InvalidInput
from penstock.rest.raw_body import only_input
from penstock.wire.tensors import TensorSpec


def spec(shape: tuple[int, ...], datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("shape", "is_read_as"),
    [((-1, 2), (3, 2)), ((-1, -1), (1, 6)), ((-1, 3, -1), (1, 3, 2)), ((6,), (6,)), ((2, -1), (2, 3)), ((-1,), (6,))],
)
def test_the_free_dimension_is_what_the_bytes_give(shape: tuple[int, ...], is_read_as: tuple[int, ...]) -> None:
    array = only_input(np.arange(6, dtype=np.float32).tobytes(), [spec(shape)])["x"]
    assert array.shape == is_read_as
    assert array.ravel().tolist() == list(range(6))


@pytest.mark.parametrize("shape", [(1,), (-1, 1), (-1, -1)])
def test_a_text_is_the_whole_body(shape: tuple[int, ...]) -> None:
    array = only_input(b"\x04\x00\x00\x00text", [spec(shape, "BYTES")])["x"]
    assert array.ravel().tolist() == [b"\x04\x00\x00\x00text"]


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([spec((-1, 2)), TensorSpec(name="y", datatype="FP32", shape=(-1, 2))], "one input"),
        ([], "one input"),
        ([spec((-1, -1, -1))], "does not follow"),
        ([spec((-1, 4))], "needs 16"),
        ([spec((0, -1))], "needs 0"),
        ([spec((2,), "BYTES")], "one element"),
    ],
)
def test_what_does_not_follow_is_refused(specs: list[TensorSpec], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        only_input(b"\0" * 24, specs)
