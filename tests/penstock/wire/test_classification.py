"""Outputs as their most likely classes: order, ties, names, and what has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidInput
from penstock.wire.classification import most_likely


def told(array: Any, count: int, *, names: tuple[str, ...] = (), has_rows: bool = True) -> Any:
    return most_likely(array, count, names=names, has_rows=has_rows, field="y").tolist()


def test_the_highest_score_comes_first_and_of_equal_ones_the_lower_index() -> None:
    assert told(np.array([[1.0, 3.0, 3.0]], np.float32), 2) == [["3.000000:1", "3.000000:2"]]


def test_names_go_with_the_classes_that_have_one() -> None:
    assert told(np.array([[0, 5]], np.int64), 9, names=("cat",)) == [["5:1", "0:0:cat"]]


def test_a_score_that_is_no_number_is_the_last() -> None:
    assert told(np.array([[np.nan, -np.inf, -1.0]], np.float16), 3)[0][0] == "-1.000000:2"
    assert told(np.array([[np.nan, 0.5]], np.float64), 1) == [["0.500000:1"]]


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_whole_numbers_that_a_float_does_not_tell_apart_keep_their_order(kind: Any) -> None:
    assert told(np.array([[2**53, 2**53 + 1]], kind), 1) == [[f"{2**53 + 1}:1"]]


def test_without_a_batch_there_is_one_list() -> None:
    assert told(np.array([[1, 4], [3, 2]], np.uint8), 2, has_rows=False) == ["4:1", "3:2"]


def test_more_dimensions_than_two_are_one_list_a_row() -> None:
    assert told(np.array([[[1, 2], [3, 4]]], np.int32), 1) == [["4:3"]]


@pytest.mark.parametrize("array", [np.array([b"text"], object), np.array([True])])
def test_what_holds_no_numbers_is_refused(array: Any) -> None:
    with pytest.raises(InvalidInput, match="needs numbers"):
        told(array, 1)
