"""Dividing: every row once, by content and seed alone, equal rows on one side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.data import splitting

SHARES = {"fit": 0.2, "tune": 0.2, "certify": 0.4, "test": 0.2}
KEYS = st.lists(st.integers(0, 30).map(lambda n: n.to_bytes(2, "little")), min_size=1, max_size=120)


@given(keys=KEYS, seed=st.integers(0, 2**60))
def test_every_row_is_in_exactly_one_split(keys: list[bytes], seed: int) -> None:
    dealt = splitting.deal(keys, SHARES, seed=seed)
    assert list(dealt) == list(SHARES)
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == list(range(len(keys)))
    assert all((np.diff(rows) > 0).all() for rows in dealt.values())


@given(keys=KEYS, seed=st.integers(0, 2**60))
def test_equal_rows_stay_together(keys: list[bytes], seed: int) -> None:
    dealt = splitting.deal(keys, SHARES, seed=seed)
    sides = [{keys[row] for row in rows} for rows in dealt.values()]
    assert sum(len(side) for side in sides) == len(set(keys))


@given(keys=KEYS, seed=st.integers(0, 2**60), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(keys: list[bytes], seed: int, shuffle: object) -> None:
    other = sorted(keys)
    shuffle.shuffle(other)  # type: ignore[attr-defined]
    one, two = (splitting.deal(some, SHARES, seed=seed) for some in (keys, other))
    for name in SHARES:
        assert sorted(keys[row] for row in one[name]) == sorted(other[row] for row in two[name])


@given(rows=st.integers(1, 400), seed=st.integers(0, 99))
def test_different_rows_are_dealt_to_the_row(rows: int, seed: int) -> None:
    keys = [n.to_bytes(4, "little") for n in range(rows)]
    dealt = splitting.deal(keys, SHARES, seed=seed)
    for name, share in SHARES.items():
        assert abs(len(dealt[name]) - share * rows) <= 1


def test_a_seed_is_one_division_and_another_seed_another() -> None:
    keys = [n.to_bytes(4, "little") for n in range(200)]
    first = splitting.deal(keys, SHARES, seed=1)["certify"].tolist()
    assert first == splitting.deal(keys, SHARES, seed=1)["certify"].tolist()
    assert first != splitting.deal(keys, SHARES, seed=2)["certify"].tolist()


def test_the_division_is_the_same_on_every_machine_and_in_every_version() -> None:
    """Golden: another division is another certificate from the same recipe."""
    keys = [n.to_bytes(4, "little") for n in range(12)]
    dealt = splitting.deal(keys, SHARES, seed=0)
    assert {name: rows.tolist() for name, rows in dealt.items()} == GOLDEN


GOLDEN = {"fit": [0, 10], "tune": [4, 6, 11], "certify": [1, 2, 5, 7, 8], "test": [3, 9]}


@given(keys=KEYS)
def test_keys_of_their_own_are_all_different_and_remember_their_row(keys: list[bytes]) -> None:
    own = splitting.own_keys(keys)
    assert len(set(own)) == len(keys)
    assert [key[:2] for key in own] == keys


def test_rows_are_equal_by_all_inputs_and_nothing_else() -> None:
    x = np.array([[1, 2], [1, 2], [1, 2], [2, 1]], np.float32)
    words = np.array(["a", "a", "b", "a"], dtype=object)
    keys = splitting.row_keys({"x": x, "w": words})
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert splitting.row_keys({"w": words, "x": x}) == keys


def test_text_that_runs_over_into_the_next_input_is_another_row() -> None:
    one = splitting.row_keys({"a": np.array(["xy"], object), "b": np.array(["z"], object)})
    assert one != splitting.row_keys({"a": np.array(["x"], object), "b": np.array(["yz"], object)})


def test_rows_of_two_splits_are_found_with_their_places() -> None:
    assert splitting.shared_rows([b"a", b"b", b"c"], [b"c", b"x", b"a", b"c"]) == [(0, 2), (2, 0)]
    assert splitting.shared_rows([b"a"], [b"b"]) == []


@pytest.mark.parametrize("copies", [2, 50])
def test_a_split_misses_its_share_by_no_more_than_half_its_largest_group(copies: int) -> None:
    keys = [n.to_bytes(4, "little") for n in range(100) for _ in range(copies)]
    for seed in range(5):
        dealt = splitting.deal(keys, SHARES, seed=seed)
        for name, share in SHARES.items():
            assert abs(len(dealt[name]) - share * len(keys)) <= copies
