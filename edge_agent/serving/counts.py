"""Counts what became of every row, per model and artifact: since the last drain, and since the artifact was activated.

Owns numbers only. The counters are defined in ``penstock.wire.outcomes``; which of them a row raises is decided by
``edge_agent.serving.dataplane``; making counts durable and delivering them is the work of ``edge_agent.reporting``.
Single-threaded: all calls come from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.wire.outcomes import COUNTERS, NOTHING, OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalCounts:
    """Counts of one artifact between two drains.

    Attributes:
        counts: of this interval only.
        started_at: UNIX seconds of the device's clock, for people only.
        ended_at: as ``started_at``.
    """

    model: str
    artifact_digest: str
    counts: OutcomeCounts
    started_at: float
    ended_at: float


class Tally:
    """The running counts of one artifact."""

    __slots__ = ("_base", "_interval", "artifact_digest", "is_retired", "model")

    def __init__(self, model: str, artifact_digest: str, base: OutcomeCounts = NOTHING) -> None:
        self.model = model
        self.artifact_digest = artifact_digest
        self.is_retired = False
        self._base = base
        self._interval = dict.fromkeys(COUNTERS, 0)

    @property
    def total(self) -> OutcomeCounts:
        """Return the counts since activation, on top of ``base``."""
        return self._base + self.interval

    @property
    def interval(self) -> OutcomeCounts:
        """Return the counts since the last drain."""
        return OutcomeCounts(**self._interval)

    def record(self, **rows: int) -> None:
        """Add rows to counters; the names are those of :class:`OutcomeCounts`.

        Raises:
            KeyError: there is no such counter.
        """
        counts = self._interval
        for name, number in rows.items():
            counts[name] += number

    def drain(self) -> OutcomeCounts:
        """Return the interval's counts and start a new interval."""
        drained = self.interval
        self._base += drained
        self._interval = dict.fromkeys(COUNTERS, 0)
        return drained


class Outcomes:
    """All tallies of this agent. Bounded by the artifacts that are loaded, plus retired ones until the next drain."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        """Start the first interval.

        Args:
            now: wall clock, UNIX seconds.
        """
        self._now = now
        self._started_at = now()
        self._tallies: dict[tuple[str, str], Tally] = {}

    def open(self, model: str, artifact_digest: str, base: OutcomeCounts = NOTHING) -> Tally:
        """Return the tally of an artifact; where there is none, make one that starts at ``base``."""
        key = (model, artifact_digest)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(model, artifact_digest, base)
        tally.is_retired = False
        return tally

    def retire(self, model: str, artifact_digest: str) -> None:
        """Note that an artifact is gone: its tally is dropped by the drain that finds it empty."""
        tally = self._tallies.get((model, artifact_digest))
        if tally is not None:
            tally.is_retired = True

    def drain(self) -> list[IntervalCounts]:
        """Return the counts of every artifact that saw rows or audits since the last drain; start a new interval."""
        started_at, ended_at = self._started_at, self._now()
        self._started_at = ended_at
        drained = []
        for key, tally in list(self._tallies.items()):
            counts = tally.drain()
            if counts != NOTHING:
                drained.append(
                    IntervalCounts(
                        model=tally.model,
                        artifact_digest=tally.artifact_digest,
                        counts=counts,
                        started_at=started_at,
                        ended_at=ended_at,
                    )
                )
            elif tally.is_retired:
                # one empty drain later, not at once: an audit of the retired artifact may still come in
                del self._tallies[key]
        return drained
