"""By how much a score is expected to keep more than the others, on the same examples, with an interval.

Pure; the only randomness is a seed. A score that was learnt is one look more at the examples that choose: that it comes
out ahead by luck has to be ruled out, or the graph of a variant is changed for nothing. So the examples are drawn again
and again with replacement, all scores are judged on each draw (each by its own threshold, the others by the best of
them there), and the difference counts only where it is above 0 in all but 5% of the draws (paired percentile bootstrap:
Efron and Tibshirani, An Introduction to the Bootstrap, 13.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

_DRAWS = 400
_LEAST_DRAWS = 100
_NUMBERS_AT_ONCE = 4_000_000
_MOST_NUMBERS = 80_000_000
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Coverage that a score adds to the best of the others, a share of all examples; 5% of draws are below ``low``, and
    5% above ``high``.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Examples that keep a promise of their own.

    Attributes:
        rows: bool [N], which they are.
        allowed: share of them that may be kept and harmful.
    """

    rows: Rows
    allowed: float


def gain(
    learned: Floats,
    others: Mapping[str, Floats],
    harmful: Rows,
    parts: Sequence[Part],
    *,
    clusters: NDArray[np.integer] | None = None,
) -> Gain:
    """Compare one score [N] with the best of others on the same examples.

    Args:
        harmful: bool [N].
        parts: the groups that each keep the promise; one of all rows without groups.
        clusters: integers [N], equal for examples that belong together: they are drawn together, and each cluster
            counts once. None where every example is one of its own.
    """
    whole = np.arange(len(learned)) if clusters is None else clusters
    _, member, sizes = np.unique(whole, return_inverse=True, return_counts=True)
    ours, theirs = _Ranked.of(learned, harmful, parts), [_Ranked.of(one, harmful, parts) for one in others.values()]
    differences = np.concatenate(
        [
            ours.coverage(weights) - np.max([one.coverage(weights) for one in theirs], axis=0)
            for drawn in (np.ones((1, len(sizes))), *_draws(len(sizes)))
            for weights in ((drawn / sizes)[:, member],)
        ]
    )
    low, high = np.quantile(differences[1:], [0.05, 0.95])
    return Gain(value=float(differences[0]), low=float(low), high=float(high))


def _draws(n: int) -> Iterator[Floats]:
    """Yield how often each of n is drawn [draws, n], a few draws at a time."""
    source = np.random.default_rng(_SEED)
    left = max(_LEAST_DRAWS, min(_DRAWS, _MOST_NUMBERS // n))
    while left > 0:
        count = min(left, max(1, _NUMBERS_AT_ONCE // n))
        drawn = source.integers(0, n, (count, n))
        yield np.stack([np.bincount(one, minlength=n) for one in drawn]).astype(np.float64)
        left -= count


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranked:
    """Examples in the order in which a threshold that falls keeps them.

    Attributes:
        order: the examples with a score, the surest first.
        ends: places in ``order`` behind which a threshold can be: equal scores are kept together.
        harmful: bool [ordered], of each part.
        members: bool [ordered], of each part.
        allowed: of each part.
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    harmful: Sequence[Rows]
    members: Sequence[Rows]
    allowed: Sequence[float]

    @classmethod
    def of(cls, scores: Floats, harmful: Rows, parts: Sequence[Part]) -> _Ranked:
        order = np.argsort(-scores, kind="stable")
        order = order[~np.isnan(scores[order])]
        ordered = scores[order]
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(order) else np.empty(0, np.int64)
        return cls(
            order=order,
            ends=ends,
            harmful=[(harmful & part.rows)[order] for part in parts],
            members=[part.rows for part in parts],
            allowed=[part.allowed for part in parts],
        )

    def coverage(self, weights: Floats) -> Floats:
        """Return the share kept [draws] at the lowest threshold that every part allows, for weights [draws, N]."""
        if not len(self.ends):
            return np.zeros(len(weights))
        ordered = weights[:, self.order]
        passed = np.full(len(weights), len(self.ends))
        for harmful, members, allowed in zip(self.harmful, self.members, self.allowed, strict=True):
            harm = np.cumsum(ordered * harmful, axis=1)[:, self.ends]
            most = allowed * weights[:, members].sum(axis=1, keepdims=True)
            passed = np.minimum(passed, np.count_nonzero(harm <= most + 1e-9, axis=1))
        kept = np.cumsum(ordered, axis=1)[:, self.ends]
        at = kept[np.arange(len(weights)), np.maximum(passed, 1) - 1]
        return np.asarray(np.where(passed > 0, at, 0.0) / weights.sum(axis=1))
