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

Does not build the certificate document: that binds these figures to digests (``compiler.certificate.evidence.bind``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import (
    allowed_harm,
    clopper_pearson,
    samples_at_rate,
    samples_needed,
    upper_bound,
)
from compiler.certificate.columns import CertifyData, check, counts_at, differ, harmful
from compiler.recipe.certificate_section import CertificateSection
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
        harm_count: examples that were kept and harmful at the threshold.
        kept_count: examples that were kept at the threshold.
        n: all examples.
        coverage: share kept.
        coverage_low: lower end of its Clopper-Pearson interval at 1 - delta for this threshold. It describes: no
            promise rests on it, so it is not corrected for the threshold being chosen.
        coverage_high: upper end.
        audit_max_harm: bound on P(kept and edge != cloud), which an audit without labels can watch; ``max_harm`` when
            harm is disagreement. With labels it is the larger of ``max_harm`` and the Clopper-Pearson upper bound at
            level delta / (number of thresholds): valid at whichever threshold the data chose.
        harm: what counted as harm.
        groups: evidence within each group, by name; empty for a promise over all.
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
    minimum = samples_needed(max_harm, delta)
    check(data)
    grid = _grid(thresholds)
    parts = _parts(data, grid, max_harm, delta, is_delta_divided=is_delta_divided)
    _check_sizes(parts, len(data.scores), minimum, max_harm, delta)
    chosen = min(part.passed for part in parts) - 1  # the strictest of the parts' own thresholds
    harm = np.sum([part.harm for part in parts], axis=0)
    kept = np.sum([part.kept for part in parts], axis=0)
    if chosen < 0 or kept[chosen] == 0:
        raise _refusal(min(parts, key=lambda part: part.passed), grid, max_harm)
    n = len(data.scores)
    low, high = clopper_pearson(int(kept[chosen]), n, delta)
    return Certified(
        max_harm=max_harm,
        delta=delta,
        threshold=float(grid[chosen]),
        harm_count=int(harm[chosen]),
        kept_count=int(kept[chosen]),
        n=n,
        coverage=float(kept[chosen] / n),
        coverage_low=low,
        coverage_high=high,
        audit_max_harm=_audit_bound(data, float(grid[chosen]), max_harm, delta / len(grid)),
        harm="disagreement" if data.labels is None else "labels",
        groups=() if data.groups is None else tuple(part.group(grid, chosen) for part in parts),
    )


def risk_coverage(data: CertifyData, thresholds: Sequence[float] | None = None) -> list[RiskCoveragePoint]:
    """Compute coverage and harm at every threshold (:data:`THRESHOLDS`), strictest first, for a report's curve.

    Raises:
        CalibrationError: malformed or empty data.
    """
    check(data)
    n, grid = len(data.scores), _grid(thresholds)
    harm, kept = counts_at(grid, data.scores, harmful(data)), counts_at(grid, data.scores, None)
    return [
        RiskCoveragePoint(threshold=float(t), coverage=float(k / n), harm=float(h / n))
        for t, k, h in zip(grid, kept, harm, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """All examples, or one group's.

    Attributes:
        harm: counts [thresholds].
        kept: counts [thresholds].
        passed: how many thresholds pass in a row, from the strictest.
    """

    name: str
    n: int
    delta: float
    harm: NDArray[np.int64]
    kept: NDArray[np.int64]
    passed: int

    def group(self, grid: Floats, chosen: int) -> Group:
        return Group(
            name=self.name,
            n=self.n,
            harm_count=int(self.harm[chosen]),
            kept_count=int(self.kept[chosen]),
            coverage=float(self.kept[chosen] / self.n),
            threshold=float(grid[self.passed - 1]),
        )


def _parts(data: CertifyData, grid: Floats, max_harm: float, delta: float, *, is_delta_divided: bool) -> list[_Part]:
    names = [""] if data.groups is None else np.unique(data.groups).tolist()
    harms = harmful(data)
    parts = []
    for name in names:
        rows = np.full(len(data.scores), True) if data.groups is None else data.groups == name
        n, level = int(np.count_nonzero(rows)), delta / len(names) if is_delta_divided else delta
        harm = counts_at(grid, data.scores, harms & rows)
        passed = harm <= allowed_harm(n, max_harm, level)
        parts.append(
            _Part(
                name=name,
                n=n,
                delta=level,
                harm=harm,
                kept=counts_at(grid, data.scores, rows),
                passed=int(np.argmin(np.append(passed, False))),  # up to the first that is not rejected
            )
        )
    return parts


def _check_sizes(parts: Sequence[_Part], n: int, minimum: int, max_harm: float, delta: float) -> None:
    promised = f"promise at most {100 * max_harm:g} points of harm with {100 * (1 - delta):.4g}% confidence"
    if n < minimum:
        raise CalibrationError(
            f"{n} certifying examples are too few to {promised}: {minimum} are needed even if none of them is harmful. "
            "Add examples, or promise less",
            needed=minimum,
        )
    needed = samples_needed(max_harm, parts[0].delta)
    small = [part for part in parts if part.n < needed]
    if small:
        listed = ", ".join(f"{part.name!r} has {part.n}" for part in small)
        raise CalibrationError(
            f"groups are too small to {promised} in each of {len(parts)}: {listed}, and each needs {needed} even if "
            "none of its examples is harmful. Add examples of them, merge groups, or promise less",
            needed=needed,
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
    if data.labels is None:
        return max_harm
    (count,) = counts_at(np.array([threshold]), data.scores, differ(data))
    return max(max_harm, upper_bound(int(count), len(data.scores), level))


def _refusal(part: _Part, grid: Floats, max_harm: float) -> CalibrationError:
    """Say why the part that passes the fewest thresholds keeps nothing."""
    if not part.kept.any():
        return CalibrationError("no score reaches any threshold (are all of them NaN?); nothing can be kept")
    first = int(np.argmax(part.kept > 0))
    needed = samples_at_rate(int(part.harm[first]), part.n, max_harm, part.delta)
    where = f" of group {part.name!r}" if part.name else ""
    found = (
        f"even at the strictest threshold that keeps anything ({grid[first]:.6g}), {part.harm[first]} of {part.n} "
        f"certifying examples{where} are harmful, which does not show a harm of at most {100 * max_harm:g} points with "
        f"{100 * (1 - part.delta):.4g}% confidence"
    )
    if needed is None:
        return CalibrationError(f"{found}. More examples would not help: use a better edge variant, or promise less")
    return CalibrationError(f"{found}. At this rate {needed} examples{where} would", needed=needed)
