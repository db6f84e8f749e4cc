"""Which range follows from what was seen; the entropy search against a direct search with scipy's divergence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from compiler.calibration import ranges
from compiler.calibration.observers import Extremes, Histogram, Magnitudes
from compiler.calibration.ranges import Range

VALUES = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32))


def observed(values: np.ndarray) -> tuple[Extremes, Magnitudes, Histogram]:
    values = np.asarray(values, np.float32)
    extremes, magnitudes = Extremes("t"), Magnitudes()
    extremes.observe(values)
    magnitudes.observe(values)
    histogram = Histogram(ranges.entropy_limit(extremes, magnitudes), ranges.ENTROPY_BINS)
    histogram.observe(values)
    return extremes, magnitudes, histogram


def of(values: np.ndarray, calibrator: str, *, percent: float = 99.99, symmetric: bool = False) -> Range:
    extremes, magnitudes, histogram = observed(values)
    if calibrator == "minmax":
        return ranges.minmax(extremes)
    if calibrator == "percentile":
        return ranges.percentile(extremes, magnitudes, percent)
    return ranges.entropy(extremes, histogram, symmetric=symmetric)


@settings(max_examples=50)
@given(VALUES, st.sampled_from(["minmax", "percentile", "entropy"]), st.booleans())
def test_every_range_holds_zero_and_no_more_than_was_seen(values: np.ndarray, calibrator: str, symmetric: bool) -> None:
    found = of(values, calibrator, symmetric=symmetric)
    assert min(0, float(values.min())) <= found.low <= 0 <= found.high <= max(0, float(values.max()))


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros(50), Range(low=0, high=0)),
        (np.full(50, 5.0), Range(low=0, high=5)),
        (np.full(50, -0.25), Range(low=-0.25, high=0)),
        (np.array([3.0]), Range(low=0, high=3)),
        (np.array([-3.0, 4.0]), Range(low=-3, high=4)),
    ],
)
def test_constant_tensors(values: np.ndarray, expected: Range, calibrator: str) -> None:
    assert of(values, calibrator) == expected


def test_percentile_is_numpys_within_a_bin() -> None:
    values = np.random.default_rng(0).standard_t(3, size=200_000).astype(np.float32)
    found = of(values, "percentile", percent=99.9)
    low, high = np.percentile(values, [0.05, 99.95])
    assert found.low == pytest.approx(low, rel=1 / 100)
    assert found.high == pytest.approx(high, rel=1 / 100)


def test_hundredth_percentile_is_minmax() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert of(values, "percentile", percent=100) == of(values, "minmax")


def searched(values: np.ndarray, levels: int) -> float:
    """The best threshold for values >= 0 by trying every one, with numpy's histogram and scipy's divergence."""
    _, _, histogram = observed(values)
    nonzero = values[(values > 0)].astype(np.float64)
    counts, edges = np.histogram(nonzero, bins=ranges.ENTROPY_BINS, range=(0, histogram.limit))
    best = (np.inf, 0.0)
    for end in range(len(counts), levels, -4):
        reference = counts[:end].astype(float)
        reference[-1] += np.count_nonzero(nonzero > edges[-1]) + counts[end:].sum()
        rounded = np.zeros(end)
        for bins in np.split(np.arange(end), np.arange(1, levels) * end // levels):
            filled = bins[reference[bins] > 0]
            if len(filled):
                rounded[filled] = counts[bins].sum() / len(filled)
        rounded = np.maximum(rounded / max(rounded.sum(), 1), 1e-10 * (reference > 0))
        best = min(best, (float(stats.entropy(reference, rounded)), edges[end]))
    return best[1]


@pytest.mark.parametrize("seed", range(2))
def test_entropy_agrees_with_a_direct_search(seed: int) -> None:
    values = np.maximum(np.random.default_rng(seed).standard_t(4, size=5_000), 0).astype(np.float32)
    found = of(values, "entropy")
    assert found.low == 0
    assert found.high == pytest.approx(searched(values, 255), rel=1e-6)


def test_entropy_keeps_all_of_a_flat_distribution_and_cuts_a_thin_tail() -> None:
    source = np.random.default_rng(0)
    flat = source.uniform(-1, 1, 50_000)
    assert of(flat, "entropy").high > 0.99
    tailed = np.append(source.normal(size=50_000), [40.0, -50.0])
    found = of(tailed, "entropy")
    assert 3 < found.high < 20
    assert -20 < found.low < -3


def test_entropy_sees_through_a_value_a_million_times_the_others() -> None:
    values = np.append(np.random.default_rng(0).normal(size=50_000), 1e6)
    assert of(values, "entropy").high < 50


def test_entropy_keeps_the_side_that_is_short() -> None:
    """GELU: never below -0.17, however far above."""
    x = np.random.default_rng(0).normal(size=50_000)
    values = x * stats.norm.cdf(x)
    found = of(values, "entropy")
    assert found.low == pytest.approx(float(values.min()), rel=1e-6)


def test_symmetric_integers_have_half_the_levels_and_so_cut_no_less() -> None:
    values = np.abs(np.random.default_rng(3).standard_t(3, size=50_000))
    assert of(values, "entropy", symmetric=True).high <= 1.05 * of(values, "entropy").high
