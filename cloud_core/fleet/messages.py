"""Values that carry what the fleet service is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloud_core.fleet.devices import Report
from cloud_core.policy.rollouts.foresight import WaveForesight
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.observations import Phase
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.policy.rollouts.rollout import Rollout
from cloud_core.policy.rollouts.verdicts import GateVerdict
from penstock.wire.outcomes import OutcomeCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """Names what a device should run.

    Attributes:
        version: the tag, for people.
        certificate_digest: manifest digest of the certificate; "" when there is none that fits.
        is_distrusted: the fleet's audits speak against it: the device keeps no answer.
        is_removed: the device should drop the model.
        trusted_at: UNIX seconds of an operator's word that the audit should begin without evidence; 0 for never.
    """

    model: str
    version: str
    artifact_digest: str
    certificate_digest: str
    is_distrusted: bool = False
    is_removed: bool = False
    trusted_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """Answers a heartbeat.

    Attributes:
        next_heartbeat_s: when to report again.
        must_renew_instance: another agent has the same instance: this one takes a new one.
    """

    models: tuple[DesiredModel, ...]
    next_heartbeat_s: float
    must_renew_instance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseStatus:
    """Shows what the audits of all devices say about the promise of one certificate.

    Attributes:
        version: the artifact's tag, for people; "" when it has none, or is gone.
        devices: that have audited something.
        bound: share of audited rows that may be harmful, at the largest level in use.
        evidence: compared with ``run_length``; the one of the last round that ended.
        alarmed_at: UNIX seconds of the moment at which the evidence was enough; None before.
        is_distrusted: devices are told to send everything to the cloud.
    """

    model: str
    version: str
    artifact_digest: str
    certificate_digest: str
    devices: int
    audited: int
    audit_harm: int
    bound: float
    evidence: float
    run_length: float
    alarmed_at: float | None
    is_distrusted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Holds what an operator asks to be planned.

    Attributes:
        is_removal: take the model off its devices; ``version`` is not looked at.
        waves: cumulative shares; empty for the default.
    """

    model: str
    version: str
    selection: Selection
    waves: tuple[float, ...] = ()
    seed: int = 0
    gate: Gate
    is_removal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """Shows one data directory behind a device's id.

    Attributes:
        instance: "" for what older agents delivered.
        agents: processes that report with it now.
        outcomes: counts by artifact digest.
    """

    instance: str
    agents: int
    durable_sequence: int
    outcomes: Mapping[str, OutcomeCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """Shows a device: its last report, how old that is, and all outcomes that it has delivered.

    Attributes:
        last_seen_s: seconds since the last report.
        first_seen: UNIX seconds, as ``runs_since``: when each model was first seen to run what it runs.
        outcomes: counts by artifact digest, over all deliveries of all instances.
        is_duplicated: several agents report under the id.
    """

    report: Report
    first_seen: float
    runs_since: Mapping[str, float]
    last_seen_s: float
    is_silent: bool
    outcomes: Mapping[str, OutcomeCounts]
    is_duplicated: bool
    instances: tuple[InstanceStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveDeviceStatus:
    """Shows a device within a wave.

    Attributes:
        counts: of the rolled-out artifact, since the wave was released.
        is_duplicated: several agents report under the id.
        is_there: it runs what it should run now, and is done with it.
    """

    device_id: str
    phase: Phase
    active_digest: str
    active_version: str
    is_silent: bool
    error: str
    counts: OutcomeCounts
    is_duplicated: bool
    is_there: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveStatus:
    """Shows a wave.

    Attributes:
        number: 0 is the first.
        gate: the last verdict; None before the wave is released.
    """

    number: int
    is_released: bool
    devices: tuple[WaveDeviceStatus, ...]
    gate: GateVerdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """Shows a rollout with its devices as they are now, and what the fleet says about its artifact's certificates.

    Attributes:
        versions: tags of the artifacts that its devices come from and go to, by digest.
        certified_harm: what the certificates promise of all rows; None where no device keeps an answer.
        foresight: of each wave, what would stop it and what it can see.
        newcomers: devices with this model that came after the plan was made, and that it is not about.
        waiting_plans: plans that were not applied, this one not among them.
    """

    rollout: Rollout
    plan_digest: str
    waves: tuple[WaveStatus, ...]
    elapsed_s: float
    promises: tuple[PromiseStatus, ...] = ()
    versions: Mapping[str, str]
    certified_harm: float | None
    foresight: tuple[WaveForesight, ...]
    newcomers: tuple[str, ...]
    waiting_plans: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """Counts the devices of a fleet that have something in common.

    Attributes:
        name: what they have in common.
        phases: devices by the phase that they report; they add up to ``devices``.
        silent: devices whose last report is old.
    """

    name: str
    devices: int
    silent: int
    phases: Mapping[Phase, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePage:
    """Shows some of the known devices, in the order of their ids.

    Attributes:
        matching: how many there are with the wanted labels, and ``known`` with whatever labels.
        next_after: where the next page begins; "" when there is none.
        labels: of a listing that found nothing: what the devices have instead, as ``name=value``.
    """

    devices: tuple[DeviceStatus, ...]
    matching: int
    known: int
    next_after: str
    labels: tuple[str, ...] = ()
