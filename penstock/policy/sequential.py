"""Is a rate above its bound? Anytime-valid tests from totals alone.

An e-process is a bet against "the rate is at most the bound" that is fair or worse if the claim is true; by Ville's
inequality it ever exceeds 1/alpha with probability at most alpha. So it may be looked at after every single outcome,
which a p-value may not. Decides whether there is enough evidence; what to do about it is the caller's decision.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv 2010.09686;
"risk monitoring by betting", arXiv 2506.16416.
"""

from __future__ import annotations

import math

from penstock.errors import InvalidInput

STAKES = (0.9, 0.65, 0.45, 0.3, 0.2, 0.12, 0.06, 0.03, 0.015, 0.0075, 0.003, 0.001)
"""Shares of the largest stake (1/bound) that are bet at once, with equal weight. Large ones see a bad failure within a
few outcomes, small ones a slight excess over many, or over a small bound. Fixed, so that the value depends on nothing
but the totals: outcomes may arrive in any order, in batches of any size, from any number of devices, and a restart
loses nothing."""

_LARGEST_LOG = 690.0  # e**690 is still a finite double, and finite in JSON


def e_value_above(harm: int, n: int, bound: float) -> float:
    """Compute the evidence that the rate is above ``bound``: ``mean_j (1 + l_j (1 - b))^harm (1 - l_j b)^(n - harm)``.

    Args:
        harm: harmful outcomes among ``n``.
        bound: the claim under test is that each outcome is harmful with probability at most this, in [0, 1].

    Returns:
        The e-value: 1 with no outcomes, large when the claim is untenable; never above about 1e299.

    Raises:
        InvalidInput: counts that cannot be, or a bound outside [0, 1].
    """
    return math.exp(min(_log_e_value(harm, n, bound), _LARGEST_LOG))


def crossed(harm: int, n: int, bound: float, alpha: float) -> bool:
    """Say whether the evidence has reached 1/alpha: under the claim this *ever* happens with probability at most alpha.

    Raises:
        InvalidInput: as :func:`e_value_above`, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise InvalidInput(f"alpha: {alpha!r} is not between 0 and 1", field="alpha")
    return _log_e_value(harm, n, bound) >= -math.log(alpha)


def _log_e_value(harm: int, n: int, bound: float) -> float:
    if not 0 <= harm <= n:
        raise InvalidInput(f"harm: {harm} harmful of {n} outcomes is not possible", field="harm")
    if not 0 <= bound <= 1:
        raise InvalidInput(f"bound: {bound!r} is not a rate between 0 and 1", field="bound")
    if bound == 0:
        return math.inf if harm else 0.0  # a claim of "never" is refuted by one case
    # with stake s = l * bound: 1 + l (1 - b) = 1 + s (1 - b) / b, and 1 - l b = 1 - s
    gain = (1 - bound) / bound
    logs = [harm * math.log1p(s * gain) + (n - harm) * math.log1p(-s) for s in STAKES]
    highest = max(logs)
    return highest + math.log(math.fsum(math.exp(x - highest) for x in logs) / len(STAKES))
