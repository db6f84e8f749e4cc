"""What the fleet service is asked and what it answers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloud_core.fleet.devices import Report
from cloud_core.fleet.outcome_totals import Counts
from cloud_core.policy.gates import Gate, GateVerdict, Phase
from cloud_core.policy.planning import Selection
from cloud_core.policy.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """What a device should run. ``certificate_digest`` is "" when there is none that fits."""

    model: str
    version: str
    artifact_digest: str
    certificate_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What an operator asks for. ``waves``: cumulative shares; empty for the default."""

    model: str
    version: str
    selection: Selection
    waves: tuple[float, ...] = ()
    seed: int = 0
    gate: Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device, how long ago it was heard, and what it has delivered: counts by artifact digest, since ever."""

    report: Report
    last_seen_s: float
    is_silent: bool
    outcomes: Mapping[str, Counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveDeviceView:
    """A device within a wave. ``counts`` are of the rolled-out artifact since the wave was released."""

    device_id: str
    phase: Phase
    active_digest: str
    active_version: str
    is_silent: bool
    error: str
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveView:
    """A wave; ``number`` 0 is the first."""

    number: int
    is_released: bool
    devices: tuple[WaveDeviceView, ...]
    gate: GateVerdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """A rollout with its devices as they are now."""

    rollout: Rollout
    plan_digest: str
    waves: tuple[WaveView, ...]
    elapsed_s: float
