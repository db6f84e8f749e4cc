"""Observers against numpy on all values at once: the order and size of batches must not matter, nor the magnitude."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compiler.calibration.observers import Extremes, Histogram, Magnitudes
from penstock.errors import CalibrationError

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
VALUES = arrays.arrays(np.float32, st.integers(1, 200), elements=FLOATS)
CUTS = st.lists(st.integers(0, 200), max_size=6)


def parts(values: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    """Split at arbitrary places, empty parts among them, in another order."""
    return np.split(values, sorted(cuts))[::-1]


def within_a_bin(found: float, expected: float) -> bool:
    return abs(found - expected) <= abs(expected) / 128 + 1e-38


@given(VALUES, CUTS)
def test_extremes_are_exact_however_the_values_are_cut(values: np.ndarray, cuts: list[int]) -> None:
    seen = Extremes("t")
    for part in parts(values, cuts):
        seen.observe(part)
    assert (seen.low, seen.high, seen.count) == (float(values.min()), float(values.max()), values.size)


@pytest.mark.parametrize(("bad", "what"), [(np.nan, "1 NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_no_range_can_hold_is_refused_with_the_tensors_name(bad: float, what: str, dtype: type) -> None:
    values = np.zeros((3, 4), dtype)
    values[1, 2] = bad
    with pytest.raises(CalibrationError, match=rf"tensor 'conv7_out' has {what}"):
        Extremes("conv7_out").observe(values)


@settings(max_examples=60)
@given(VALUES, CUTS, st.floats(0, 1))
def test_quantiles_are_numpys_within_a_bin(values: np.ndarray, cuts: list[int], share: float) -> None:
    seen = Magnitudes()
    for part in parts(values, cuts):
        seen.observe(part)
    low = float(np.quantile(values, share, method="lower"))
    high = float(np.quantile(values, share, method="higher"))
    assert seen.quantile(share, outward=-1) <= low
    assert seen.quantile(share, outward=1) >= high
    assert within_a_bin(seen.quantile(share, outward=-1), low)
    assert within_a_bin(seen.quantile(share, outward=1), high)


def test_one_outlier_costs_the_other_values_no_resolution() -> None:
    values = np.append(np.random.default_rng(0).normal(size=100_000), 1e9).astype(np.float32)
    seen = Magnitudes()
    seen.observe(values)
    assert within_a_bin(seen.quantile(0.99, outward=1), float(np.quantile(values, 0.99)))


def test_half_precision_is_observed_too() -> None:
    seen = Magnitudes()
    seen.observe(np.array([[0.5, -2.0], [65504.0, 0.0]], np.float16))
    assert seen.quantile(0, outward=-1) == pytest.approx(-2, rel=0.01)
    assert seen.quantile(1, outward=1) == pytest.approx(65504, rel=0.01)


def test_quantiles_of_magnitudes_leave_zeros_out() -> None:
    seen = Magnitudes()
    assert seen.nonzero_quantile(0.99) == 0
    seen.observe(np.array([0, -0.0, 0, 0, -8, 4], np.float32))
    assert seen.nonzero_quantile(0) == pytest.approx(4, rel=0.01)
    assert seen.nonzero_quantile(1) == pytest.approx(8, rel=0.01)


@given(VALUES, CUTS, st.floats(1e-3, 1e3))
def test_histogram_counts_every_value_but_zeros_once(values: np.ndarray, cuts: list[int], limit: float) -> None:
    seen, whole = Histogram(limit, 64), Histogram(limit, 64)
    for part in parts(values, cuts):
        seen.observe(part)
    whole.observe(values)
    assert seen.counts.tolist() == whole.counts.tolist()
    assert seen.counts.sum() + seen.beyond == np.count_nonzero(values)


def test_histogram_is_numpys() -> None:
    values = np.random.default_rng(1).normal(size=(50, 40)).astype(np.float32)
    seen = Histogram(2.0, 100)
    seen.observe(values)
    expected, _ = np.histogram(np.abs(values.astype(np.float64)), bins=100, range=(0, 2.0))
    assert seen.counts.tolist() == expected.tolist()
    assert seen.beyond == np.count_nonzero(np.abs(values) > 2)


def test_blocks_do_not_change_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=5000).astype(np.float32)
    whole, cut = Magnitudes(), Magnitudes()
    whole.observe(values)
    monkeypatch.setattr("compiler.calibration.observers._BLOCK", 7)
    cut.observe(values)
    assert [whole.quantile(q / 50, outward=1) for q in range(51)] == [
        cut.quantile(q / 50, outward=1) for q in range(51)
    ]
