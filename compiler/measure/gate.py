"""The gate: which candidate ships for a target, why each other does not, and which operators go back to float.

Pure. Passing means shown to be good: a candidate has to be shown to keep the quality budget, by an upper bound of what
it costs that is corrected for how many candidates are looked at; it must hold quantized weights if it claims to be
quantized; and it has to be faster than its float parent by more than the clock's noise, or smaller where the recipe
asks for size. What is measured, and how, is ``compiler.measure``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Drop, Speedup
from compiler.certificate.betting import upper_mean
from compiler.certificate.binomial import (
    fewest_above,
    lower_bound,
    samples_needed,
    upper_bound,
)
from compiler.recipe.choices import Objective
from penstock import wording

MAX_PROBES = 9
"""Numbers of restored operators that are tried at most, enough for a thousand operators (see :func:`next_probe`): each
is one more look at the tuning rows, and takes as long as a candidate."""

_NEAR = 4  # a number that fits is near enough when a failing one is within this part of it

MOST_ROWS = 100_000
"""Above this many rows a refusal names no number: the cost is too close to the budget for more data to help."""

_AS_FAST = 1.05
"""Candidates within this factor of the fastest are equally fast: which of them a clock favours changes between runs."""

_AS_SMALL = 1.001
"""Candidates within this factor of the smallest are equally small: a zero point of 130 takes a byte more than 126."""

_SLOWER = 1.02
"""Where calls were not made in turns, medians of the same model measured twice differ by up to this factor."""

Rows = NDArray[np.bool_] | NDArray[np.float64]

_Z95 = 1.959963984540054
_WHOLE = 1e-9  # of a number of rows that is whole but for rounding
_OF_WON = 0.1  # of a bound's level, for the rows won; they are worth less than the rows lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Hold what the gate knows of one candidate.

    Attributes:
        name: as the evaluation shows it.
        size_bytes: of the model with all its files.
        drop: None for the parent itself, and where quality is judged otherwise.
        latency_ms: median of a single-row call; None where the target cannot be run here.
        speedup: against the parent; None for the parent, and where calls were not made in turns.
        quantized_bytes: bytes of weights in low precision; None for a float candidate.
    """

    name: str
    size_bytes: int
    drop: Drop | None
    latency_ms: float | None
    speedup: Speedup | None = None
    quantized_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Say what a candidate may cost, and which of those that may ship does.

    Attributes:
        max_drop: of quality, a share (0.02 is two points).
        objective: the fastest, or the smallest.
        clock_noise: how much faster than itself a model may seem.
    """

    max_drop: float
    objective: Objective
    clock_noise: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Hold the decision on all candidates.

    Attributes:
        chosen: index of the candidate that ships, None if none may.
        reasons: a sentence for each candidate.
    """

    chosen: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Say how the ``delta`` of a recipe is divided among everything that may be looked at (Bonferroni).

    Attributes:
        listed: what each candidate that a recipe lists gets.
        probe: what each number of restored operators gets; all of them together as much as one candidate.
    """

    listed: float
    probe: float


def levels(delta: float, *, listed: int, restores: bool) -> Levels:
    """Divide the chance that anything ships that costs more than the budget.

    The number of looks is fixed before the first: what is not looked at in the end was paid for all the same, or
    looking until something passes would not be.

    Args:
        listed: candidates that may cost quality.
        restores: whether operators of one may go back to float.
    """
    each = delta / max(1, listed + restores)
    return Levels(listed=each, probe=each / MAX_PROBES)


def paired_drop(parent: Rows, candidate: Rows, *, level: float = 0.05) -> Drop:
    """Measure how much worse the candidate's rows are than the parent's on average, on the same rows.

    Args:
        parent: [N], N >= 1: how well it answered each row, from 0 to 1, or whether it did.
        candidate: the same.
        level: chance that the bound does not hold.

    The interval is Wald's for a difference of paired proportions (Fleiss, Statistical Methods for Rates and
    Proportions, 10.1), widened by half a row so that two identical candidates do not claim to be equal for certain.
    """
    n, change = len(parent), np.asarray(parent, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
    lost, won = float(change.clip(min=0).sum()), float((-change).clip(min=0).sum())
    value = (lost - won) / n
    spread = _Z95 * math.sqrt(max(float((change**2).sum()) - n * value**2, 0.0)) / n + 0.5 / n
    is_counted = all(bool(np.isin(rows, (0, 1)).all()) for rows in (parent, candidate))
    return Drop(
        value=value,
        low=max(value - spread, -1.0),
        high=min(value + spread, 1.0),
        n=n,
        lost=lost,
        won=won,
        is_counted=is_counted,
        bound=drop_bound(lost, won, n, level, is_counted=is_counted),
        level=level,
    )


def by_cluster(rows: Rows, clusters: NDArray[np.int64] | None) -> Rows:
    """Average what rows of one cluster score: clusters are independent, and copies of a row show no more than it does.

    Args:
        rows: [N], as for :func:`paired_drop`.
        clusters: integers [N], equal for rows that belong together; None where each is a draw by itself.
    """
    if clusters is None:
        return rows
    member, sizes = np.unique(clusters, return_inverse=True, return_counts=True)[1:]
    return np.asarray(np.bincount(member, weights=rows.astype(np.float64)) / sizes)


def drop_bound(lost: float, won: float, n: int, level: float, *, is_counted: bool = True) -> float:
    """Bound what a candidate costs from above, with probability at least 1 - level, whatever the truth is.

    The loss is the mean of what rows lose less the mean of what rows win. The first is bounded from above at nine
    tenths of the level and the second from below at the rest, so that both hold at once (Boole): exactly where rows are
    right or wrong (Clopper and Pearson), else by Hoeffding's inequality, in which nothing is taken for granted but that
    scores lie between 0 and 1 (Probability Inequalities for Sums of Bounded Random Variables, 1963, theorem 1). No
    normal approximation: with no row lost of 100 that would be sure of what nobody can know.

    Args:
        lost: sum of what rows lose: their number where they are counted.
        won: the same of what they win.
    """
    if is_counted:
        return upper_bound(round(lost), n, (1 - _OF_WON) * level) - lower_bound(round(won), n, _OF_WON * level)
    least_won = 1 - upper_mean(1 - won / n, n, _OF_WON * level)
    return upper_mean(lost / n, n, (1 - _OF_WON) * level) - least_won


def rows_needed(drop: Drop, max_drop: float) -> int | None:
    """Find how many rows would show that the budget is kept, if the candidate loses and wins at the rate seen.

    Returns:
        None where no number up to ``MOST_ROWS`` would.
    """

    def shows(n: int) -> bool:
        lost, won = drop.lost * n / drop.n, drop.won * n / drop.n
        if drop.is_counted:
            lost, won = math.ceil(lost - _WHOLE), math.floor(won + _WHOLE)
        return drop_bound(lost, won, n, drop.level, is_counted=drop.is_counted) <= max_drop

    if drop.value >= max_drop:
        return None
    return fewest_above(drop.n, shows, most=MOST_ROWS)


def fewest_rows(max_drop: float, level: float) -> int | None:
    """Compute how many rows a candidate needs that loses none of them; None where no number shows it."""
    return samples_needed(max_drop, (1 - _OF_WON) * level) if 0 < max_drop < 1 else None if max_drop == 0 else 1


def over_budget(drop: Drop, max_drop: float) -> str:
    """Say why a candidate is not shown to keep the budget, with its figures and the rows that are missing; "" if it
    is."""
    if drop.bound <= max_drop:
        return ""
    allowed = f"{_points(max_drop)} allowed"
    seen = f"{drop.lost:.4g} rows lost and {drop.won:.4g} won of {drop.n}{drop.at and f' at {drop.at}'}"
    if drop.value > max_drop:
        return f"costs {_points(drop.value)} ({seen}), {allowed}"
    needed = rows_needed(drop, max_drop)
    more = f"{needed} rows like these would show it" if needed else "too close to the budget for more rows to show it"
    return f"not shown to keep the budget: {seen} leave up to {_points(drop.bound)}, {allowed}; {more}"


def refusal(candidate: Measured, parent: Measured, budget: Budget) -> str:
    """Say why a candidate may not ship, with its figures; "" if it may."""
    if candidate.quantized_bytes == 0:
        return "no weight was quantized"
    if candidate.drop is not None and (over := over_budget(candidate.drop, budget.max_drop)):
        return over
    if candidate.name == parent.name:
        return ""
    if budget.objective == "size":
        if candidate.size_bytes >= parent.size_bytes:
            return f"no smaller than its parent ({candidate.size_bytes} bytes, parent {parent.size_bytes})"
        return ""
    if candidate.latency_ms is None or parent.latency_ms is None:
        return ""
    if candidate.speedup is not None:
        return _no_faster(candidate.speedup, budget.clock_noise)
    if candidate.latency_ms > _SLOWER * parent.latency_ms:
        return f"slower than its parent ({_ratio(parent.latency_ms, candidate.latency_ms)} of its speed)"
    return ""


def choose(candidates: Sequence[Measured], parent: Measured, budget: Budget) -> Verdict:
    """Choose the candidate that ships: the fastest (smallest, where the objective is size) of those that may.

    Equally fast ones are decided by size, then by drop, then by order: what a recipe lists first. Where nothing could
    be timed, the last of those that may ship is taken: recipes and targets list the careful first.

    Args:
        parent: the float candidate that others are compared with; itself among ``candidates`` if it may ship.
    """
    reasons = [refusal(candidate, parent, budget) for candidate in candidates]
    fit = [index for index, reason in enumerate(reasons) if not reason]
    if not fit:
        return Verdict(chosen=None, reasons=tuple(reasons))
    chosen = _best(candidates, fit, budget)
    shipped = candidates[chosen]
    for index in fit:
        reasons[index] = "ships" if index == chosen else _behind(candidates[index], shipped, budget)
    return Verdict(chosen=chosen, reasons=tuple(reasons))


def next_probe(tried: Mapping[int, bool], count: int) -> int | None:
    """Say how many of the ``count`` most sensitive operators to send back to float next.

    Finds a number that fits the budget and is at most a quarter larger than the smallest that does, taking for granted
    that more floats never cost quality: by factors of four, then between by their geometric mean. To the last operator
    it would take twice as many probes, each as long as a candidate, for operators that matter least. ``tried`` maps
    numbers to whether they fitted. 0 is known to fail. None when the answer is found, or when even all fail.

    Returns:
        A number from 1 to ``count``.
    """
    fails = max((k for k, fitted in tried.items() if not fitted), default=0)
    fits = min((k for k, fitted in tried.items() if fitted), default=None)
    if fits is None:
        return None if fails >= count else min(count, max(1, 4 * fails))
    if fits - fails <= max(1, fits // _NEAR):
        return None
    return min(fits - 1, max(fails + 1, round(math.sqrt(max(1, fails) * fits))))


def _best(candidates: Sequence[Measured], fit: Sequence[int], budget: Budget) -> int:
    def cost(index: int) -> float:
        drop = candidates[index].drop
        return 0.0 if drop is None else drop.value

    def smallest(among: Sequence[int]) -> int:
        limit = _AS_SMALL * min(candidates[index].size_bytes for index in among)
        return min((index for index in among if candidates[index].size_bytes <= limit), key=lambda i: (cost(i), i))

    if budget.objective == "size":
        return smallest(fit)
    times = {index: candidates[index].latency_ms for index in fit}
    known = [time for time in times.values() if time is not None]
    if len(known) < len(fit):
        return fit[-1]
    limit = _AS_FAST * min(known)
    return smallest([index for index in fit if (times[index] or 0.0) <= limit])


def _behind(candidate: Measured, shipped: Measured, budget: Budget) -> str:
    if budget.objective == "size":
        is_smaller = _AS_SMALL * shipped.size_bytes < candidate.size_bytes
        how = "smaller" if is_smaller else "as small and costs no more"
        return f"fits, but {shipped.name} is {how}"
    if candidate.latency_ms is None or shipped.latency_ms is None:
        return f"fits, but {shipped.name} was asked for after it"
    if candidate.latency_ms <= _AS_FAST * shipped.latency_ms:
        return f"fits and is as fast, but {shipped.name} is no larger and costs no more"
    return f"fits, but {shipped.name} is {_ratio(candidate.latency_ms, shipped.latency_ms)} as fast"


def _no_faster(speedup: Speedup, noise: float) -> str:
    if speedup.low > noise:
        return ""
    seen = f"{speedup.value:.2f}x as fast ({speedup.low:.2f}x to {speedup.high:.2f}x)"
    if speedup.high < 1:
        return f"slower than its parent: {seen}"
    return f"not faster than its parent beyond the clock's noise: {seen}, and up to {noise:.2f}x is noise"


def _points(share: float) -> str:
    return f"{wording.points(share)} points"


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}x"
