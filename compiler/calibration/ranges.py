"""From what was observed of a tensor to the range that its integers cover: min-max, percentile, or entropy.

Pure. Every range holds zero, because padding and ReLU need it to be exact. Values outside of a range are clipped when
the model runs; a narrower range leaves more steps for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compiler.calibration.observers import Extremes, Histogram, Magnitudes

Calibrator = Literal["minmax", "percentile", "entropy"]

ENTROPY_BINS = 2048
"""Bins of the histogram that entropy searches; what the method's paper uses."""

ENTROPY_REACH = 16.0
"""The largest threshold that entropy looks at, in multiples of the magnitude below which 99% of the non-zero values
lie. Its bins are equal, so that a value a thousand times the others would leave those in two bins, where every
threshold looks alike; distributions without such values end well before."""

_STRIDE = 4
"""Thresholds are tried at every fourth bin: a fifth of a percent of the range, at a quarter of the time."""

_STEPS = 255
_TINY = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """``low`` <= 0 <= ``high``: the values that the integers of a tensor stand for."""

    low: float
    high: float


def minmax(extremes: Extremes) -> Range:
    """Take everything that was seen."""
    return _with_zero(extremes.low, extremes.high)


def percentile(extremes: Extremes, magnitudes: Magnitudes, percent: float) -> Range:
    """Leave out (100 - ``percent``) / 2 percent of the values on each side; never more, and up to a
    bin (1/128) less."""
    cut = (100 - percent) / 200
    low = max(extremes.low, magnitudes.quantile(cut, outward=-1))
    high = min(extremes.high, magnitudes.quantile(1 - cut, outward=1))
    return _with_zero(low, high)


def entropy_limit(extremes: Extremes, magnitudes: Magnitudes) -> float:
    """Return the largest threshold that :func:`entropy` looks at, and the limit of the histogram that it needs."""
    return min(max(abs(extremes.low), abs(extremes.high)), ENTROPY_REACH * magnitudes.nonzero_quantile(0.99))


def entropy(extremes: Extremes, histogram: Histogram, *, symmetric: bool) -> Range:
    """Choose the range whose integers lose the least information about the values, by Kullback-Leibler divergence.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for every threshold the clipped distribution is
    compared with itself rounded to as many levels as the integers have on one side of zero.

    Args:
        symmetric: the integers' range will be as wide below zero as above it.
    """
    whole = minmax(extremes)
    if histogram.limit <= 0 or not histogram.counts.any():
        return whole
    bins = len(histogram.counts)
    width = histogram.limit / bins
    best, chosen = np.inf, bins
    for end in range(bins, _STEPS // 2, -_STRIDE):  # the widest first, which then wins a tie
        threshold = end * width
        span = 2 * threshold if symmetric else min(threshold, whole.high) + min(threshold, -whole.low)
        levels = round(_STEPS * threshold / span)
        if levels > end:
            break  # fewer bins than levels: rounding loses nothing, and the comparison says nothing
        divergence = _divergence(histogram.counts, histogram.beyond, end, levels)
        if divergence < best:
            best, chosen = divergence, end
    threshold = chosen * width
    return _with_zero(max(whole.low, -threshold), min(whole.high, threshold))


def _divergence(counts: NDArray[np.int64], beyond: int, end: int, levels: int) -> float:
    """Return the KL divergence of the first ``end`` bins, all that is beyond them in the last, from their ``levels``
    roundings.
    """
    kept = counts[:end].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[end:].sum() + beyond
    filled = reference > 0
    starts = np.arange(levels) * end // levels
    sums, holders = np.add.reduceat(kept, starts), np.add.reduceat(filled.astype(np.float64), starts)
    of_bin = np.repeat(np.arange(levels), np.diff(np.append(starts, end)))
    rounded = (sums / np.maximum(holders, 1))[of_bin]
    if not sums.any():
        return float(np.inf)
    p = reference[filled] / reference.sum()
    q = np.maximum(rounded[filled] / kept.sum(), _TINY)
    return float(np.sum(p * np.log(p / q)))


def _with_zero(low: float, high: float) -> Range:
    return Range(low=min(low, 0.0), high=max(high, 0.0))
