"""How many may pass now, and how long to wait otherwise: a token bucket.

Values and plain functions of ``now``. Owns no clock, no queue and no waiting task; the caller keeps the state it is
handed back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.errors import ConfigError

SLACK = 1e-6
"""Tokens a bucket may be short of without refusing. They are taken as debt, so the long-run rate stays exact. Without
it a caller that slept for just the time it was told could find rounding in its way, on a virtual clock every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketState:
    """``tokens`` left in a bucket ``at`` a time."""

    tokens: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBucket:
    """At most ``burst + rate * w`` tokens in any window of ``w`` seconds.

    Attributes:
        rate: tokens a second.
        burst: tokens a full bucket holds.
    """

    rate: float
    burst: float

    def __post_init__(self) -> None:
        if not (0 < self.rate < math.inf and 0 < self.burst < math.inf):
            raise ConfigError(f"a token bucket needs a positive rate and burst, not {self.rate} and {self.burst}")

    def full(self, now: float) -> BucketState:
        """Return a full bucket."""
        return BucketState(tokens=self.burst, at=now)

    def take(self, state: BucketState, n: float, now: float) -> tuple[BucketState, float]:
        """Take ``n`` tokens, all or none.

        Returns:
            The new state, and 0.0 when they were taken, otherwise the seconds after which they would be there if
            nobody else took any: infinite when ``n`` is more than a full bucket holds. A clock that steps back
            neither adds nor removes tokens.
        """
        at = max(now, state.at)
        tokens = min(self.burst, state.tokens + (at - state.at) * self.rate)
        if n <= tokens + SLACK:
            return BucketState(tokens=tokens - n, at=at), 0.0
        wait_s = (n - tokens) / self.rate if n <= self.burst else math.inf
        return BucketState(tokens=tokens, at=at), wait_s
