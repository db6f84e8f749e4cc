"""Has a rate risen above its bound? A test that stays sharp however long all was well before.

An e-process adds up everything since the first day, so that good evidence of years hides a change of today. An
e-detector starts again at every outcome and adds all these starts up (Shiryaev-Roberts): under the claim "the rate is
at most the bound" it grows by at most one an outcome on average, so the mean number of outcomes until a false alarm at
``c`` is at least ``c``. What was good long ago leaves nothing behind. Decides whether there is enough evidence; what to
do about it is the caller's decision.

Source: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", arXiv
2203.03532, theorem 2.4.
"""

from __future__ import annotations

import math

from penstock.errors import InvalidInput

ALTERNATIVES = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Multiples of the bound that are looked for at once, with equal weight: a likelihood ratio for each."""

Evidence = tuple[float, ...]
"""One number for each of :data:`ALTERNATIVES`: all that has to be remembered."""

FRESH: Evidence = (0.0,) * len(ALTERNATIVES)

LARGEST = 1e299
"""Evidence stops there: finite, also in JSON."""


def updated(evidence: Evidence, *, harm: int, n: int, bound: float) -> Evidence:
    """Take outcomes in whose order is not known: one start for each, all of them before the first.

    Args:
        harm: harmful outcomes among ``n``.
        bound: the claim under test is that each outcome is harmful with probability at most this, in [0, 1].

    Raises:
        InvalidInput: counts that cannot be, a bound outside [0, 1], or evidence of another form.
    """
    if not 0 <= harm <= n:
        raise InvalidInput(f"harm: {harm} harmful of {n} outcomes is not possible", field="harm")
    if not 0 <= bound <= 1:
        raise InvalidInput(f"bound: {bound!r} is not a rate between 0 and 1", field="bound")
    if len(evidence) != len(ALTERNATIVES):
        raise InvalidInput(f"evidence: {len(evidence)} numbers, expected {len(ALTERNATIVES)}", field="evidence")
    if bound == 1 or n == 0:
        return evidence  # no rate is above 1
    if bound == 0:
        return (LARGEST,) * len(evidence) if harm else evidence  # a claim of "never" is refuted by one case
    return tuple(
        _grown(before + n, harm * up + (n - harm) * down)
        for before, (up, down) in zip(evidence, log_ratios(bound), strict=True)
    )


def updated_by_share(evidence: Evidence, *, share: float, bound: float) -> Evidence:
    """Take one outcome in that is a number: how harmful it was.

    Args:
        share: from 0 to 1.
        bound: the claim under test is that it is at most this on average, in [0, 1].

    Raises:
        InvalidInput: a share or a bound outside [0, 1], or evidence of another form.
    """
    if not 0 <= share <= 1:
        raise InvalidInput(f"share: {share!r} is not between 0 and 1", field="share")
    if share in (0.0, 1.0) or bound == 1:
        return updated(evidence, harm=int(share), n=1, bound=bound)
    updated(evidence, harm=0, n=0, bound=bound)  # checks the other arguments
    return tuple(_grown(before + 1, log) for before, log in zip(evidence, log_factor(share, bound), strict=True))


def strength(evidence: Evidence) -> float:
    """Return the evidence as one number, to be compared with the run length that was promised."""
    return math.fsum(evidence) / len(evidence)


def log_factor(share: float, bound: float) -> Evidence:
    """Return the logarithm that one outcome in [0, 1] multiplies by, for each alternative: a bet on its mean.

    The outcome may be a share of many rows. Its mean is at most the bound under the claim, so the factor's is at most
    1; for 0 and 1 it is the likelihood ratio.
    """
    if bound == 0:
        return (_LARGEST_LOG if share else 0.0,) * len(ALTERNATIVES)
    pairs = ((math.exp(up), math.exp(down)) for up, down in log_ratios(bound))
    return tuple(math.log(down + share * (up - down)) for up, down in pairs)


def log_ratios(bound: float) -> tuple[tuple[float, float], ...]:
    """Return the logarithms that a harmful and a harmless outcome multiply by, for each alternative; bound in (0, 1).

    An alternative beyond certainty is pulled back to halfway between the bound and 1.
    """
    rates = [min(multiple * bound, (1 + bound) / 2) for multiple in ALTERNATIVES]
    return tuple((math.log(rate / bound), math.log((1 - rate) / (1 - bound))) for rate in rates)


_LARGEST_LOG = math.log(LARGEST)


def _grown(sum_of_starts: float, log_factor: float) -> float:
    log_value = math.log(sum_of_starts) + log_factor
    return LARGEST if log_value >= _LARGEST_LOG else math.exp(log_value)
