"""Casts keep what a value means, or are refused by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from compiler.data import untrusted
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec, numpy_dtype

NUMBERS = ("UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "FP32", "FP64", "BOOL")


@given(
    array=hn.arrays(
        st.sampled_from([np.int64, np.float64, np.float32, np.uint8, np.bool_]), st.integers(1, 8), fill=st.nothing()
    ),
    datatype=st.sampled_from(NUMBERS),
)
def test_a_cast_keeps_every_value_or_is_refused(array: Any, datatype: str) -> None:
    try:
        done = untrusted.cast(array, datatype, field="x")
    except InvalidInput:
        return
    assert done.dtype == numpy_dtype(datatype)
    if done.dtype.kind == "f":
        expected = array.astype(np.float64)
        np.testing.assert_allclose(
            done.astype(np.float64),
            expected,
            rtol=float(np.finfo(done.dtype).eps),
            atol=float(np.finfo(done.dtype).tiny),
        )
    else:
        assert done.tolist() == [int(value) for value in array.tolist()]


@pytest.mark.parametrize(
    ("array", "datatype", "message"),
    [
        (np.array([1.0, 1e300]), "FP32", r"x: row 1 holds 1e\+300, which FP32 cannot hold"),
        (np.array([1, 70000]), "FP16", "row 1 holds 70000, which FP16"),
        (np.array([[1.0, 2.0], [3.0, 0.5]]), "INT64", "row 1 holds 0.5, which INT64 cannot hold"),
        (np.array([0, 256]), "UINT8", "row 1 holds 256"),
        (np.array([-1]), "UINT64", "row 0 holds -1"),
        (np.array([2.0**63]), "INT64", "row 0 holds 9.22"),
        (np.array([0, 1, 2]), "BOOL", "row 2 holds 2"),
        (np.array([1.0, np.nan]), "FP32", "NaN or infinite values in 1 rows, first row 1"),
        (np.array(["a"]), "FP32", r"holds text, but the model takes FP32; give it numbers, or set data.text"),
        (np.array([1 + 2j]), "FP32", "holds complex128, but the model takes FP32; give it numbers"),
        (np.array([0.5]), "BYTES", "holds float64, expected words or whole numbers"),
        (np.array(["a", None], object), "BYTES", "row 1 holds None, expected text; write a word of your own"),
        (np.array(["a", np.nan], object), "BYTES", "row 1 holds nan, expected text; write a word of your own"),
        (np.array([["a", "b"], ["c", 1.5]], object), "BYTES", r"row 1, column 1 holds 1.5 \(float\), expected text"),
        (np.array([["a", b"\xff"]], object), "BYTES", "row 0, column 1 holds 'utf-8' codec can't decode byte 0xff"),
        (np.array([b"a", b"\xff"]), "BYTES", "row 1 holds 'utf-8' codec can't decode byte 0xff"),
        (np.array(["a", "\ud800"]), "BYTES", r"row 1 holds 'utf-8' codec can't encode character '\\ud800'"),
    ],
)
def test_what_cannot_be_held_is_named(array: Any, datatype: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        untrusted.cast(array, datatype, field="x")


def test_rows_take_the_inputs_shape() -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 1, 2, 2))
    done = untrusted.fitted(np.arange(8.0).reshape(2, 4), spec, field="t:x")
    assert done.shape == (2, 1, 2, 2)
    assert done[1].ravel().tolist() == [4, 5, 6, 7]
    with pytest.raises(InvalidInput, match=r"t:x: 3 values a row, but input 'x' takes \[1, 2, 2\] \(4 values\)"):
        untrusted.fitted(np.zeros((2, 3)), spec, field="t:x")


def test_text_may_be_bytes_words_or_whole_numbers() -> None:
    assert untrusted.text(np.array([b"a", "b"], object), field="x").tolist() == ["a", "b"]
    assert untrusted.text(np.array([3, 4]), field="x").tolist() == ["3", "4"]
    assert untrusted.text(np.array([b"gr\xc3\xbcn"]), field="x").tolist() == ["grün"]


def test_words_take_no_more_room_than_they_need() -> None:
    words = np.array(["a", "b" * 1000], object)
    done = untrusted.cast(words.astype(np.str_), "BYTES", field="x")
    assert (done.dtype, done.tolist()) == (object, words.tolist())
    assert untrusted.cast(np.array(["a\0"], object), "BYTES", field="x").tolist() == ["a\0"]
