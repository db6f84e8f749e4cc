"""The lowest confidence threshold whose harm is certified, or a refusal that says what is missing.

Pure. Harm of one example at threshold t: kept (score >= t) and edge wrong and cloud right, or without labels kept and
edge != cloud. The accuracy that a cascade loses against always asking the cloud is at most E[harm].

Learn then Test (Angelopoulos et al., arXiv 2110.01052) by fixed-sequence testing: thresholds from strictest to loosest,
each with the exact binomial p-value ``P(Binomial(n, max_harm) <= harm_count)`` of "E[harm] > max_harm", each at level
delta, up to the first that is not rejected. The thresholds are fixed in advance: a grid read off the certifying data
would be a choice made by looking. The data must not have been used to fit or choose anything else.

Does not build the certificate document: that binds these figures to digests, and is the pack step's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.certificate import Harm
from penstock.errors import CalibrationError

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]

THRESHOLDS: tuple[float, ...] = tuple(
    sorted({1 - 10 ** (-k / 10) for k in range(11, 61)} | {k / 100 for k in range(91)}, reverse=True)
)
"""Strictest first: ten a decade from 1 - 1e-6 to 0.9, then steps of 0.01 down to 0. A finer grid costs nothing in
fixed-sequence testing, since harm only grows along it."""

MOST_SAMPLES = 1_000_000
"""Above this many samples a refusal names no number: the harm is too close to the promise for more data to help."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CertifyData:
    """The certifying split, one entry an example.

    Attributes:
        scores: float [N] in [0, 1]; NaN for an answer that must never be kept.
        edge_predictions, cloud_predictions: integer classes [N].
        labels: integer classes [N]; None counts disagreement with the cloud as harm.
    """

    scores: NDArray[np.floating]
    edge_predictions: Integers
    cloud_predictions: Integers
    labels: Integers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What was found. ``n``, ``harm_count``, ``kept_count`` are the counts at ``threshold``.

    Attributes:
        coverage, coverage_low, coverage_high: share kept, and its Clopper-Pearson interval at 1 - delta for this
            threshold. It describes: no promise rests on it, so it is not corrected for the threshold being chosen.
        audit_max_harm: bound on P(kept and edge != cloud), which an audit without labels can watch; ``max_harm`` when
            harm is disagreement. With labels it is the larger of ``max_harm`` and the Clopper-Pearson upper bound at
            level delta / (number of thresholds): valid at whichever threshold the data chose.
        harm: what counted as harm.
    """

    threshold: float
    harm_count: int
    kept_count: int
    n: int
    coverage: float
    coverage_low: float
    coverage_high: float
    audit_max_harm: float
    harm: Harm


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskCoveragePoint:
    """Shares of all examples: ``coverage`` kept, and ``harm`` kept with harm, at ``threshold``."""

    threshold: float
    coverage: float
    harm: float


def samples_needed(max_harm: float, delta: float) -> int:
    """The fewest examples that can certify: with no harm among them, ``(1 - max_harm)^n <= delta``.

    Raises:
        CalibrationError: max_harm or delta not strictly between 0 and 1.
    """
    _check_promise(max_harm, delta)
    n = max(1, math.ceil(math.log(delta) / math.log1p(-max_harm)))
    return n if _log_binomial_cdf(0, n, max_harm) <= math.log(delta) else n + 1


def certify(
    data: CertifyData, *, max_harm: float, delta: float, thresholds: tuple[float, ...] | None = None
) -> Certified:
    """The lowest threshold for which E[harm] <= max_harm holds with probability at least 1 - delta.

    Args:
        max_harm: promised bound on E[harm], a share of all requests.
        delta: chance, over the certifying sample, that the promise does not hold.
        thresholds: the grid, if not :data:`THRESHOLDS`; chosen without looking at ``data``. Order does not matter.

    Raises:
        CalibrationError: malformed data or promise; fewer examples than :func:`samples_needed`; or no threshold that
            keeps anything can be certified. ``needed`` is the number of examples that would do at the harm rate seen,
            None when more examples would not help.
    """
    minimum = samples_needed(max_harm, delta)
    _check_data(data)
    n = len(data.scores)
    if n < minimum:
        raise CalibrationError(
            f"{n} certifying examples are too few to promise at most {100 * max_harm:g} points of harm with "
            f"{1 - delta:.0%} confidence: {minimum} are needed even if none of them is harmful. Add examples, or "
            "promise less",
            needed=minimum,
        )
    grid = _grid(thresholds)
    harm, kept = _counts_at(grid, data.scores, _harmful(data)), _counts_at(grid, data.scores, None)
    passed = harm <= _allowed_harm(n, max_harm, delta)
    chosen = int(np.argmin(np.append(passed, False))) - 1  # up to the first that is not rejected
    if chosen < 0 or kept[chosen] == 0:
        raise _refusal(n, harm, kept, grid, max_harm, delta)
    low, high = clopper_pearson(int(kept[chosen]), n, delta)
    return Certified(
        threshold=float(grid[chosen]),
        harm_count=int(harm[chosen]),
        kept_count=int(kept[chosen]),
        n=n,
        coverage=float(kept[chosen] / n),
        coverage_low=low,
        coverage_high=high,
        audit_max_harm=_audit_bound(data, float(grid[chosen]), max_harm, delta / len(grid)),
        harm="disagreement" if data.labels is None else "labels",
    )


def risk_coverage(data: CertifyData) -> list[RiskCoveragePoint]:
    """Coverage and harm at every threshold of :data:`THRESHOLDS`, strictest first, for a report's curve.

    Raises:
        CalibrationError: malformed or empty data.
    """
    _check_data(data)
    n, grid = len(data.scores), _grid(None)
    harm, kept = _counts_at(grid, data.scores, _harmful(data)), _counts_at(grid, data.scores, None)
    return [
        RiskCoveragePoint(threshold=float(t), coverage=float(k / n), harm=float(h / n))
        for t, k, h in zip(grid, kept, harm, strict=True)
    ]


def clopper_pearson(count: int, n: int, delta: float) -> tuple[float, float]:
    """The exact two-sided interval at 1 - delta for a binomial rate, given ``count`` of ``n``."""
    low = 0.0 if count == 0 else 1 - _upper_bound(n - count, n, delta / 2)
    return low, _upper_bound(count, n, delta / 2)


def _upper_bound(count: int, n: int, level: float) -> float:
    """The one-sided Clopper-Pearson bound: the rate p at which P(Binomial(n, p) <= count) = level."""
    if count >= n:
        return 1.0
    log_choose = _log_choose(n, count)
    low, high = count / n, 1.0
    while high - low > 1e-12:  # the tail falls from above level to 0 as p grows
        middle = (low + high) / 2
        if _log_tail(log_choose, n, middle) > math.log(level):
            low = middle
        else:
            high = middle
    return high


def _harmful(data: CertifyData) -> NDArray[np.bool_]:
    if data.labels is None:
        return np.asarray(data.edge_predictions != data.cloud_predictions)
    return np.asarray((data.edge_predictions != data.labels) & (data.cloud_predictions == data.labels))


def _grid(thresholds: tuple[float, ...] | None) -> Floats:
    grid = np.unique(np.asarray(THRESHOLDS if thresholds is None else thresholds, dtype=np.float64))[::-1]
    if len(grid) == 0 or not (np.isfinite(grid).all() and grid[0] <= 1 and grid[-1] >= 0):
        raise CalibrationError("thresholds: expected at least one number, all between 0 and 1")
    return grid


def _counts_at(grid: Floats, scores: NDArray[np.floating], among: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How many examples (of those in ``among``) are kept at each threshold; a score equal to it is kept, NaN never."""
    counted = ~np.isnan(scores) if among is None else among & ~np.isnan(scores)
    ascending = np.sort(scores[counted].astype(np.float64))  # float32 against the grid would round the threshold
    return np.asarray(len(ascending) - np.searchsorted(ascending, grid, side="left"), dtype=np.int64)


def _allowed_harm(n: int, max_harm: float, delta: float) -> int:
    """The largest harm count whose p-value is at most delta; -1 when there is none."""
    lowest, highest = -1, n  # P(Binomial <= n) = 1 > delta
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if _log_binomial_cdf(middle, n, max_harm) <= math.log(delta):
            lowest = middle
        else:
            highest = middle
    return lowest


def _audit_bound(data: CertifyData, threshold: float, max_harm: float, level: float) -> float:
    if data.labels is None:
        return max_harm
    differs = np.asarray(data.edge_predictions != data.cloud_predictions)
    (count,) = _counts_at(np.array([threshold]), data.scores, differs)
    return max(max_harm, _upper_bound(int(count), len(data.scores), level))


def _refusal(
    n: int, harm: NDArray[np.int64], kept: NDArray[np.int64], grid: Floats, max_harm: float, delta: float
) -> CalibrationError:
    if not kept.any():
        return CalibrationError("no score reaches any threshold (are all of them NaN?); nothing can be kept")
    first = int(np.argmax(kept > 0))
    needed = _projected(int(harm[first]), n, max_harm, delta)
    found = (
        f"even at the strictest threshold that keeps anything ({grid[first]:.6g}), {harm[first]} of {n} certifying "
        f"examples are harmful, which does not show a harm of at most {100 * max_harm:g} points with "
        f"{1 - delta:.0%} confidence"
    )
    if needed is None:
        return CalibrationError(f"{found}. More examples would not help: use a better edge variant, or promise less")
    return CalibrationError(f"{found}. At this rate {needed} examples would", needed=needed)


def _projected(harm_count: int, n: int, max_harm: float, delta: float) -> int | None:
    """A number of examples that would pass at the same share of harm; None if none up to MOST_SAMPLES does."""

    def passes(m: int) -> bool:
        return _log_binomial_cdf(-(-m * harm_count // n), m, max_harm) <= math.log(delta)

    if harm_count >= n * max_harm:
        return None
    fails, enough = n, 2 * n
    while not passes(enough):
        fails, enough = enough, 2 * enough
        if enough > MOST_SAMPLES:
            return None
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if passes(middle) else (middle, enough)
    return enough


def _log_binomial_cdf(k: int, n: int, p: float) -> float:
    """log P(Binomial(n, p) <= k) for 0 < p < 1, exact up to rounding."""
    return 0.0 if k >= n else _log_tail(_log_choose(n, k), n, p)


def _log_choose(n: int, k: int) -> Floats:
    """log C(n, i) for i = 0..k."""
    whole = math.lgamma(n + 1)
    return np.array([whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)])


def _log_tail(log_choose: Floats, n: int, p: float) -> float:
    i = np.arange(len(log_choose))
    logs = log_choose + i * math.log(p) + (n - i) * math.log1p(-p)
    highest = float(logs.max())
    return highest + math.log(float(np.exp(logs - highest).sum()))


def _check_promise(max_harm: float, delta: float) -> None:
    for name, value in (("max_harm", max_harm), ("delta", delta)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name}: {value!r} is not strictly between 0 and 1")


def _check_data(data: CertifyData) -> None:
    scores = data.scores
    if scores.dtype.kind != "f" or scores.ndim != 1 or len(scores) == 0:
        raise CalibrationError(f"scores: {scores.dtype} {list(scores.shape)}, expected floats [N] with N >= 1")
    outside = int(np.count_nonzero((scores < 0) | (scores > 1)))
    if outside:
        raise CalibrationError(f"scores: {outside} of {len(scores)} are infinite or outside [0, 1]")
    columns = {"edge_predictions": data.edge_predictions, "cloud_predictions": data.cloud_predictions}
    if data.labels is not None:
        columns["labels"] = data.labels
    for name, column in columns.items():
        if column.dtype.kind not in "iu" or column.shape != scores.shape:
            raise CalibrationError(
                f"{name}: {column.dtype} {list(column.shape)}, expected integer classes [{len(scores)}]"
            )
