"""Counts what became of every row, per model and artifact: since the last drain, and since the artifact was activated.

Owns numbers only. What a row's outcome is, is decided by ``edge_agent.serving.dataplane``; making counts durable and
delivering them is the uplink's work. Single-threaded: all calls come from the event loop.

Every row of an admitted request ends in exactly one of four buckets:

- ``kept``: answered on the device, because its score reached the certified threshold (reason ``confident``);
- ``escalated``: answered by the cloud. A cloud call that failed is never counted here;
- ``unreachable``: should have been answered by the cloud and was answered on the device instead, flagged. The reason is
  in the answer: ``cloud_unreachable``, ``deadline``, ``budget`` or ``privacy``;
- ``failed``: got no answer. The engine failed, the deadline passed, the client went away, or ``on_unreachable`` is
  ``fail`` and the cloud could not be asked.

Requests that are refused before admission (malformed, unknown model, queue full) have no rows here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """Rows by outcome. ``requests`` is always the sum of the four buckets.

    Attributes:
        audited: rows drawn for the audit whose harm is known. ``audit_harm``: of these, kept and edge != cloud.
    """

    kept: int = 0
    escalated: int = 0
    unreachable: int = 0
    failed: int = 0
    audited: int = 0
    audit_harm: int = 0

    @property
    def requests(self) -> int:
        """Rows that entered."""
        return self.kept + self.escalated + self.unreachable + self.failed

    def __add__(self, other: OutcomeCounts) -> OutcomeCounts:
        return OutcomeCounts(
            kept=self.kept + other.kept,
            escalated=self.escalated + other.escalated,
            unreachable=self.unreachable + other.unreachable,
            failed=self.failed + other.failed,
            audited=self.audited + other.audited,
            audit_harm=self.audit_harm + other.audit_harm,
        )


NOTHING = OutcomeCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalCounts:
    """Counts of one artifact between two drains. Times are UNIX seconds of the device's clock, for people only."""

    model: str
    artifact_digest: str
    requests: int
    kept: int
    escalated: int
    unreachable: int
    failed: int
    audited: int
    audit_harm: int
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
        self._interval = [0, 0, 0, 0, 0, 0]

    @property
    def total(self) -> OutcomeCounts:
        """Since activation, and before that whatever ``base`` said."""
        return self._base + self.interval

    @property
    def interval(self) -> OutcomeCounts:
        """Since the last drain."""
        kept, escalated, unreachable, failed, audited, harm = self._interval
        return OutcomeCounts(
            kept=kept, escalated=escalated, unreachable=unreachable, failed=failed, audited=audited, audit_harm=harm
        )

    def record(self, *, kept: int = 0, escalated: int = 0, unreachable: int = 0, failed: int = 0) -> None:
        """Add the outcomes of one request's rows."""
        counts = self._interval
        counts[0] += kept
        counts[1] += escalated
        counts[2] += unreachable
        counts[3] += failed

    def record_audit(self, *, audited: int, harm: int) -> None:
        """Add drawn rows whose harm is now known."""
        self._interval[4] += audited
        self._interval[5] += harm

    def drain(self) -> OutcomeCounts:
        """The interval's counts; starts a new interval."""
        drained = self.interval
        self._base += drained
        self._interval = [0, 0, 0, 0, 0, 0]
        return drained


class Outcomes:
    """All tallies of this agent. Bounded by the artifacts that are loaded, plus retired ones until the next drain."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        """``now`` is wall-clock time in UNIX seconds."""
        self._now = now
        self._started_at = now()
        self._tallies: dict[tuple[str, str], Tally] = {}

    def open(self, model: str, artifact_digest: str, base: OutcomeCounts = NOTHING) -> Tally:
        """The tally of an artifact, a new one that starts at ``base`` where there is none."""
        key = (model, artifact_digest)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(model, artifact_digest, base)
        tally.is_retired = False
        return tally

    def retire(self, model: str, artifact_digest: str) -> None:
        """The artifact is gone: its tally is dropped with the drain that empties it."""
        tally = self._tallies.get((model, artifact_digest))
        if tally is not None:
            tally.is_retired = True

    def totals(self) -> list[tuple[Tally, OutcomeCounts]]:
        """Every tally with its total, for metrics and status."""
        return [(tally, tally.total) for tally in self._tallies.values()]

    def drain(self) -> list[IntervalCounts]:
        """Counts of every artifact that saw rows or audits since the last drain; starts a new interval."""
        started_at, ended_at = self._started_at, self._now()
        self._started_at = ended_at
        drained = []
        for key, tally in list(self._tallies.items()):
            counts = tally.drain()
            if counts != NOTHING:
                drained.append(_interval(tally, counts, started_at, ended_at))
            elif tally.is_retired:
                # one empty drain later, not at once: an audit of the retired artifact may still come in
                del self._tallies[key]
        return drained


def _interval(tally: Tally, counts: OutcomeCounts, started_at: float, ended_at: float) -> IntervalCounts:
    return IntervalCounts(
        model=tally.model,
        artifact_digest=tally.artifact_digest,
        requests=counts.requests,
        kept=counts.kept,
        escalated=counts.escalated,
        unreachable=counts.unreachable,
        failed=counts.failed,
        audited=counts.audited,
        audit_harm=counts.audit_harm,
        started_at=started_at,
        ended_at=ended_at,
    )
