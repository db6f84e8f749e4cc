"""Exact statements about a binomial rate: tails, Clopper and Pearson's interval, and how many samples a claim needs.

Pure. Sums of the exact distribution in logarithms, no normal approximation: the rates here are a few in a thousand,
where approximations are wrong by more than what is promised. Decides nothing about thresholds: that is
``compiler.certificate.learn_then_test``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from penstock.errors import CalibrationError

Floats = NDArray[np.float64]

MOST_SAMPLES = 1_000_000
"""Above this many samples a refusal names no number: the harm is too close to the promise for more data to help."""


def samples_needed(max_harm: float, delta: float) -> int:
    """Compute the fewest examples that can certify: with no harm in them, ``(1 - max_harm)^n <= delta``.

    Raises:
        CalibrationError: max_harm or delta not strictly between 0 and 1.
    """
    check_promise(max_harm, delta)
    n = max(1, math.ceil(math.log(delta) / math.log1p(-max_harm)))
    return n if _log_cdf(0, n, max_harm) <= math.log(delta) else n + 1


def allowed_harm(n: int, max_harm: float, delta: float) -> int:
    """Return the largest harm count among ``n`` whose p-value ``P(Binomial(n, max_harm) <= count)`` is at most delta;
    -1 when there is none.
    """
    # a median of the distribution is at most ceil(n p), where the tail is at least a half
    lowest, highest = -1, n if delta >= 0.5 else min(n, math.ceil(n * max_harm))
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        if _log_cdf(middle, n, max_harm) <= math.log(delta):
            lowest = middle
        else:
            highest = middle
    return lowest


def samples_at_rate(harm_count: int, n: int, max_harm: float, delta: float) -> int | None:
    """Find a number of examples that would pass at the same share of harm; None if none up to MOST_SAMPLES does."""

    def passes(m: int) -> bool:
        return _log_cdf(-(-m * harm_count // n), m, max_harm) <= math.log(delta)

    if harm_count >= n * max_harm:
        return None
    return fewest_above(n, passes, most=MOST_SAMPLES)


def fewest_above(failing: int, passes: Callable[[int], bool], *, most: int) -> int | None:
    """Find the smallest number above ``failing`` that passes, where more never fails again; None if none up to about
    ``most`` does. By doubling, then by halves.
    """
    fails, enough = failing, 2 * failing
    while not passes(enough):
        fails, enough = enough, 2 * enough
        if enough > most:
            return None
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if passes(middle) else (middle, enough)
    return enough


def clopper_pearson(count: int, n: int, delta: float) -> tuple[float, float]:
    """Compute the exact two-sided interval at 1 - delta for a binomial rate, given ``count`` of ``n``."""
    low = 0.0 if count == 0 else 1 - upper_bound(n - count, n, delta / 2)
    return low, upper_bound(count, n, delta / 2)


def upper_bound(count: int, n: int, level: float) -> float:
    """Compute the one-sided Clopper-Pearson bound: the rate p at which P(Binomial(n, p) <= count) = level."""
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


def lower_bound(count: int, n: int, level: float) -> float:
    """Compute the other one-sided bound: the rate p at which P(Binomial(n, p) >= count) = level."""
    if count == 0:
        return 0.0
    log_choose = _log_choose(n, count - 1)
    low, high = 0.0, count / n
    while high - low > 1e-12:  # the tail rises from 0 to above level as p grows
        middle = (low + high) / 2
        if -math.expm1(min(_log_tail(log_choose, n, middle), 0.0)) < level:
            low = middle
        else:
            high = middle
    return low


def sign_test(more: int, fewer: int) -> float:
    """Compute the chance of at least ``more`` heads among ``more + fewer`` throws of a fair coin."""
    return math.exp(min(_log_cdf(fewer, more + fewer, 0.5), 0.0))


def check_promise(max_harm: float, delta: float) -> None:
    """Check that a promise's shares are probabilities.

    Raises:
        CalibrationError: one of them is no probability strictly between 0 and 1.
    """
    for name, value in (("max_harm", max_harm), ("delta", delta)):
        if not 0 < value < 1:
            raise CalibrationError(f"{name}: {value!r} is not strictly between 0 and 1")


def _log_cdf(k: int, n: int, p: float) -> float:
    """Compute log P(Binomial(n, p) <= k) for 0 < p < 1, exact up to rounding."""
    return 0.0 if k >= n else _log_tail(_log_choose(n, k), n, p)


def _log_choose(n: int, k: int) -> Floats:
    """Compute log C(n, i) for i = 0..k."""
    whole = math.lgamma(n + 1)
    return np.array([whole - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)])


def _log_tail(log_choose: Floats, n: int, p: float) -> float:
    i = np.arange(len(log_choose))
    logs = log_choose + i * math.log(p) + (n - i) * math.log1p(-p)
    highest = float(logs.max())
    return highest + math.log(float(np.exp(logs - highest).sum()))
