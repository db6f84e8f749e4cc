"""What the fleet service keeps in the database: devices, outcome counts, assignments and rollouts.

SQL only: documents are opaque JSON here, and what to write is decided in ``cloud_core.policy`` and
``cloud_core.fleet``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, delete, insert, select, update

from cloud_core.state import tables
from cloud_core.state.database import Transaction, upsert
from penstock.wire.outcomes import OutcomeCounts, from_columns

MAX_ACTIONS = 1000
"""Actions of operators that are remembered; the log has them all."""

_BY_INSTANCE = (tables.device_instances, tables.outcome_counts, tables.device_evidence)
# building a statement costs several times what running it does, and each delivery asks
_IS_KNOWN = select(tables.devices.c.device_id).where(tables.devices.c.device_id == bindparam("wanted"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """Holds a device's last report as JSON, and when the server saw it (UNIX seconds, server clock).

    Attributes:
        runs_since: JSON; by model, when it was first seen to run what it runs.
    """

    device_id: str
    reported: str
    first_seen: float
    last_seen: float
    runs_since: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRow:
    """Holds the highest sequence that is counted of one data directory of a device; "" is that of older agents."""

    device_id: str
    instance: str
    durable_sequence: int
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsRow:
    """Holds cumulative outcome counts of one artifact on one instance of a device."""

    device_id: str
    instance: str
    artifact_digest: str
    model: str
    counts: OutcomeCounts
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRow:
    """Names what a device should run, and the rollout that said so.

    Attributes:
        digest: the artifact; "" for nothing.
        certificate_digest: None when an older release did not keep it.
    """

    device_id: str
    model: str
    digest: str
    rollout_id: str
    certificate_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """Names what devices without an assignment run.

    Attributes:
        digest: the artifact; "" when the model was removed.
        certificates: None when an older release did not keep them.
    """

    model: str
    digest: str
    certificates: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRow:
    """Records which promise of a model an operator trusts on a device, and since when (UNIX seconds)."""

    device_id: str
    model: str
    artifact_digest: str
    certificate_digest: str
    trusted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """Records what an operator did: when (UNIX seconds), who by their own account, to what, and why."""

    at: float
    who: str
    action: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """Holds a rollout as JSON.

    Attributes:
        number: counts up from 1 over all models.
    """

    number: int
    rollout_id: str
    model: str
    state: str
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    """Holds the evidence of a fleet against the promise of one certificate; ``rounds`` is JSON."""

    artifact_digest: str
    certificate_digest: str
    model: str
    rounds: str
    strength: float
    started_at: float
    updated_at: float
    alarmed_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRow:
    """Holds the evidence of one instance of a device against a promise as JSON.

    Attributes:
        has_vote: whether what it audited in the open round counts.
    """

    device_id: str
    instance: str
    artifact_digest: str
    certificate_digest: str
    document: str
    has_vote: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRows:
    """Holds everything, as read at start-up."""

    devices: tuple[DeviceRow, ...]
    instances: tuple[InstanceRow, ...]
    counts: tuple[CountsRow, ...]
    assignments: tuple[AssignmentRow, ...]
    rollouts: tuple[RolloutRow, ...]
    pools: tuple[PoolRow, ...]
    evidence: tuple[EvidenceRow, ...]
    releases: tuple[ReleaseRow, ...] = ()
    actions: tuple[ActionRow, ...] = ()
    handed: tuple[tuple[int, str], ...] = ()
    trusts: tuple[TrustRow, ...] = ()
    last_number: int = 0


def read(transaction: Transaction) -> FleetRows:
    """Read everything."""
    rollouts = transaction.execute(select(tables.rollouts).order_by(tables.rollouts.c.number)).mappings()
    return FleetRows(
        devices=tuple(DeviceRow(**row) for row in transaction.execute(select(tables.devices)).mappings()),
        instances=tuple(InstanceRow(**row) for row in transaction.execute(select(tables.device_instances)).mappings()),
        counts=tuple(_counts_row(row) for row in transaction.execute(select(tables.outcome_counts))),
        assignments=tuple(AssignmentRow(**row) for row in transaction.execute(select(tables.assignments)).mappings()),
        rollouts=tuple(RolloutRow(**row) for row in rollouts),
        pools=tuple(PoolRow(**row) for row in transaction.execute(select(tables.evidence_pools)).mappings()),
        evidence=tuple(EvidenceRow(**row) for row in transaction.execute(select(tables.device_evidence)).mappings()),
        releases=tuple(_release_row(row) for row in transaction.execute(select(tables.releases))),
        actions=_actions(transaction),
        handed=tuple((row.rollout, row.device_id) for row in transaction.execute(select(tables.handed))),
        trusts=tuple(TrustRow(**row) for row in transaction.execute(select(tables.trusts)).mappings()),
        last_number=transaction.execute(select(tables.counters.c.last)).scalar_one_or_none() or 0,
    )


def save_devices(transaction: Transaction, rows: Sequence[DeviceRow]) -> None:
    """Insert or replace devices."""
    upsert(transaction, tables.devices, [_values(row) for row in rows], leave=("first_seen",))


def forget_devices(transaction: Transaction, device_ids: Iterable[str]) -> None:
    """Remove devices with everything that is known of them."""
    wanted = list(device_ids)
    for table in (tables.devices, tables.assignments, tables.handed, tables.trusts, *_BY_INSTANCE):
        transaction.execute(delete(table).where(table.c.device_id.in_(wanted)))


def forget_instances(transaction: Transaction, device_id: str, instances: Iterable[str]) -> None:
    """Remove data directories of a device with everything that they delivered."""
    wanted = list(instances)
    for table in _BY_INSTANCE if wanted else ():  # a delivery hardly ever forgets one
        chosen = (table.c.device_id == device_id) & table.c.instance.in_(wanted)
        transaction.execute(delete(table).where(chosen))


def record_outcomes(
    transaction: Transaction, device: DeviceRow, instance: InstanceRow, counts: Sequence[CountsRow]
) -> None:
    """Store new totals and the sequence they include, together."""
    upsert(transaction, tables.outcome_counts, [_counts_values(row) for row in counts])
    upsert(transaction, tables.device_instances, [_values(instance)])
    if transaction.execute(_IS_KNOWN, {"wanted": device.device_id}).first() is None:
        # its first heartbeat is not on disk yet; without a row, what it delivered would be nobody's
        transaction.execute(insert(tables.devices).values(**_values(device)))


def record_evidence(
    transaction: Transaction,
    *,
    pools: Sequence[PoolRow],
    devices: Sequence[EvidenceRow],
    closed: Iterable[tuple[str, str]],
    dropped: Iterable[tuple[str, str]],
) -> None:
    """Store evidence; promises are (artifact digest, certificate digest).

    Args:
        closed: promises whose round is over: no vote counts any more.
        dropped: promises to forget.
    """
    votes = tables.device_evidence
    for artifact_digest, certificate_digest in closed:
        chosen = (votes.c.artifact_digest == artifact_digest) & (votes.c.certificate_digest == certificate_digest)
        transaction.execute(update(votes).where(chosen & votes.c.has_vote).values(has_vote=False))
    upsert(transaction, tables.evidence_pools, [_values(row) for row in pools])
    upsert(transaction, votes, [_values(row) for row in devices])
    for artifact_digest, certificate_digest in dropped:
        for table in (tables.evidence_pools, votes):
            chosen = (table.c.artifact_digest == artifact_digest) & (table.c.certificate_digest == certificate_digest)
            transaction.execute(delete(table).where(chosen))


def drop_counts(transaction: Transaction, device_id: str, instance: str, artifact_digests: Iterable[str]) -> None:
    """Forget counts of old artifacts."""
    table = tables.outcome_counts
    mine = (table.c.device_id == device_id) & (table.c.instance == instance)
    chosen = mine & table.c.artifact_digest.in_(list(artifact_digests))
    transaction.execute(delete(table).where(chosen))


def save_rollout(transaction: Transaction, row: RolloutRow) -> None:
    """Insert or replace a rollout."""
    upsert(transaction, tables.rollouts, [_values(row)])


def note_number(transaction: Transaction, number: int) -> None:
    """Record the last number that a rollout was given."""
    upsert(transaction, tables.counters, [{"name": "rollouts", "last": number}])


def drop_rollouts(transaction: Transaction, numbers: Iterable[int]) -> None:
    """Forget rollouts."""
    transaction.execute(delete(tables.rollouts).where(tables.rollouts.c.number.in_(list(numbers))))


def record_handed(transaction: Transaction, device_id: str, numbers: Iterable[int], at: float) -> None:
    """Record that a device was told to run the artifacts of these rollouts."""
    upsert(transaction, tables.handed, [{"rollout": n, "device_id": device_id, "handed_at": at} for n in numbers])


def drop_handed(transaction: Transaction, numbers: Iterable[int]) -> None:
    """Forget which devices were told to run the artifacts of these rollouts."""
    transaction.execute(delete(tables.handed).where(tables.handed.c.rollout.in_(list(numbers))))


def assign(transaction: Transaction, assigned: Iterable[AssignmentRow]) -> None:
    """Point devices at artifacts and certificates."""
    upsert(transaction, tables.assignments, [_values(row) for row in assigned])


def set_release(transaction: Transaction, row: ReleaseRow) -> None:
    """Say what devices without an assignment run."""
    kept = None if row.certificates is None else json.dumps(row.certificates)
    upsert(transaction, tables.releases, [{"model": row.model, "digest": row.digest, "certificates": kept}])


def drop_release(transaction: Transaction, model: str) -> None:
    """Forget that a model was ever released."""
    transaction.execute(delete(tables.releases).where(tables.releases.c.model == model))


def record_action(transaction: Transaction, row: ActionRow) -> None:
    """Record what an operator did; the oldest beyond a limit go."""
    table = tables.operator_actions
    transaction.execute(insert(table).values(**_values(row)))
    newest = select(table.c.id).order_by(table.c.id.desc()).limit(MAX_ACTIONS)
    transaction.execute(delete(table).where(table.c.id.not_in(newest)))


def trust(transaction: Transaction, rows: Sequence[TrustRow]) -> None:
    """Record which promises an operator trusts."""
    upsert(transaction, tables.trusts, [_values(row) for row in rows])


def clear_assignments(transaction: Transaction, model: str) -> None:
    """Let every device follow the model's default again."""
    transaction.execute(delete(tables.assignments).where(tables.assignments.c.model == model))


def _counts_row(row: Row[Any]) -> CountsRow:
    return CountsRow(
        device_id=row.device_id,
        instance=row.instance,
        artifact_digest=row.artifact_digest,
        model=row.model,
        counts=from_columns(row),
        updated_at=row.updated_at,
    )


def _counts_values(row: CountsRow) -> dict[str, object]:
    values = {name: getattr(row, name) for name in CountsRow.__slots__ if name != "counts"}
    return values | row.counts.columns()


def _release_row(row: Row[Any]) -> ReleaseRow:
    kept = None if row.certificates is None else tuple(json.loads(row.certificates))
    return ReleaseRow(model=row.model, digest=row.digest, certificates=kept)


def _actions(transaction: Transaction) -> tuple[ActionRow, ...]:
    table = tables.operator_actions
    found = transaction.execute(select(*(table.c[name] for name in ActionRow.__slots__)).order_by(table.c.id))
    return tuple(ActionRow(**row) for row in found.mappings())


def _values(
    row: TrustRow | DeviceRow | InstanceRow | AssignmentRow | RolloutRow | PoolRow | EvidenceRow | ActionRow,
) -> dict[str, object]:
    return {name: getattr(row, name) for name in type(row).__slots__}
