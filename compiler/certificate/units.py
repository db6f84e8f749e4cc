"""What is counted of the certifying examples at every threshold, and which thresholds pass: by example or by cluster.

Pure. Independent examples are coins, and the test is the exact binomial one. Examples that belong together are one
cluster: clusters are what is independent, so each counts once, with the share of its own examples that are kept and
harmful; the test is ``compiler.certificate.betting`` on these shares, and the promise is over clusters. An example
whose harm is a number between 0 and 1 (``compiler.certificate.columns.Graded``) is no coin, either: it is tested as a
cluster is, of itself alone or with those that it belongs to, and a cluster's share is the average harm of its examples.
A share only grows as the threshold falls, as a count does: what passes, passes up to some threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.betting import best_bet, clusters_at_rate, log_growth, mean_interval, upper_mean
from compiler.certificate.binomial import allowed_harm, clopper_pearson, samples_at_rate, upper_bound
from compiler.certificate.columns import CertifyData, counts_at, difference, harm, harmful

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """All examples, or one group's.

    Attributes:
        name: of the group, "" for all.
        n: examples, or clusters that have an example here.
        delta: of this part's test.
        harm: how many of them are harmful [thresholds]; a cluster is, where any of its kept examples is.
        kept: how many are kept [thresholds], a cluster where any of its examples is.
        coverage: share kept [thresholds]; over clusters, the average of their shares.
        harm_mean: harm of what is kept, averaged over all [thresholds]; None where harm is counted.
        passed: how many thresholds pass in a row, from the strictest.
    """

    name: str
    n: int
    delta: float
    harm: NDArray[np.int64]
    kept: NDArray[np.int64]
    coverage: Floats
    passed: int
    harm_mean: Floats | None = None


def has_shares(data: CertifyData) -> bool:
    """Say whether what is tested are shares, and no coins."""
    return data.clusters is not None or data.graded is not None


def part(data: CertifyData, rows: Rows, grid: Floats, max_harm: float, delta: float, *, name: str = "") -> Part:
    """Count ``rows`` of the examples at each threshold of ``grid``, strictest first, and test them at ``delta``."""
    harms = harmful(data) & rows
    harm_mean = None
    if not has_shares(data):
        n = int(np.count_nonzero(rows))
        harm_count, kept = counts_at(grid, data.scores, harms), counts_at(grid, data.scores, rows)
        passes = harm_count <= allowed_harm(n, max_harm, delta)
        coverage = kept / n
    else:
        clusters = _Clusters.of(data, rows)
        n = clusters.n
        harm_count, kept = clusters.touched_at(grid, harms), clusters.touched_at(grid, rows)
        weights, bet = harm(data) * rows, best_bet(n, max_harm, delta)
        passes = clusters.log_wealth_at(grid, weights, bet, max_harm) >= math.log(1 / delta)
        coverage = clusters.mean_at(grid, rows.astype(np.float64))
        harm_mean = None if data.graded is None else clusters.mean_at(grid, weights)
    return Part(
        name=name,
        n=n,
        delta=delta,
        harm=harm_count,
        kept=kept,
        coverage=coverage,
        harm_mean=harm_mean,
        passed=int(np.argmin(np.append(passes, False))),  # up to the first that is not rejected
    )


def predicted(data: CertifyData, rows: Rows, grid: Floats, max_harm: float, delta: float, *, certifying: int) -> int:
    """Predict how many thresholds will pass in a row on ``certifying`` others that are like ``rows``."""
    if not has_shares(data):
        allowed = max(0, allowed_harm(certifying, max_harm, delta)) / certifying
        within = counts_at(grid, data.scores, harmful(data) & rows) <= allowed * np.count_nonzero(rows)
    else:
        clusters, bet = _Clusters.of(data, rows), best_bet(certifying, max_harm, delta)
        growth = clusters.log_wealth_at(grid, harm(data) * rows, bet, max_harm) / clusters.n
        within = certifying * growth >= math.log(1 / delta)
    return int(np.argmin(np.append(within, False)))


def count(rows: int, groups: NDArray[np.str_] | None, clusters: NDArray[np.integer] | None) -> dict[str, int]:
    """Count what is tested in each group: examples, or clusters that have one there; "" is the name without groups."""
    names = np.full(rows, "") if groups is None else groups
    members = np.arange(rows) if clusters is None else clusters
    return {name: len(np.unique(members[names == name])) for name in np.unique(names).tolist()}


def harm_at(data: CertifyData, grid: Floats) -> Floats:
    """Return the share that is kept and harmful at each threshold: of examples, or on average over clusters; graded
    answers by how harmful they are."""
    return _shares_at(data, grid, harm(data))


def coverage_at(data: CertifyData, grid: Floats) -> Floats:
    """Return the share that is kept at each threshold: of examples, or on average over clusters."""
    return _shares_at(data, grid, np.ones(len(data.scores)))


def coverage_interval(found: Part, at: int, delta: float, *, has_clusters: bool) -> tuple[float, float]:
    """Compute a two-sided interval at 1 - delta for the share kept at one threshold."""
    if has_clusters:
        return mean_interval(float(found.coverage[at]), found.n, delta)
    return clopper_pearson(int(found.kept[at]), found.n, delta)


def disagreement_bound(data: CertifyData, threshold: float, level: float) -> float:
    """Compute an upper bound at 1 - level on P(kept and edge != cloud): of examples, or on average over clusters; of
    graded answers on the average of how much a kept one differs."""
    differs, at = difference(data), np.array([threshold])
    if not has_shares(data):
        return upper_bound(int(counts_at(at, data.scores, differs > 0)[0]), len(data.scores), level)
    clusters = _Clusters.of(data, np.full(len(data.scores), True))
    return upper_mean(float(clusters.mean_at(at, differs)[0]), clusters.n, level)


def needed(data: CertifyData, found: Part, at: int, grid: Floats, max_harm: float) -> int | None:
    """Find how many examples or clusters would pass at the harm of one threshold; None where no number would."""
    if not has_shares(data):
        return samples_at_rate(int(found.harm[at]), found.n, max_harm, found.delta)
    rows = np.full(len(data.scores), True) if not found.name or data.groups is None else data.groups == found.name
    clusters = _Clusters.of(data, rows)
    return clusters_at_rate(clusters.shares(harm(data) * rows, float(grid[at])), max_harm, found.delta)


def _shares_at(data: CertifyData, grid: Floats, weights: Floats) -> Floats:
    if not has_shares(data):
        return np.asarray(counts_at(grid, data.scores, weights > 0) / len(data.scores))
    return _Clusters.of(data, np.full(len(data.scores), True)).mean_at(grid, weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Clusters:
    """The clusters of some rows; a row that belongs to none is one of its own.

    Attributes:
        n: how many.
        scores: float64 [N] of all rows; NaN is never kept.
        member: the number of each row's cluster [N], counted from 0 among these.
        sizes: rows of each cluster [n].
    """

    n: int
    scores: Floats
    member: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, data: CertifyData, rows: Rows) -> _Clusters:
        clusters = np.arange(len(rows)) if data.clusters is None else data.clusters
        names, member, sizes = np.unique(clusters[rows], return_inverse=True, return_counts=True)
        whole = np.zeros(len(rows), dtype=np.intp)  # of the other rows nothing is asked
        whole[rows] = member
        return cls(n=len(names), scores=data.scores.astype(np.float64), member=whole, sizes=sizes)

    def touched_at(self, grid: Floats, among: Rows) -> NDArray[np.int64]:
        """Count the clusters with one or more kept rows of ``among`` at each threshold."""
        highest = np.full(self.n, np.nan)
        np.fmax.at(highest, self.member[among], self.scores[among])
        return counts_at(grid, highest, None)

    def mean_at(self, grid: Floats, weights: Floats) -> Floats:
        """Average over clusters the average weight [N] of their rows, 0 for those that are not kept, at each
        threshold."""
        order, member = self._from_strictest(weights > 0)
        mean = self._upto(grid, order, weights[order] / self.sizes[member]) / self.n
        return np.round(mean, 12)  # thirds make one whole again

    def log_wealth_at(self, grid: Floats, harms: Floats, bet: float, max_harm: float) -> Floats:
        """Compute log W of the clusters' shares of harm [N] at each threshold.

        Going down the thresholds, each harmful row adds its harm / size to its cluster's share: the sum is kept up row
        by row, so no table of clusters by thresholds is made.
        """
        order, member = self._from_strictest(harms > 0)
        sizes, added = self.sizes[member], harms[order]
        before = _summed_before(member, added)
        change = log_growth((before + added) / sizes, bet, max_harm) - log_growth(before / sizes, bet, max_harm)
        none = self.n * float(log_growth(np.zeros(1), bet, max_harm)[0])
        return none + self._upto(grid, order, change)

    def shares(self, weights: Floats, threshold: float) -> Floats:
        """Return each cluster's average weight [N] of its rows, 0 for those that are not kept at ``threshold``."""
        kept = np.where(self.scores >= threshold, weights, 0.0)  # NaN is not kept
        rows = kept > 0
        return np.asarray(np.bincount(self.member[rows], weights=kept[rows], minlength=self.n) / self.sizes)

    def _from_strictest(self, among: Rows) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows that can be kept by falling score, and their clusters."""
        rows = np.flatnonzero(among & ~np.isnan(self.scores))
        order = rows[np.argsort(-self.scores[rows], kind="stable")]
        return order, self.member[order]

    def _upto(self, grid: Floats, order: NDArray[np.intp], values: Floats) -> Floats:
        """Sum the values of the rows that are kept at each threshold; ``order`` is theirs, by falling score."""
        ascending = self.scores[order][::-1]
        kept = len(order) - np.searchsorted(ascending, grid, side="left")
        return np.asarray(np.concatenate([[0.0], np.cumsum(values)])[kept])


def _summed_before(member: NDArray[np.intp], added: Floats) -> Floats:
    """Return for each entry what was added to the same member before it."""
    by_member = np.argsort(member, kind="stable")
    ordered, values = member[by_member], added[by_member]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.intp)
    lengths = np.diff(np.append(starts, len(ordered)))
    before = np.cumsum(values) - values
    summed = np.empty(len(member), dtype=np.float64)
    summed[by_member] = np.maximum(before - np.repeat(before[starts], lengths), 0.0)
    return summed
