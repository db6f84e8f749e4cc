"""Outcome totals per device and artifact: folds deliveries in so that nothing is counted twice.

Plain functions of values. The counters are defined in ``penstock.wire.outcomes``. What the counts mean for a rollout is
decided in ``cloud_core.policy.rollouts.gates``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from cloud_core.state import fleet as rows
from penstock.artifact.blobs import check_digest
from penstock.errors import ArtifactError
from penstock.wire.outcomes import COUNTERS, NOTHING, OutcomeCounts

MAX_COUNT = 2**40
"""Most rows in one record; a larger number is a defect of the device."""

MAX_SEQUENCE = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Holds the counts of one interval of one artifact on one device."""

    sequence: int
    model: str
    artifact_digest: str
    counts: OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Holds what folding records in has changed.

    Attributes:
        totals: new totals by digest, of the artifacts that changed.
        models: names of their models by digest.
        sequence: the highest sequence that is included.
        refused: why records were refused, one phrase each.
    """

    totals: dict[str, OutcomeCounts]
    models: dict[str, str]
    sequence: int
    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Says what an instance of a device delivered, and which others make room for it."""

    device_id: str
    instance: str
    folded: Folded
    forgotten: tuple[str, ...] = ()


def counts_rows(delivery: Delivery, at: float, *, without: Container[str]) -> list[rows.CountsRow]:
    """Return the totals that a delivery changed as they are stored."""
    return [
        rows.CountsRow(
            device_id=delivery.device_id,
            instance=delivery.instance,
            artifact_digest=digest,
            model=delivery.folded.models[digest],
            counts=counts,
            updated_at=at,
        )
        for digest, counts in delivery.folded.totals.items()
        if digest not in without
    ]


def fold(records: Iterable[Record], *, durable_sequence: int, totals: Mapping[str, OutcomeCounts]) -> Folded:
    """Add records that are new.

    A record at or below the sequence that is durable was counted before: duplicates and replays change nothing. One
    that cannot be true is refused for good, because a device that must keep it would never deliver what comes after.
    """
    changed: dict[str, OutcomeCounts] = {}
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
        before = changed.get(record.artifact_digest) or totals.get(record.artifact_digest) or NOTHING
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
    values = [getattr(record.counts, name) for name in COUNTERS]
    if min(values) < 0 or max(values) > MAX_COUNT:
        return f"a count is negative or above {MAX_COUNT}"
    if record.counts.audit_harm > record.counts.audited:
        return f"{record.counts.audit_harm} harmful of {record.counts.audited} audited rows"
    return ""
