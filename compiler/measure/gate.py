"""The gate: which candidate ships for a target, why each other does not, and which operators go back to float.

Pure. A candidate has to keep the quality budget, must hold quantized weights if it claims to be quantized, and is never
slower than its parent unless the recipe asks for size. What is measured, and how, is ``compiler.measure``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Drop
from compiler.recipe.choices import Objective

_AS_FAST = 1.05
"""Candidates within this factor of the fastest are equally fast: which of them a clock favours changes between runs."""

_NOISE = 1.02
"""Medians of the same model measured twice in turns differ by up to this factor: less is no difference."""

Rows = NDArray[np.bool_] | NDArray[np.float64]

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Hold what the gate knows of one candidate.

    Attributes:
        name: as the evaluation shows it.
        size_bytes: of the model with all its files.
        drop: None for the parent itself.
        latency_ms: median of a single-row call; None where the target cannot be run here.
        quantized_bytes: bytes of weights in low precision; None for a float candidate.
    """

    name: str
    size_bytes: int
    drop: Drop | None
    latency_ms: float | None
    quantized_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Say what a candidate may cost, and which of those that may ship does.

    Attributes:
        max_drop: of quality, a share (0.02 is two points).
        objective: the fastest, or the smallest.
    """

    max_drop: float
    objective: Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Hold the decision on all candidates.

    Attributes:
        chosen: index of the candidate that ships, None if none may.
        reasons: a sentence for each candidate.
    """

    chosen: int | None
    reasons: tuple[str, ...]


def paired_drop(parent: Rows, candidate: Rows) -> Drop:
    """Measure how much worse the candidate's rows are than the parent's on average, on the same rows.

    Args:
        parent: [N], N >= 1: how well it answered each row, from 0 to 1, or whether it did.
        candidate: the same.

    The interval is Wald's for a difference of paired proportions (Fleiss, Statistical Methods for Rates and
    Proportions, 10.1), widened by half a row so that two identical candidates do not claim to be equal for certain.
    """
    n, lost = len(parent), np.asarray(parent, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
    value = float(lost.sum()) / n
    spread = _Z95 * math.sqrt(max(float((lost**2).sum()) - n * value**2, 0.0)) / n + 0.5 / n
    return Drop(value=value, low=max(value - spread, -1.0), high=min(value + spread, 1.0), n=n)


def refusal(candidate: Measured, parent: Measured, budget: Budget) -> str:
    """Say why a candidate may not ship, with its figures; "" if it may."""
    if candidate.quantized_bytes == 0:
        return "no weight was quantized"
    if candidate.drop is not None and candidate.drop.value > budget.max_drop:
        return f"costs {_points(candidate.drop.value)}, {_points(budget.max_drop)} allowed"
    if budget.objective == "size":
        if candidate.name != parent.name and candidate.size_bytes >= parent.size_bytes:
            return f"no smaller than its parent ({candidate.size_bytes} bytes, parent {parent.size_bytes})"
        return ""
    if candidate.latency_ms is None or parent.latency_ms is None or candidate.name == parent.name:
        return ""
    if candidate.latency_ms > _NOISE * parent.latency_ms:
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
    """Say how many of the ``count`` most sensitive operators to send back to float next, by bisection.

    Finds the smallest number that fits the budget, taking for granted that more floats never cost quality; ``tried``
    maps numbers to whether they fitted. 0 is known to fail. None when the answer is found, or when even all fail.

    Returns:
        A number from 1 to ``count``.
    """
    fails = max((k for k, fitted in tried.items() if not fitted), default=0)
    fits = min((k for k, fitted in tried.items() if fitted), default=None)
    if fits is None:
        return None if fails >= count else min(count, max(1, 2 * fails))
    return None if fits - fails <= 1 else (fails + fits) // 2


def _best(candidates: Sequence[Measured], fit: Sequence[int], budget: Budget) -> int:
    def cost(index: int) -> float:
        drop = candidates[index].drop
        return 0.0 if drop is None else drop.value

    if budget.objective == "size":
        return min(fit, key=lambda i: (candidates[i].size_bytes, cost(i), i))
    times = {index: candidates[index].latency_ms for index in fit}
    known = [time for time in times.values() if time is not None]
    if len(known) < len(fit):
        return fit[-1]
    limit = _AS_FAST * min(known)
    near = [index for index in fit if (times[index] or 0.0) <= limit]
    return min(near, key=lambda i: (candidates[i].size_bytes, cost(i), i))


def _behind(candidate: Measured, shipped: Measured, budget: Budget) -> str:
    if budget.objective == "size":
        how = "smaller" if shipped.size_bytes < candidate.size_bytes else "as small and costs no more"
        return f"fits, but {shipped.name} is {how}"
    if candidate.latency_ms is None or shipped.latency_ms is None:
        return f"fits, but {shipped.name} was asked for after it"
    if candidate.latency_ms <= _AS_FAST * shipped.latency_ms:
        return f"fits and is as fast, but {shipped.name} is no larger and costs no more"
    return f"fits, but {shipped.name} is {_ratio(candidate.latency_ms, shipped.latency_ms)} as fast"


def _points(share: float) -> str:
    return f"{100 * share:.2f} points"


def _ratio(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.2f}x"
