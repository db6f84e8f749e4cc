"""Statements about the mean of values in [0, 1], given a sample of them: one bet against a mean, and its intervals.

Pure. For clusters, whose shares of harm are such values and no coins. Let X_1, ..., X_n be independent with one mean m,
and let 0 <= bet <= 1 / (1 - x). Where m >= x, each factor of

    W = prod_i (1 + bet (x - X_i))

is at least 0 and 1 at most on average, so E[W] <= 1 and, by Markov's inequality, P(W >= 1 / delta) <= delta. So
"m >= x" is rejected where W >= 1 / delta (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", JRSS B 86, 2024, arXiv 2010.09686, with one bet fixed beforehand in place of bets that follow the sample: W is
then the same in any order, and falls as any X_i rises).

The bet is the one that would be best if every X_i were 0 or 1. By concavity of the logarithm W is then at least what
Hoeffding's bound (JASA 58, 1963, theorem 1; the form with the divergence of two coins) needs: this test rejects
whenever that one does, and earlier where shares lie between 0 and 1. Decides nothing about thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import MOST_SAMPLES, fewest_above

Floats = NDArray[np.float64]


def best_bet(n: int, max_mean: float, delta: float) -> float:
    """Compute the bet of a test of ``n`` values, from nothing but these three numbers.

    With q such that n KL(q || max_mean) = log(1 / delta), it is (max_mean - q) / (max_mean (1 - max_mean)): of n coins
    the share q of ones is then just rejected. Where even q = 0 is not, everything is bet on zeros, in vain.
    """
    q = lower_mean(max_mean, n, delta)
    return (max_mean - q) / (max_mean * (1 - max_mean))


def log_growth(shares: Floats, bet: float, max_mean: float) -> Floats:
    """Compute what each value adds to log W; -inf for one that ends a bet of everything."""
    with np.errstate(divide="ignore"):
        return np.log1p(np.maximum(bet * (max_mean - shares), -1.0))


def clusters_at_rate(shares: Floats, max_mean: float, delta: float) -> int | None:
    """Find a number of values that would pass if they were spread as ``shares`` are; None if none up to MOST_SAMPLES.

    Args:
        shares: a sample that does not pass.
    """

    def passes(m: int) -> bool:
        return m * float(log_growth(shares, best_bet(m, max_mean, delta), max_mean).mean()) >= math.log(1 / delta)

    if float(shares.mean()) >= max_mean:
        return None
    return fewest_above(len(shares), passes, most=MOST_SAMPLES)


def lower_mean(mean: float, n: int, delta: float) -> float:
    """Compute the q <= mean with n KL(q || mean) = log(1 / delta), or 0 where there is none.

    P(average of n values in [0, 1] of this mean <= q) <= delta (Hoeffding 1963, theorem 1).
    """
    return _solved(lambda q: divergence(q, mean), 0.0, mean, math.log(1 / delta) / n)


def upper_mean(average: float, n: int, delta: float) -> float:
    """Compute an upper bound at 1 - delta on the mean of n values in [0, 1] with this average: the largest m with
    n KL(average || m) <= log(1 / delta) (the same theorem, turned round)."""
    return _solved(lambda m: divergence(average, m), 1.0, average, math.log(1 / delta) / n)


def mean_interval(average: float, n: int, delta: float) -> tuple[float, float]:
    """Compute a two-sided interval at 1 - delta for the mean of n values in [0, 1] with this average."""
    return 1 - upper_mean(1 - average, n, delta / 2), upper_mean(average, n, delta / 2)


def divergence(q: float, p: float) -> float:
    """Compute KL(q || p) of two coins, in nats."""
    one = q * math.log(q / p) if q > 0 and p > 0 else (math.inf if q > 0 else 0.0)
    other = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 and p < 1 else (math.inf if q < 1 else 0.0)
    return max(one + other, 0.0)


def _solved(distance: Callable[[float], float], far: float, near: float, wanted: float) -> float:
    """Find where a distance that falls from ``far`` to 0 at ``near`` is as wanted, from the side of ``far``; ``far``
    where it is nowhere so large."""
    if distance(far) <= wanted:
        return far
    for _ in range(100):
        middle = (far + near) / 2
        if distance(middle) > wanted:
            far = middle
        else:
            near = middle
    return far
