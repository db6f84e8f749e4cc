"""Rows that choose, certify or test never train a student, whatever split it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.data.dataset import Split
from compiler.data.splitting import row_keys
from compiler.distill.rows import MIN_ROWS, choose
from penstock.errors import CalibrationError


def split(values: list[int], name: str = "train") -> Split:
    x = np.array(values, dtype=np.float32)[:, None]
    return Split(name=name, inputs={"x": x}, labels=np.array(values, dtype=np.int64) % 3)


@given(
    train=st.lists(st.integers(0, 60), min_size=80, max_size=200),
    tune=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    certify=st.lists(st.integers(10, 30), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_no_held_out_row_trains_or_validates(train: list[int], tune: list[int], certify: list[int], seed: int) -> None:
    held_out = (split(tune, "tune"), split(certify, "certify"))
    try:
        chosen = choose(split(train), held_out, validation=0.2, seed=seed)
    except CalibrationError:
        return
    used = np.concatenate([chosen.train, chosen.validation])
    assert sorted(used) == list(range(chosen.split.rows))
    keys = row_keys(chosen.split.inputs)
    assert not set(keys) & {key for other in held_out for key in row_keys(other.inputs)}
    assert chosen.left_out + chosen.split.rows == len(train)
    assert not {keys[row] for row in chosen.train} & {keys[row] for row in chosen.validation}


def test_rows_keep_their_labels() -> None:
    chosen = choose(split(list(range(50))), (split([3, 4]),), validation=0.2, seed=0)
    assert chosen.split.labels is not None
    assert chosen.split.labels.tolist() == [value % 3 for value in range(50) if value not in (3, 4)]
    assert chosen.left_out == 2


def test_the_validation_share_is_met_and_the_seed_decides() -> None:
    given_rows = split(list(range(1000)))
    one, other = (choose(given_rows, (), validation=0.25, seed=seed) for seed in (0, 1))
    assert abs(len(one.validation) - 250) <= 1
    assert one.validation.tolist() != other.validation.tolist()
    assert one.validation.tolist() == choose(given_rows, (), validation=0.25, seed=0).validation.tolist()


@pytest.mark.parametrize(
    ("train", "held_out"), [(list(range(MIN_ROWS - 1)), [99]), (list(range(100)), list(range(100))), ([7] * 100, [99])]
)
def test_too_few_rows_are_refused_with_the_number_needed(train: list[int], held_out: list[int]) -> None:
    with pytest.raises(CalibrationError, match="to learn from") as refused:
        choose(split(train), (split(held_out, "certify"),), validation=0.2, seed=0)
    assert refused.value.needed == MIN_ROWS
