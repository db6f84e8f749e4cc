"""Tensors as bytes: joined while they are written, and the same when they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.hosting.process_replica.tensor_bytes import lay_out, read
from penstock.hosting.rows import join
from penstock.wire.tensors import Array


def written(chunks: list[dict[str, Array]], begin_at: int = 0) -> dict[str, Array]:
    laid = lay_out(chunks, begin_at=begin_at)
    buffer = bytearray(laid.size_bytes)
    laid.write(buffer)
    return read(laid.parts, memoryview(buffer))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 100))
def test_chunks_arrive_joined_wherever_they_are_written(rows: list[int], begin_at: int) -> None:
    source = np.random.default_rng(sum(rows))
    chunks: list[dict[str, Any]] = [
        {
            "a": source.normal(size=(count, 3)).astype(np.float32),
            "b": source.integers(0, 9, size=(count,)).astype(np.int64),
            "c": source.integers(0, 2, size=(count, 2, 2)).astype(np.bool_),
            "s": np.array([[f"{n} \u00e9".encode()] for n in range(count)], dtype=object),
        }
        for count in rows
    ]
    got, expected = written(chunks, begin_at), join(chunks)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=">f4").reshape(4, 6),
        np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
        np.asfortranarray(np.arange(24, dtype=np.float64).reshape(4, 6)),
        np.float32(3).reshape(()),
        np.zeros((0, 4), np.float32),
        np.array(["text", "more"], dtype=object),
    ],
    ids=["big-endian", "strided", "column-major", "scalar", "empty", "text"],
)
def test_any_order_in_memory_is_written_as_row_major_little_endian(array: Array) -> None:
    got = written([{"x": array}])["x"]
    assert got.shape == array.shape
    as_bytes = np.array([item.encode() for item in array], dtype=object) if array.dtype == object else array
    np.testing.assert_array_equal(got, as_bytes)


def test_what_cannot_travel_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="words"):
        lay_out([{"words": np.array([5], dtype=object)}])


def test_a_part_that_lies_about_its_bytes_is_refused() -> None:
    laid = lay_out([{"x": np.zeros(4, np.float32)}])
    with pytest.raises(InvalidInput, match="raw bytes"):
        read(laid.parts, b"\0" * 12)
