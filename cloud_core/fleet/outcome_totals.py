"""Outcome counts per device and artifact: folding deliveries in so that nothing is counted twice.

Plain functions of values. What the counts mean for a rollout is ``cloud_core.policy.gates``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.artifact.blobs import check_digest
from penstock.errors import ArtifactError

MAX_COUNT = 2**40
"""Most rows in one record; a larger number is a defect of the device."""

MAX_SEQUENCE = 2**62
_MAX_TOTAL = 2**62  # totals stop there, or one device's nonsense would overflow the database's integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Rows by what became of them; the fields of ``penstock.v1.OutcomeCounts``."""

    requests: int = 0
    kept: int = 0
    escalated: int = 0
    unreachable: int = 0
    failed: int = 0
    audited: int = 0
    audit_harm: int = 0

    def __add__(self, other: Counts) -> Counts:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__}
        return Counts(**{name: min(total, _MAX_TOTAL) for name, total in sums.items()})

    def since(self, baseline: Counts) -> Counts:
        """What was counted after ``baseline``; never negative."""
        return Counts(**{name: max(0, getattr(self, name) - getattr(baseline, name)) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One interval of one artifact on one device."""

    sequence: int
    model: str
    artifact_digest: str
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """New totals of the artifacts that changed, the highest sequence included, and what was refused and why."""

    totals: dict[str, Counts]
    models: dict[str, str]
    sequence: int
    refused: tuple[str, ...]


def fold(records: Iterable[Record], *, durable_sequence: int, totals: Mapping[str, Counts]) -> Folded:
    """Add records that are new.

    A record at or below the sequence that is durable was counted before: duplicates and replays change nothing. One
    that cannot be true is refused for good, because a device that must keep it would never deliver what comes after.
    """
    changed: dict[str, Counts] = {}
    models: dict[str, str] = {}
    refused = []
    sequence = durable_sequence
    for record in sorted(records, key=lambda r: r.sequence):
        if record.sequence <= sequence:
            continue
        if record.sequence >= MAX_SEQUENCE:
            refused.append(f"sequence {record.sequence} is out of range")
            break  # accepting it would make every later record look old
        sequence = record.sequence
        problem = _problem(record)
        if problem:
            refused.append(f"record {record.sequence}: {problem}")
            continue
        before = changed.get(record.artifact_digest) or totals.get(record.artifact_digest) or Counts()
        changed[record.artifact_digest] = before + record.counts
        models[record.artifact_digest] = record.model
    return Folded(totals=changed, models=models, sequence=sequence, refused=tuple(refused))


def _problem(record: Record) -> str:
    if not record.model or len(record.model) > 255:
        return "it names no model"
    try:
        check_digest(record.artifact_digest)
    except ArtifactError as error:
        return error.message
    values = [getattr(record.counts, name) for name in Counts.__slots__]
    if min(values) < 0 or max(values) > MAX_COUNT:
        return f"a count is negative or above {MAX_COUNT}"
    if record.counts.audit_harm > record.counts.audited:
        return f"{record.counts.audit_harm} harmful of {record.counts.audited} audited rows"
    return ""
