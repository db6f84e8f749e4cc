"""Learn then Test: the lowest confidence threshold whose harm is certified, or a refusal that says what is missing.

Pure. Harm of one example at threshold t: kept (score >= t) and edge wrong and cloud right, or without labels kept and
edge != cloud. The accuracy that a cascade loses against always asking the cloud is at most E[harm].

Learn then Test (Angelopoulos et al., arXiv 2110.01052) by fixed-sequence testing: thresholds from strictest to loosest,
each with the exact binomial p-value ``P(Binomial(n, max_harm) <= harm_count)`` of "E[harm] > max_harm", each at level
delta, up to the first that is not rejected. The thresholds are fixed in advance: a grid read off the certifying data
would be a choice made by looking. The data must not have been used to fit or choose anything else.

With groups a threshold passes only if every group's own test of it does, each at the whole of delta. That is an
intersection-union test: where the promise is false at a threshold, some group breaks it there, and that group's test
alone passes with probability at most delta. So no delta is divided, and the sequence over thresholds keeps its level.
Every group then keeps the promise, all at once with probability 1 - delta; and so does any mixture of them, whatever
the shares in service turn out to be.

Examples that belong together (``CertifyData.clusters``) are no independent draws. Clusters are: the promise is then
over clusters, each counted once, and the test is one for averages of shares (``compiler.certificate.units``). So it is
where answers are graded (``CertifyData.graded``), and the harm of one is a number from 0 to 1.

Does not build the certificate document: that binds these figures to digests (``compiler.certificate.evidence.bind``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.certificate import units
from compiler.certificate.binomial import check_promise, samples_needed
from compiler.certificate.columns import CertifyData, check
from compiler.certificate.units import Part
from compiler.recipe.certificate_section import CertificateSection
from penstock import wording
from penstock.artifact.certificates import Group, Harm, Test
from penstock.errors import CalibrationError

Floats = NDArray[np.float64]

THRESHOLDS: tuple[float, ...] = tuple(
    sorted({1 - 10 ** (-k / 10) for k in range(11, 61)} | {k / 100 for k in range(91)}, reverse=True)
)
"""Strictest first: ten a decade from 1 - 1e-6 to 0.9, then steps of 0.01 down to 0. A finer grid costs nothing in
fixed-sequence testing, since harm only grows along it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """One level of the promise.

    Attributes:
        max_harm: what was asked for.
        delta: what was asked for.
        threshold: the lowest that keeps the promise.
        harm_count: examples that were kept and harmful at the threshold; of clusters, those with such an example.
        kept_count: examples that were kept at the threshold; of clusters, those with such an example.
        n: all examples, or all clusters.
        coverage: share kept; of clusters, the average of their shares.
        coverage_low: lower end of its interval at 1 - delta for this threshold (Clopper-Pearson; for clusters
            Hoeffding's). It describes: no promise rests on it, so it is not corrected for the threshold being chosen.
        coverage_high: upper end.
        audit_max_harm: bound on P(kept and edge != cloud), which an audit without labels can watch; ``max_harm`` when
            harm is disagreement. With labels it is the larger of ``max_harm`` and the upper bound (Clopper-Pearson's,
            for clusters Hoeffding's) at level delta / (number of thresholds): valid at whichever threshold the data
            chose.
        harm: what counted as harm.
        groups: evidence within each group, by name; empty for a promise over all.
        harm_mean: of graded answers, the harm of what is kept, averaged over all; else None.
    """

    max_harm: float
    delta: float
    threshold: float
    harm_count: int
    kept_count: int
    n: int
    coverage: float
    coverage_low: float
    coverage_high: float
    audit_max_harm: float
    harm: Harm
    groups: tuple[Group, ...] = ()
    harm_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A level that the data do not support.

    Attributes:
        reason: a sentence for people.
        needed: examples that would do at the harm rate seen; None where no number would.
    """

    max_harm: float
    delta: float
    reason: str
    needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """Every level of a promise.

    Attributes:
        levels: those that were certified, the default first.
        refused: those that were not.
        thresholds: the grid that was tested.
        test: which test that was.
    """

    levels: tuple[Certified, ...]
    refused: tuple[Refused, ...]
    thresholds: tuple[float, ...]
    test: Test

    @property
    def default(self) -> Certified:
        """Return the level that agents use when they are not told another."""
        return self.levels[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoveragePoint:
    """Shares of all examples: ``coverage`` kept, and ``harm`` kept with harm, at ``threshold``."""

    threshold: float
    coverage: float
    harm: float


def promise(data: CertifyData, section: CertificateSection, *, thresholds: Sequence[float] | None = None) -> Promised:
    """Certify every level of a recipe's promise: the one look at the certifying split.

    Args:
        data: with labels where ``section.harm`` needs them (where it does not, they are not looked at), and with groups
            where each of them shall keep the promise.
        thresholds: the grid, if not :data:`THRESHOLDS` (``compiler.certificate.score_choice`` makes a finer one for the
            chosen score).

    Raises:
        CalibrationError: malformed data; or the default level, the first, is refused. ``needed``: see :func:`certify`.
    """
    data = _asked_for(data, section)
    grid = _grid(thresholds)
    levels: list[Certified] = []
    refusals: list[tuple[Refused, CalibrationError]] = []
    for max_harm in section.levels:
        try:
            levels.append(certify(data, max_harm=max_harm, delta=section.level_delta, thresholds=grid.tolist()))
        except CalibrationError as error:
            refused = Refused(max_harm=max_harm, delta=section.level_delta, reason=error.message, needed=error.needed)
            refusals.append((refused, error))
    if refusals and refusals[0][0].max_harm == section.levels[0]:
        raise _default_refused(refusals[0][1], levels)
    return Promised(
        levels=tuple(levels),
        refused=tuple(refused for refused, _ in refusals),
        thresholds=tuple(grid.tolist()),
        test=which_test(data),
    )


def which_test(data: CertifyData) -> Test:
    """Say which test :func:`certify` makes of these columns."""
    if data.clusters is not None:
        return "betting-clusters"
    if data.graded is not None:
        return "betting"
    return "binomial" if data.groups is None else "binomial-each"


def certify(
    data: CertifyData,
    *,
    max_harm: float,
    delta: float,
    thresholds: Sequence[float] | None = None,
    is_delta_divided: bool = False,
) -> Certified:
    """Find the lowest threshold for which E[harm] <= max_harm holds with probability at least 1 - delta, in every
    group.

    Args:
        max_harm: promised bound on E[harm], a share of all requests (of each group's requests).
        delta: chance, over the certifying sample, that the promise does not hold.
        thresholds: the grid, if not :data:`THRESHOLDS`; chosen without looking at ``data``. Order does not matter.
        is_delta_divided: give each group delta / groups, which is valid and stricter than need be: how certificates
            were made that name no test.

    Raises:
        CalibrationError: malformed data or promise; fewer examples (of a group) than :func:`samples_needed`; or no
            threshold that keeps anything can be certified. ``needed`` is the number of examples that would do at the
            harm rate seen (of the group that needs most), None when more examples would not help.
    """
    check_promise(max_harm, delta)
    check(data)
    names = 1 if data.groups is None else len(np.unique(data.groups))
    group_delta = delta / names if is_delta_divided else delta
    check_enough(len(data.scores), data.groups, data.clusters, max_harm=max_harm, delta=delta, group_delta=group_delta)
    grid = _grid(thresholds)
    whole = units.part(data, np.full(len(data.scores), True), grid, max_harm, delta)
    parts = [whole] if data.groups is None else _parts(data, grid, max_harm, group_delta)
    chosen = min(part.passed for part in parts) - 1  # the strictest of the parts' own thresholds
    if chosen < 0 or whole.kept[chosen] == 0:
        raise _refusal(data, min(parts, key=lambda part: part.passed), grid, max_harm)
    low, high = units.coverage_interval(whole, chosen, delta, has_clusters=data.clusters is not None)
    return Certified(
        max_harm=max_harm,
        delta=delta,
        threshold=float(grid[chosen]),
        harm_count=int(whole.harm[chosen]),
        kept_count=int(whole.kept[chosen]),
        n=whole.n,
        coverage=float(whole.coverage[chosen]),
        coverage_low=low,
        coverage_high=high,
        audit_max_harm=_audit_bound(data, float(grid[chosen]), max_harm, delta / len(grid)),
        harm="disagreement" if data.labels is None else "labels",
        groups=() if data.groups is None else tuple(_group(part, grid, chosen) for part in parts),
        harm_mean=None if whole.harm_mean is None else float(whole.harm_mean[chosen]),
    )


def check_enough(
    rows: int,
    groups: NDArray[np.str_] | None,
    clusters: NDArray[np.integer] | None,
    *,
    max_harm: float,
    delta: float,
    group_delta: float | None = None,
) -> None:
    """Check that there are examples enough to certify if none of them is harmful: what is known before any is answered.

    Args:
        rows: how many examples there are, of these ``groups`` and ``clusters``.
        group_delta: of each group's test, if not ``delta``.

    Raises:
        CalibrationError: max_harm or delta is no probability; too few, of all or of a group, and how many are needed.
    """
    minimum = samples_needed(max_harm, delta)
    unit = "examples" if clusters is None else "clusters"
    promised = f"promise at most {wording.allowed(max_harm)} points of harm with {wording.confidence(delta)} confidence"
    (n,) = units.count(rows, None, clusters).values()
    if n < minimum:
        raise CalibrationError(
            f"{n} certifying {unit} are too few to {promised}: {minimum} are needed even if none of them is harmful, "
            f"{minimum - n} more than there are. Add {unit}, or promise less",
            needed=minimum,
        )
    if groups is None:
        return
    each, counts = samples_needed(max_harm, group_delta or delta), units.count(rows, groups, clusters)
    small = {name: count for name, count in counts.items() if count < each}
    if small:
        listed = ", ".join(f"{name!r} has {count}" for name, count in small.items())
        raise CalibrationError(
            f"groups are too small to {promised} in each of {len(counts)}: {listed}, and each needs {each} {unit} even "
            f"if none of them is harmful. Add {unit} of them, merge groups, or promise less",
            needed=each,
        )


def risk_coverage(data: CertifyData, thresholds: Sequence[float] | None = None) -> list[RiskCoveragePoint]:
    """Compute coverage and harm at every threshold (:data:`THRESHOLDS`), strictest first, for a report's curve.

    Raises:
        CalibrationError: malformed or empty data.
    """
    check(data)
    grid = _grid(thresholds)
    return [
        RiskCoveragePoint(threshold=float(t), coverage=float(k), harm=float(h))
        for t, k, h in zip(grid, units.coverage_at(data, grid), units.harm_at(data, grid), strict=True)
    ]


def _parts(data: CertifyData, grid: Floats, max_harm: float, delta: float) -> list[Part]:
    """Count and test every group by itself, at ``delta`` each."""
    names = np.unique(data.groups).tolist() if data.groups is not None else []
    return [units.part(data, np.asarray(data.groups == name), grid, max_harm, delta, name=name) for name in names]


def _group(part: Part, grid: Floats, chosen: int) -> Group:
    return Group(
        name=part.name,
        n=part.n,
        harm_count=int(part.harm[chosen]),
        kept_count=int(part.kept[chosen]),
        coverage=float(part.coverage[chosen]),
        threshold=float(grid[part.passed - 1]),
        harm_mean=msgspec.UNSET if part.harm_mean is None else float(part.harm_mean[chosen]),
    )


def _asked_for(data: CertifyData, section: CertificateSection) -> CertifyData:
    """Return the columns that a promise looks at, and no others."""
    if section.harm == "labels" and data.labels is None:
        raise CalibrationError('harm is counted by labels and there are none; set harm = "disagreement", or add labels')
    return replace(data, labels=data.labels if section.harm == "labels" else None)


def _default_refused(error: CalibrationError, levels: Sequence[Certified]) -> CalibrationError:
    if not levels:
        return error
    others = ", ".join(f"{level.max_harm:g}" for level in levels)
    return CalibrationError(
        f"{error.message.rstrip('.')}. That is the first level, which agents use when not told another; certified "
        f"could be {others}: name one of them first in max_harm",
        needed=error.needed,
    )


def _grid(thresholds: Sequence[float] | None) -> Floats:
    grid = np.unique(np.asarray(THRESHOLDS if thresholds is None else thresholds, dtype=np.float64))[::-1]
    if len(grid) == 0 or not (np.isfinite(grid).all() and grid[0] <= 1 and grid[-1] >= 0):
        raise CalibrationError("thresholds: expected at least one number, all between 0 and 1")
    return grid


def _audit_bound(data: CertifyData, threshold: float, max_harm: float, level: float) -> float:
    return max_harm if data.labels is None else max(max_harm, units.disagreement_bound(data, threshold, level))


def _refusal(data: CertifyData, part: Part, grid: Floats, max_harm: float) -> CalibrationError:
    """Say why the part that passes the fewest thresholds keeps nothing."""
    if not part.kept.any():
        return CalibrationError("no score reaches any threshold (are all of them NaN?); nothing can be kept")
    first = int(np.argmax(part.kept > 0))
    needed = units.needed(data, part, first, grid, max_harm)
    unit = "examples" if data.clusters is None else "clusters"
    where = f" of group {part.name!r}" if part.name else ""
    much = "" if part.harm_mean is None else f" (by {part.harm_mean[first]:.4f} on average over all)"
    found = (
        f"even at the strictest threshold that keeps anything ({grid[first]:.6g}), {part.harm[first]} of {part.n} "
        f"certifying {unit}{where} are harmful{much}, which does not show a harm of at most "
        f"{wording.allowed(max_harm)} points with {wording.confidence(part.delta)} confidence"
    )
    if needed is None:
        return CalibrationError(f"{found}. More {unit} would not help: use a better edge variant, or promise less")
    return CalibrationError(f"{found}. At this rate {needed} {unit}{where} would", needed=needed)
