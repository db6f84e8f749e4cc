"""What could a test have seen? The power of the sequential tests, and how many rows they need for it.

A test that did not raise an alarm says little when it had too few rows to raise one. The power is the chance that it
would have crossed by row n at the latest, had the rate been a given one. It is computed for a look at row n alone;
looks before it can only add to it.
"""

from __future__ import annotations

import math
from functools import lru_cache

from penstock.policy.sequential import crossed

_MAX_ROWS = 2**20
"""Where the search for a number of rows ends; the cost of a look grows with its square root."""

_MAX_ROWS_LOOKED_AT = 100_000  # more see hardly more than the bound itself
_RATE_STEPS = 24  # halvings of [bound, 1]
_NEGLIGIBLE = 1e-12


def detection_power(n: int, rate: float, bound: float, alpha: float) -> float:
    """Compute the chance that ``n`` rows of that rate cross ``crossed(harm, n, bound, alpha)``.

    Raises:
        InvalidInput: as :func:`penstock.policy.sequential.crossed`.
    """
    return binomial_tail(_smallest_crossing(n, bound, alpha), n, rate)


@lru_cache(maxsize=1024)
def rows_needed(rate: float, bound: float, alpha: float, power: float) -> int:
    """Return how many rows see ``rate`` with the chance ``power``, at the least; never more than 2^20.

    Args:
        rate: the true rate; above the bound.

    Raises:
        InvalidInput: as :func:`penstock.policy.sequential.crossed`.
    """
    least, most = 0, 1
    while detection_power(most, rate, bound, alpha) < power and most < _MAX_ROWS:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        if detection_power(middle, rate, bound, alpha) < power:
            least = middle
        else:
            most = middle
    return most


@lru_cache(maxsize=1024)
def detectable_rate(n: int, bound: float, alpha: float, power: float) -> float:
    """Return the smallest rate that ``n`` rows would show with the chance ``power``; 1 where they show none.

    Raises:
        InvalidInput: as :func:`penstock.policy.sequential.crossed`.
    """
    looked_at = min(n, _MAX_ROWS_LOOKED_AT)
    return _smallest_rate(_smallest_crossing(looked_at, bound, alpha), looked_at, bound, power)


@lru_cache(maxsize=1024)
def detectable_share(n: int, limit: float, power: float) -> float:
    """Return the smallest rate at which more than ``limit`` of ``n`` turn out bad with the chance ``power``."""
    looked_at = min(n, _MAX_ROWS_LOOKED_AT)
    return _smallest_rate(math.floor(limit * looked_at) + 1, looked_at, limit, power)


def binomial_tail(k: int, n: int, rate: float) -> float:
    """Compute the chance that at least ``k`` of ``n`` trials succeed, each with the chance ``rate``."""
    if k <= 0:
        return 1.0
    if k > n or rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    # from the edge outwards, on the side where terms shrink: no term of the long rest is computed
    if k > n * rate:
        return min(1.0, _sum_from(k, n, rate))
    return max(0.0, 1.0 - _sum_from(n - k + 1, n, 1 - rate))


def _sum_from(k: int, n: int, rate: float) -> float:
    log_first = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    term = math.exp(log_first + k * math.log(rate) + (n - k) * math.log1p(-rate))
    total, odds = 0.0, rate / (1 - rate)
    while term > total * _NEGLIGIBLE and k <= n:
        total += term
        term *= (n - k) / (k + 1) * odds
        k += 1
    return total


def _smallest_crossing(n: int, bound: float, alpha: float) -> int:
    """Return the fewest harmful rows among ``n`` that cross; n + 1 when even all of them do not."""
    least, most = -1, n + 1
    while most - least > 1:
        middle = (least + most) // 2
        if crossed(middle, n, bound, alpha):
            most = middle
        else:
            least = middle
    return most


def _smallest_rate(k: int, n: int, least: float, power: float) -> float:
    if binomial_tail(k, n, 1.0) < power:
        return 1.0
    most = 1.0
    for _ in range(_RATE_STEPS):
        middle = (least + most) / 2
        if binomial_tail(k, n, middle) < power:
            least = middle
        else:
            most = middle
    return most
