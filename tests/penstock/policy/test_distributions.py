from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.policy.distributions import MAX_BINS, binned, described, distance

NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)
COLUMNS = st.integers(1, 200).flatmap(lambda n: arrays(np.float64, n, elements=NUMBERS))


@given(COLUMNS, COLUMNS)
def test_every_value_is_in_one_bin_and_there_are_few(reference: np.ndarray, came: np.ndarray) -> None:
    column = described("x", reference)
    assert column.rows == len(reference)
    assert len(column.counts) <= MAX_BINS
    counts = binned(column, came)
    assert (len(counts), counts.sum()) == (len(column.counts), len(came))
    assert counts[-1] == np.sum(~np.isfinite(came))


@given(COLUMNS)
def test_a_column_is_no_distance_from_itself(values: np.ndarray) -> None:
    column = described("x", values)
    found = distance(column.counts, column.counts)
    assert found.psi == pytest.approx(0.0)
    assert found.kl == pytest.approx(0.0)
    assert not found.is_shift(0.2)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(200, 3000))
def test_rows_of_the_same_kind_are_no_shift(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    column = described("x", rng.normal(size=1000))
    assert not distance(column.counts, binned(column, rng.normal(size=rows)).tolist()).is_shift(0.2)


def test_what_moves_by_one_deviation_is_a_shift_and_its_size_is_known() -> None:
    rng = np.random.default_rng(0)
    column = described("x", rng.normal(size=20_000))
    found = distance(column.counts, binned(column, rng.normal(1.0, size=20_000)).tolist())
    assert found.psi == pytest.approx(0.93, abs=0.06)  # two normals one deviation apart are 1.0, in ten bins less
    assert found.kl == pytest.approx(0.46, abs=0.04)
    assert found.is_shift(0.2)


def test_a_value_that_was_never_there_and_what_is_no_number_are_seen() -> None:
    column = described("class", np.array([0.0, 1.0, 2.0] * 100))
    assert (column.is_few, column.edges) == (True, (0.0, 1.0, 2.0))
    assert binned(column, np.array([0.0, 1.5, 3.0, np.nan])).tolist() == [1, 0, 0, 2, 1]
    assert distance(column.counts, binned(column, np.full(300, np.nan)).tolist()).is_shift(0.2)


def test_few_rows_show_nothing() -> None:
    column = described("x", np.arange(1000.0))
    assert not distance(column.counts, binned(column, np.full(5, 999.0)).tolist()).is_shift(0.2)
    assert not distance(column.counts, [0] * len(column.counts)).is_shift(0.2)
