"""When to try again, and when to stop trying for a while.

Values and plain functions of ``now`` and a random number that the caller draws. Sleeps nowhere, and does not decide
which errors are worth another try: an error says so itself by ``retry_after_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from penstock.errors import ConfigError

Phase = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential back-off with full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: of the jitters tried, drawing
    from the whole interval finishes with the least work.

    Attributes:
        base_s: upper end of the first delay.
        factor: growth per attempt.
        max_s: no delay is longer.
    """

    base_s: float = 0.1
    factor: float = 2.0
    max_s: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.base_s <= self.max_s < math.inf and 1 <= self.factor < math.inf):
            raise ConfigError(
                f"a back-off needs 0 < base_s <= max_s and factor >= 1, not {self.base_s}, {self.max_s}, {self.factor}"
            )

    def delay_s(self, attempt: int, random: float, *, retry_after_s: float | None = None) -> float:
        """Return the seconds to wait before a retry.

        Args:
            attempt: 0 for the first retry.
            random: uniform in [0, 1).
            retry_after_s: what the server asked for. The jitter comes on top, so that not everybody it told the same
                returns at once; ``max_s`` bounds the sum, or a wrong header could stop a client for good.
        """
        growth = min(max(attempt, 0) * math.log(self.factor), math.log(self.max_s / self.base_s))
        jitter_s = random * min(self.base_s * math.exp(growth), self.max_s)
        return min(max(retry_after_s or 0.0, 0.0) + jitter_s, self.max_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """Stops calls to a peer that keeps failing, and lets one through now and then to see whether it is back.

    ========== =================== ======================= ======================================
    phase      record(success)     record(failure)         allows
    ========== =================== ======================= ======================================
    closed     closed, 0 failures  closed; open at limit   yes
    open       open                open                    no; after open_s one probe, half_open
    half_open  closed, 0 failures  open, for twice as long no; after open_s another probe
    ========== =================== ======================= ======================================

    The time doubles with each probe that fails, up to ``max_open_s``: a peer that hangs is not asked every two seconds
    for days.

    An open breaker ignores results: they belong to calls from before it opened, and must neither close it early nor
    keep it open longer. A half-open one lets another probe through after ``open_s``, since the first may have been
    cancelled without a result.

    Attributes:
        failure_limit: failures in a row that open it.
        open_s: how long it stays open at first.
        max_open_s: how long at the most; None for ``open_s`` each time.
        phase: where it stands in the table above.
        failures: failures in a row so far.
        since: when it opened, or when the last probe left.
        failed_probes: in a row, since it opened.
    """

    failure_limit: int = 3
    open_s: float = 2.0
    max_open_s: float | None = None
    phase: Phase = "closed"
    failures: int = 0
    since: float = 0.0
    failed_probes: int = 0

    def __post_init__(self) -> None:
        if self.failure_limit < 1 or not 0 <= self.open_s < math.inf:
            raise ConfigError(
                f"a breaker needs failure_limit >= 1 and open_s >= 0, not {self.failure_limit} and {self.open_s}"
            )
        if self.max_open_s is not None and not self.open_s <= self.max_open_s < math.inf:
            raise ConfigError(f"a breaker needs max_open_s >= open_s ({self.open_s}), not {self.max_open_s}")

    def allows(self, now: float) -> tuple[CircuitBreaker, bool]:
        """Return the breaker after asking, and whether a call may be made now. A call that was allowed should be
        recorded.
        """
        if self.phase == "closed":
            return self, True
        if now - self.since < self._pause_s:
            return self, False
        return replace(self, phase="half_open", since=now), True

    def record(self, success: bool, now: float) -> CircuitBreaker:
        """Return the breaker after a call has ended."""
        if self.phase == "open":
            return self
        if success:
            return self if self.failures == 0 and self.phase == "closed" else self._closed()
        failures = self.failures + 1
        if failures >= self.failure_limit:  # a half-open breaker is there already: its one probe decides
            failed = self.failed_probes + (self.phase == "half_open")
            return replace(self, phase="open", failures=failures, since=now, failed_probes=failed)
        return replace(self, failures=failures)

    def wait_s(self, now: float) -> float:
        """Return seconds until a call may be allowed; 0.0 when one is now."""
        return 0.0 if self.phase == "closed" else max(0.0, self.since + self._pause_s - now)

    @property
    def _pause_s(self) -> float:
        longest_s = self.open_s if self.max_open_s is None else self.max_open_s
        return min(self.open_s * 2.0 ** min(self.failed_probes, 64), longest_s)

    def _closed(self) -> CircuitBreaker:
        return replace(self, phase="closed", failures=0, since=0.0, failed_probes=0)
