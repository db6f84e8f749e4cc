"""What the fleet store writes down of a rollout, and how: entries as rows, and rows as entries. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cloud_core.policy.rollouts.assignments import Assignment, FleetRelease, Plan
from cloud_core.policy.rollouts.rollout import Rollout
from cloud_core.state import fleet as rows
from penstock.artifact.blobs import digest_of
from penstock.artifact.manifests import canonical_json
from penstock.wire.outcomes import OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A rollout in the store.

    Attributes:
        plan_digest: of the plan's canonical JSON; what ``apply`` may insist on.
        baselines: totals of the artifact when the device's wave was released, by device; beside them those of each
            instance that has a name, by ``DEVICE/INSTANCE``.
    """

    number: int
    rollout: Rollout
    plan_digest: str
    baselines: Mapping[str, OutcomeCounts]


def new_entry(number: int, rollout: Rollout, baselines: Mapping[str, OutcomeCounts] | None = None) -> Entry:
    """Make the entry of a rollout that is put into the store."""
    digest = digest_of(canonical_json(rollout.plan))
    return Entry(number=number, rollout=rollout, plan_digest=digest, baselines=baselines or {})


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    rollout: Rollout
    baselines: dict[str, OutcomeCounts]


def baseline(device_id: str, instance: str) -> str:
    """Return the key of an instance in :attr:`Entry.baselines`."""
    return f"{device_id}/{instance}" if instance else device_id  # neither has a slash


def row(entry: Entry) -> rows.RolloutRow:
    """Return an entry as it is stored."""
    plan = entry.rollout.plan
    document = _Document(rollout=entry.rollout, baselines=dict(entry.baselines))
    return rows.RolloutRow(
        number=entry.number,
        rollout_id=plan.rollout_id,
        model=plan.model,
        state=entry.rollout.state,
        document=msgspec.json.encode(document).decode(),
    )


def assigned(plan: Plan, device_id: str, target: Assignment) -> rows.AssignmentRow:
    """Return what a rollout tells a device to run as it is stored."""
    return rows.AssignmentRow(
        device_id=device_id,
        model=plan.model,
        digest=target.artifact_digest,
        rollout_id=plan.rollout_id,
        certificate_digest=target.certificate_digest,
    )


def release_of(plan: Plan) -> FleetRelease:
    """Return what the fleet runs once a plan for all of it has succeeded."""
    return FleetRelease(artifact_digest=plan.artifact_digest, certificates=plan.certificates)


def decoded(stored: rows.RolloutRow) -> Entry:
    """Read an entry that was stored."""
    document = msgspec.json.decode(stored.document, type=_Document)
    return new_entry(stored.number, document.rollout, document.baselines)
