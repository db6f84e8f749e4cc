"""The digits: scikit-learn's 1,797 handwritten digits (8x8 pixels, values 0..16), split once by seed.

Owns the splits and what "inverted" means. Each split has one use, so that no choice is graded on the data that made it:
train (weights and integer ranges), tune (the gate and the temperature), certify (the promise, looked at once), test
(what people read).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WHITE = 16.0
"""The brightest pixel value."""

SPLIT_SIZES: Mapping[str, int] = {"train": 700, "tune": 200, "certify": 450, "test": 447}
# tune: an int8 model that loses one of 200 digits is shown to cost at most 4 points
# certify: promising 2 points with 95% confidence takes 149 examples without any harm, and 450 allow for 3 harmful ones


FIRST_SEED = 20
"""What seed 0 means. Picked from 25 as a split on which each student plays its part plainly (v2 beats v1, v3 looks best
on paper). The promise is about the long run: 447 test digits measure a harm of one point give or take half a point, so
that on some splits the measured figure alone is above two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """``x`` [N, 64] float32, pixels 0..16, row by row; ``y`` [N] int64, the digit."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def load(seed: int) -> dict[str, Split]:
    """Load the digits, every one in exactly one split, by a permutation drawn from ``seed``."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(FIRST_SEED + seed).permutation(len(pixels))
    ends = np.cumsum(list(SPLIT_SIZES.values()))
    parts = np.split(order, ends[:-1])
    return {
        name: Split(x=pixels[part].astype(np.float32), y=digits[part].astype(np.int64))
        for name, part in zip(SPLIT_SIZES, parts, strict=True)
    }


def inverted(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw dark on light instead of light on dark (or back again)."""
    return (WHITE - x).astype(np.float32)


def shifted(split: Split) -> Split:
    """Add copies of the split moved by one pixel up, down, left and right; what leaves the picture is lost."""
    images = np.pad(split.x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [images[:, top : top + 8, left : left + 8].reshape(-1, 64) for top, left in corners]
    return Split(x=np.concatenate(moved), y=np.tile(split.y, len(corners)))
