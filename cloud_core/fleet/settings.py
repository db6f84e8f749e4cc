"""Bounds and defaults of the fleet service. The composition root nests this section as ``[fleet]``."""

from __future__ import annotations

from typing import Annotated

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]


class GateDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan uses for gate settings that its request leaves out.

    Attributes:
        alpha: error budget of a rollout, over all its waves and sequential tests.
        max_failure_rate: tolerated share of failed updates.
        min_audited: audited rows a wave needs to pass, when the artifact has a certificate; left out, as many as can
            see ``detectable_ratio`` times the promised harm.
        detectable_ratio: how many times the promised harm the audited rows of a wave have to be able to see.
        power: chance with which the audited rows of a wave have to see that much harm.
        bake_s: shortest time a wave runs.
        max_silence_s: a device that was told to update and is silent for longer counts as failed.
        max_unreached_s: how long a wave waits for devices that did not come by to be told.
        max_unreached_rate: share of a wave that may be unreached when it passes.
        max_wave_s: a wave that has not passed by then pauses the rollout.
        stops_when_all_revert: a wave of which every device took the version and went back by itself stops the rollout,
            also when it is a single device; when false, it holds.
    """

    alpha: _Share = 0.05
    max_failure_rate: _Share = 0.05
    min_audited: Annotated[int, msgspec.Meta(ge=0)] | None = None
    detectable_ratio: Annotated[float, msgspec.Meta(gt=1, le=1000)] = 3.0
    power: _Share = 0.9
    bake_s: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    max_silence_s: _Seconds = 120.0
    max_unreached_s: Annotated[float, msgspec.Meta(ge=0)] = 600.0
    max_unreached_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    max_wave_s: _Seconds = 24 * 3600.0
    stops_when_all_revert: bool = True


class EvidenceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the audits of all devices together are watched, with and without a rollout. A device has one vote a round.

    Attributes:
        run_length: votes until a false alarm, on average and at the least.
        min_devices: devices that a round and an alarm need at the least; fewer are left to their own audits.
        round_s: a round that long ends although half of the devices have not voted.
        demotes: after an alarm, devices are told to send everything to the cloud.
        max_promises: certificates whose evidence is kept; the one that was audited longest ago goes first.
    """

    run_length: Annotated[float, msgspec.Meta(ge=100, le=1e12)] = 1e6
    min_devices: Annotated[int, msgspec.Meta(ge=2)] = 8
    round_s: _Seconds = 24 * 3600.0
    demotes: bool = False
    max_promises: _Count = 32


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds and rhythm of the fleet service.

    Attributes:
        heartbeat_s: how long a device is told to wait before it reports again.
        busy_heartbeat_s: time between heartbeats of a device while a rollout of one of its models is under way.
        flush_s: reported state reaches the disk at most this much later (desired state and outcomes never wait).
        reconcile_s: shortest time between two looks at the rollouts.
        max_devices: devices that are kept; a new one beyond is refused.
        forget_s: a device unseen for longer makes room for a new one.
        max_rollouts: finished rollouts that are kept.
        max_events: events kept for each rollout.
        max_records: outcome records in one delivery.
        max_artifacts_per_device: artifacts with counts per instance of a device.
        max_instances_per_device: data directories, and agents that report at once, behind one id. Of those that do not
            report any more, the one that delivered longest ago makes room; beyond that a delivery is refused, and its
            rows stay on the device.
    """

    heartbeat_s: _Seconds = 5.0
    busy_heartbeat_s: _Seconds = 1.0
    flush_s: _Seconds = 5.0
    reconcile_s: _Seconds = 0.1
    max_devices: _Count = 10_000
    forget_s: _Seconds = 30 * 24 * 3600.0
    max_rollouts: _Count = 1000
    max_events: _Count = 100
    max_records: _Count = 10_000
    max_artifacts_per_device: _Count = 64
    max_instances_per_device: Annotated[int, msgspec.Meta(ge=2)] = 16
    gate: GateDefaults = GateDefaults()
    evidence: EvidenceSettings = EvidenceSettings()
