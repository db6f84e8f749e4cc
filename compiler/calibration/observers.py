"""What is remembered of a tensor while its values stream by: bounds, and two kinds of histogram of fixed size.

Memory does not depend on how many values there are, and the order and size of batches do not change the result:
bounds are exact, and histograms count whole numbers. Which range follows from them is ``compiler.calibration.ranges``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from penstock.errors import CalibrationError
from penstock.wire.tensors import Array

_BLOCK = 1 << 20
"""Values looked at together, which bounds the memory of temporary arrays."""

_HIGH_HALVES = 1 << 16


class Extremes:
    """Smallest and largest value, and how many there were. ``name`` is the tensor's, for errors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high, self.count = math.inf, -math.inf, 0

    def observe(self, values: Array) -> None:
        """Take in values.

        Args:
            values: floats of any shape; empty ones change nothing.

        Raises:
            CalibrationError: NaN or an infinity is in them.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())  # either is NaN if any value is
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"calibration: tensor {self.name!r} has {_what(values)}: no range holds that; remove such examples, or "
                "keep the operators that read and write this tensor in float"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size


class Magnitudes:
    """Counts by the upper 16 bits of a float32: sign, exponent and 7 bits of mantissa.

    A bin is at most 1/128 of its value wide at every magnitude, so that one outlier does not cost the resolution of
    all other values, and no range has to be known beforehand.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_HIGH_HALVES, np.int64)

    def observe(self, values: Array) -> None:
        """Take in values.

        Args:
            values: finite floats of any shape.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).ravel().view(np.uint32)
        for start in range(0, flat.size, _BLOCK):
            self._counts += np.bincount(flat[start : start + _BLOCK] >> 16, minlength=_HIGH_HALVES)

    def quantile(self, share: float, *, outward: int) -> float:
        """Return the edge of the bin of the value below which ``share`` of all lie.

        Args:
            outward: -1 for the bin's lower edge (and the rank rounded down), 1 for its upper edge (and rounded up).
        """
        counts = np.concatenate([self._counts[:0x7FFF:-1], self._counts[:0x8000]])  # the most negative first
        total = int(counts.sum())
        rank = share * (total - 1)
        rank = math.floor(rank) if outward < 0 else math.ceil(rank)
        index = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        return _edge(index, outward)

    def nonzero_quantile(self, share: float) -> float:
        """Return the upper edge of the bin of the magnitude below which ``share`` of all non-zero ones lie; 0 for
        none."""
        counts = self._counts[:0x8000] + self._counts[0x8000:]
        counts[0] = 0  # zero, and what no scale could tell from it
        total = int(counts.sum())
        if not total:
            return 0.0
        rank = math.ceil(share * (total - 1))
        index = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        return _edge(index + 0x8000, 1)


class Histogram:
    """Counts of magnitudes in equal bins over [0, ``limit``]; what is beyond is counted as ``beyond``.

    Exact zeros are left out: every range represents them exactly, and after a ReLU they would drown everything else.
    """

    def __init__(self, limit: float, bins: int) -> None:
        self.limit, self.beyond = limit, 0
        self.counts: NDArray[np.int64] = np.zeros(bins, np.int64)

    def observe(self, values: Array) -> None:
        """Take in values.

        Args:
            values: finite floats of any shape.
        """
        flat, bins = values.ravel(), len(self.counts)
        if self.limit <= 0:
            return
        for start in range(0, flat.size, _BLOCK):
            sizes = np.abs(flat[start : start + _BLOCK].astype(np.float64))
            sizes = sizes[sizes > 0]
            inside = sizes <= self.limit
            self.beyond += int(sizes.size - np.count_nonzero(inside))
            index = np.minimum((sizes[inside] * (bins / self.limit)).astype(np.int64), bins - 1)
            self.counts += np.bincount(index, minlength=bins)


def _edge(index: int, outward: int) -> float:
    """Return the lower or upper edge of a bin, by its place in ascending order of values."""
    positive = index >= 0x8000
    high = index - 0x8000 if positive else 0xFFFF - index
    away = (outward > 0) == positive  # the edge farther from zero has all lower bits set
    bits = np.array([(high << 16) | (0xFFFF if away else 0)], dtype=np.uint32)
    return float(bits.view(np.float32)[0])


def _what(values: Array) -> str:
    nans = int(np.count_nonzero(np.isnan(values)))
    return f"{nans} NaN" if nans else "infinite values"
