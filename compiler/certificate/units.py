"""What is counted of the certifying examples at every threshold, and which thresholds pass: by example or by cluster.

Pure. Independent examples are coins, and the test is the exact binomial one. Examples that belong together are one
cluster: clusters are what is independent, so each counts once, with the share of its own examples that are kept and
harmful; the test is ``compiler.certificate.betting`` on these shares, and the promise is over clusters. A cluster's
share only grows as the threshold falls, as a count does: what passes, passes up to some threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.betting import best_bet, clusters_at_rate, log_growth, mean_interval, upper_mean
from compiler.certificate.binomial import allowed_harm, clopper_pearson, samples_at_rate, upper_bound
from compiler.certificate.columns import CertifyData, counts_at, differ, harmful

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
        passed: how many thresholds pass in a row, from the strictest.
    """

    name: str
    n: int
    delta: float
    harm: NDArray[np.int64]
    kept: NDArray[np.int64]
    coverage: Floats
    passed: int


def part(data: CertifyData, rows: Rows, grid: Floats, max_harm: float, delta: float, *, name: str = "") -> Part:
    """Count ``rows`` of the examples at each threshold of ``grid``, strictest first, and test them at ``delta``."""
    harms = harmful(data) & rows
    if data.clusters is None:
        n = int(np.count_nonzero(rows))
        harm, kept = counts_at(grid, data.scores, harms), counts_at(grid, data.scores, rows)
        passes = harm <= allowed_harm(n, max_harm, delta)
        coverage = kept / n
    else:
        clusters = _Clusters.of(data, data.clusters, rows)
        n = clusters.n
        harm, kept = clusters.touched_at(grid, harms), clusters.touched_at(grid, rows)
        passes = clusters.log_wealth_at(grid, harms, best_bet(n, max_harm, delta), max_harm) >= math.log(1 / delta)
        coverage = clusters.mean_at(grid, rows)
    return Part(
        name=name,
        n=n,
        delta=delta,
        harm=harm,
        kept=kept,
        coverage=coverage,
        passed=int(np.argmin(np.append(passes, False))),  # up to the first that is not rejected
    )


def predicted(data: CertifyData, rows: Rows, grid: Floats, max_harm: float, delta: float, *, certifying: int) -> int:
    """Predict how many thresholds will pass in a row on ``certifying`` others that are like ``rows``."""
    harms = harmful(data) & rows
    if data.clusters is None:
        allowed = max(0, allowed_harm(certifying, max_harm, delta)) / certifying
        within = counts_at(grid, data.scores, harms) <= allowed * np.count_nonzero(rows)
    else:
        clusters, bet = _Clusters.of(data, data.clusters, rows), best_bet(certifying, max_harm, delta)
        growth = clusters.log_wealth_at(grid, harms, bet, max_harm) / clusters.n
        within = certifying * growth >= math.log(1 / delta)
    return int(np.argmin(np.append(within, False)))


def count(rows: int, groups: NDArray[np.str_] | None, clusters: NDArray[np.integer] | None) -> dict[str, int]:
    """Count what is tested in each group: examples, or clusters that have one there; "" is the name without groups."""
    names = np.full(rows, "") if groups is None else groups
    members = np.arange(rows) if clusters is None else clusters
    return {name: len(np.unique(members[names == name])) for name in np.unique(names).tolist()}


def harm_at(data: CertifyData, grid: Floats) -> Floats:
    """Return the share that is kept and harmful at each threshold: of examples, or on average over clusters."""
    return _shares_at(data, grid, harmful(data))


def coverage_at(data: CertifyData, grid: Floats) -> Floats:
    """Return the share that is kept at each threshold: of examples, or on average over clusters."""
    return _shares_at(data, grid, np.full(len(data.scores), True))


def coverage_interval(found: Part, at: int, delta: float, *, has_clusters: bool) -> tuple[float, float]:
    """Compute a two-sided interval at 1 - delta for the share kept at one threshold."""
    if has_clusters:
        return mean_interval(float(found.coverage[at]), found.n, delta)
    return clopper_pearson(int(found.kept[at]), found.n, delta)


def disagreement_bound(data: CertifyData, threshold: float, level: float) -> float:
    """Compute an upper bound at 1 - level on P(kept and edge != cloud): of examples, or on average over clusters."""
    differs, at = differ(data), np.array([threshold])
    if data.clusters is None:
        return upper_bound(int(counts_at(at, data.scores, differs)[0]), len(data.scores), level)
    clusters = _Clusters.of(data, data.clusters, np.full(len(data.scores), True))
    return upper_mean(float(clusters.mean_at(at, differs)[0]), clusters.n, level)


def needed(data: CertifyData, found: Part, at: int, grid: Floats, max_harm: float) -> int | None:
    """Find how many examples or clusters would pass at the harm of one threshold; None where no number would."""
    if data.clusters is None:
        return samples_at_rate(int(found.harm[at]), found.n, max_harm, found.delta)
    rows = np.full(len(data.scores), True) if not found.name or data.groups is None else data.groups == found.name
    clusters = _Clusters.of(data, data.clusters, rows)
    return clusters_at_rate(clusters.shares(harmful(data) & rows, float(grid[at])), max_harm, found.delta)


def _shares_at(data: CertifyData, grid: Floats, among: Rows) -> Floats:
    if data.clusters is None:
        return np.asarray(counts_at(grid, data.scores, among) / len(data.scores))
    return _Clusters.of(data, data.clusters, np.full(len(data.scores), True)).mean_at(grid, among)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Clusters:
    """The clusters of some rows.

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
    def of(cls, data: CertifyData, clusters: NDArray[np.integer], rows: Rows) -> _Clusters:
        names, member, sizes = np.unique(clusters[rows], return_inverse=True, return_counts=True)
        whole = np.zeros(len(rows), dtype=np.intp)  # of the other rows nothing is asked
        whole[rows] = member
        return cls(n=len(names), scores=data.scores.astype(np.float64), member=whole, sizes=sizes)

    def touched_at(self, grid: Floats, among: Rows) -> NDArray[np.int64]:
        """Count the clusters with one or more kept rows of ``among`` at each threshold."""
        highest = np.full(self.n, np.nan)
        np.fmax.at(highest, self.member[among], self.scores[among])
        return counts_at(grid, highest, None)

    def mean_at(self, grid: Floats, among: Rows) -> Floats:
        """Average over clusters the share of their rows that are kept and of ``among``, at each threshold."""
        order, member = self._from_strictest(among)
        return np.round(self._upto(grid, order, 1 / self.sizes[member]) / self.n, 12)  # thirds make one whole again

    def log_wealth_at(self, grid: Floats, harms: Rows, bet: float, max_harm: float) -> Floats:
        """Compute log W of the clusters' shares of harm at each threshold.

        Going down the thresholds, each harmful row takes its cluster's share from k / size to (k + 1) / size: the sum
        is kept up row by row, so no table of clusters by thresholds is made.
        """
        order, member = self._from_strictest(harms)
        sizes, before = self.sizes[member], _counted(member)
        change = log_growth((before + 1) / sizes, bet, max_harm) - log_growth(before / sizes, bet, max_harm)
        none = self.n * float(log_growth(np.zeros(1), bet, max_harm)[0])
        return none + self._upto(grid, order, change)

    def shares(self, among: Rows, threshold: float) -> Floats:
        """Return each cluster's share of rows that are kept at ``threshold`` and of ``among``."""
        kept = among & (self.scores >= threshold)
        return np.bincount(self.member[kept], minlength=self.n) / self.sizes

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


def _counted(member: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return for each entry how many equal ones come before it."""
    by_member = np.argsort(member, kind="stable")
    ordered = member[by_member]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.intp)
    lengths = np.diff(np.append(starts, len(ordered)))
    counted = np.empty(len(member), dtype=np.intp)
    counted[by_member] = np.arange(len(member)) - np.repeat(starts, lengths)
    return counted
