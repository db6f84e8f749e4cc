"""How fast a model uses up the failures and the slow answers that its objectives allow.

An objective says which share of requests must be good: answered, or answered within a time. Its burn rate over a window
is the share that was not good, divided by the share that need not be: at 1 the allowance is used up exactly when its
period ends, at 14.4 in a fiftieth of it. Alarms look at a long and a short window together, so that they come early,
and end soon after their cause. Source: Google, The Site Reliability Workbook, chapter 5.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

BUCKET_S = 30.0
WINDOWS_S = (300.0, 1800.0, 3600.0, 21600.0)
"""Windows of burn rates; longer ones are made of the counters by whoever keeps them for days."""

MIN_REQUESTS = 10
"""In the short window, so that one failure in a quiet night wakes nobody."""

_LONGEST_S = WINDOWS_S[-1]
# of clients: they say nothing about the service
_NOT_COUNTED = frozenset({
    "invalid-input", "not-found", "unauthenticated", "permission-denied", "cancelled", "too-large", "conflict",
    "quota-exceeded",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a model promises.

    Attributes:
        answered: share of requests that are answered.
        latency_s: time of an answer that is fast enough.
        fast: share of answers that are.
    """

    answered: float
    latency_s: float
    fast: float


@dataclass(slots=True)
class Counts:
    """Requests of a span of time.

    Attributes:
        requests: that count: what a client did wrong does not.
        failed: of them, those that were not answered.
        slow: of those that were answered, those that took too long.
    """

    requests: int = 0
    failed: int = 0
    slow: int = 0

    def add(self, other: Counts) -> None:
        """Add those of another span."""
        self.requests += other.requests
        self.failed += other.failed
        self.slow += other.slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Burning:
    """One objective in one window.

    Attributes:
        rate: None where nothing was asked.
    """

    objective: str
    window_s: float
    bad: int
    of: int
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An allowance that is used up too fast."""

    objective: str
    severity: str
    rate: float
    limit: float
    window_s: float


@dataclass(frozen=True, slots=True)
class _Rule:
    severity: str
    long_s: float
    short_s: float
    limit: float


_RULES = (_Rule("page", 3600.0, 300.0, 14.4), _Rule("page", 21600.0, 1800.0, 6.0))


class Record:
    """What became of one model's requests, for as long as the longest window. Bounded: one entry a bucket.

    Attributes:
        ever: since this core began.
    """

    def __init__(self) -> None:
        self.ever = Counts()
        self._buckets: deque[tuple[float, Counts]] = deque(maxlen=int(_LONGEST_S / BUCKET_S) + 1)

    def count(self, code: str, took_s: float, objectives: Objectives, now: float) -> None:
        """Count a request that is over."""
        if code in _NOT_COUNTED:
            return
        begins_at = now - now % BUCKET_S
        if not self._buckets or self._buckets[-1][0] < begins_at:
            self._buckets.append((begins_at, Counts()))
        for counts in (self.ever, self._buckets[-1][1]):
            counts.requests += 1
            if code != "ok":
                counts.failed += 1
            elif took_s > objectives.latency_s:
                counts.slow += 1

    def within(self, window_s: float, now: float) -> Counts:
        """Add up what happened in a window that ends now, to within a bucket."""
        total = Counts()
        for begins_at, counts in reversed(self._buckets):
            if begins_at <= now - window_s:
                break
            total.add(counts)
        return total

    def burning(self, objectives: Objectives, now: float) -> tuple[Burning, ...]:
        """Say how fast each allowance is used up, in each window."""
        found = []
        for window_s in WINDOWS_S:
            counts = self.within(window_s, now)
            found.append(_burning("answered", window_s, counts.failed, counts.requests, objectives.answered))
            answered = counts.requests - counts.failed
            found.append(_burning("fast", window_s, counts.slow, answered, objectives.fast))
        return tuple(found)


def alarms(burning: tuple[Burning, ...]) -> tuple[Alarm, ...]:
    """Say which allowances are used up too fast: over a long window, and still over a short one."""
    by_window = {(one.objective, one.window_s): one for one in burning}
    found = []
    for objective in dict.fromkeys(one.objective for one in burning):
        for rule in _RULES:
            long, short = by_window[objective, rule.long_s], by_window[objective, rule.short_s]
            if long.rate is None or short.rate is None or short.of < MIN_REQUESTS:
                continue
            if long.rate > rule.limit and short.rate > rule.limit:
                found.append(
                    Alarm(
                        objective=objective,
                        severity=rule.severity,
                        rate=long.rate,
                        limit=rule.limit,
                        window_s=rule.long_s,
                    )
                )
                break
    return tuple(found)


def window_name(window_s: float) -> str:
    """Write a window as people and Prometheus do: ``5m``, ``6h``."""
    return f"{window_s / 3600:g}h" if window_s >= 3600 else f"{window_s / 60:g}m"


def _burning(objective: str, window_s: float, bad: int, of: int, target: float) -> Burning:
    rate = bad / of / (1 - target) if of else None
    return Burning(objective=objective, window_s=window_s, bad=bad, of=of, rate=rate)
