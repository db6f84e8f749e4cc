"""Which of two models is faster, from calls made in turns, and how far the clock that says so can be trusted.

Pure. A machine does other things meanwhile, and speeds up and slows down: only calls of the same round are compared,
the rounds are put into blocks, and the interval is that of the median over blocks, which takes nothing for granted
about how times are distributed. What it cannot see is where a model happened to lie in memory, which stays as it is for
all rounds; so one model is loaded twice, and what it seems to gain on itself is no gain of another one either.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Speedup

Floats = NDArray[np.float64]

_BLOCKS = 20
_LEVEL = 0.01


def speedup(parent: Floats, candidate: Floats) -> Speedup:
    """Compare two models by their calls in the same rounds.

    Args:
        parent: seconds [R] of one call a round, R >= 1.
        candidate: the same.

    The interval is the exact one for a median, from order statistics (David and Nagaraja, Order Statistics, 7.1).
    """
    blocks = min(len(parent), _BLOCKS)
    pairs = zip(np.array_split(parent, blocks), np.array_split(candidate, blocks), strict=True)
    ratios = np.sort([float(np.median(one) / np.median(other)) for one, other in pairs])
    rank = _rank(blocks)
    return Speedup(
        value=_rounded(float(np.median(ratios))), low=_rounded(ratios[rank]), high=_rounded(ratios[blocks - 1 - rank])
    )


def noise(twin: Speedup) -> float:
    """Return how much faster than itself a model may seem, at least 1, from its comparison with a copy of itself."""
    return max(twin.high, _rounded(1 / twin.low), 1.0)


def _rank(count: int) -> int:
    """Return how many of ``count`` sorted values lie outside the interval at either end."""
    rank, tail = 0, 2.0**-count
    while tail + math.comb(count, rank + 1) * 2.0**-count <= _LEVEL / 2:
        rank += 1
        tail += math.comb(count, rank) * 2.0**-count
    return rank


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.4g}")
