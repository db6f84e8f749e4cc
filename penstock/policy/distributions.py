"""How a column of numbers is distributed, in few bins, and how far two such distributions are apart.

A reference chooses the bins: by its quantiles, or by its values where there are few. What comes later is counted in the
same bins, so that comparing costs the same however much came. Bounded: a column is at most ``MAX_BINS`` counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 12
_QUANTILES = 10
_FEW_VALUES = 10
_SMOOTHING = 0.5  # of a row in each bin: a bin that is empty on one side says little, and not infinity
_DEVIATIONS = 5.0  # how far beyond what chance explains; many columns are looked at, again and again

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a reference.

    Attributes:
        name: of the feature.
        edges: upper bounds of the bins but the last, inclusive, ascending; where ``is_few``, the values themselves.
        is_few: whether bins are single values, and the last but one all others.
        counts: rows in each bin; the last one has what is no number.
    """

    name: str
    edges: tuple[float, ...]
    is_few: bool
    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Count the rows."""
        return sum(self.counts)


def described(name: str, values: Numbers) -> Column:
    """Choose bins for a column, and count it in them."""
    finite = values[np.isfinite(values)]
    distinct = np.unique(finite)
    if len(distinct) <= _FEW_VALUES:
        column = Column(name=name, edges=tuple(distinct.tolist()), is_few=True, counts=())
    else:
        inner = np.unique(np.quantile(finite, np.linspace(0, 1, _QUANTILES + 1)[1:-1]))
        column = Column(name=name, edges=tuple(inner.tolist()), is_few=False, counts=())
    counts = tuple(binned(column, values).tolist())
    return Column(name=name, edges=column.edges, is_few=column.is_few, counts=counts)


def binned(column: Column, values: Numbers) -> NDArray[np.int64]:
    """Count values in a column's bins."""
    bins = len(column.edges) + 2  # one beyond the last edge, and one for what is no number
    places = np.full(len(values), bins - 1)
    is_finite = np.isfinite(values)
    edges = np.asarray(column.edges)
    found = np.searchsorted(edges, values[is_finite], side="left")
    if column.is_few and len(edges):
        is_one = edges[np.minimum(found, len(edges) - 1)] == values[is_finite]
        found = np.where(is_one, found, bins - 2)
    places[is_finite] = found
    return np.bincount(places, minlength=bins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far what came is from a reference.

    Attributes:
        psi: population stability index: below 0.1 is taken for nothing, above 0.2 for a shift.
        kl: Kullback-Leibler divergence of what came from the reference, in nats.
        by_chance: the PSI that as many rows of the reference itself would hardly ever pass.
        rows: that came.
    """

    psi: float
    kl: float
    by_chance: float
    rows: int

    def is_shift(self, limit: float) -> bool:
        """Say whether it is above a limit, and above what chance explains."""
        return self.psi > max(limit, self.by_chance)


def distance(reference: Sequence[int], came: Sequence[int]) -> Distance:
    """Compare counts in the same bins.

    Without a shift, PSI / (1/n + 1/m) is about chi-squared with one degree less than there are bins (Yurdakul and
    Naranjo, 2020), which says what chance explains.
    """
    rows, of = sum(came), sum(reference)
    if not rows or not of:
        return Distance(psi=0.0, kl=0.0, by_chance=math.inf, rows=rows)
    used = [(r, c) for r, c in zip(reference, came, strict=True) if r or c]
    total_r, total_c = of + _SMOOTHING * len(used), rows + _SMOOTHING * len(used)
    shares = [((r + _SMOOTHING) / total_r, (c + _SMOOTHING) / total_c) for r, c in used]
    degrees = max(1, len(used) - 1)
    return Distance(
        psi=sum((c - r) * math.log(c / r) for r, c in shares),
        kl=sum(c * math.log(c / r) for r, c in shares),
        by_chance=(1 / rows + 1 / of) * (degrees + _DEVIATIONS * math.sqrt(2 * degrees)),
        rows=rows,
    )
