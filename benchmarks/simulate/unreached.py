"""A rollout over a fleet of which a part is switched off: before it was told to update, or after."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from benchmarks.simulate.gates import GATE
from cloud_core.policy.rollouts import operations
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.assignments import Plan, PlannedDevice
from cloud_core.policy.rollouts.observations import Observation
from cloud_core.policy.rollouts.rollout import Rollout

_DEVICES = 1_000
_WAVES = (0.1, 0.5, 1.0)
_NEW, _OLD = "sha256:new", "sha256:old"
_BEGIN = datetime(2026, 1, 1, 22, tzinfo=UTC)


def table() -> str:
    """Run rollouts with a growing part of the fleet switched off; return how they end as Markdown."""
    lines = [
        f"{_DEVICES:,} devices in waves up to {', '.join(f'{share:.0%}' for share in _WAVES)}; the version is good. A "
        f"wave waits {GATE.max_unreached_s:g} s for devices that are off, and passes without them up to "
        f"{GATE.max_unreached_rate:.0%}. Told, and then silent for {GATE.max_silence_s:g} s, is a failure; "
        f"{GATE.max_failure_rate:.0%} are tolerated:",
        "",
        "| switched off | before they were told | after they were told |",
        "|---|---|---|",
    ]
    rows = (
        f"| {share:.0%} | {_outcome(share, was_told=False)} | {_outcome(share, was_told=True)} |"
        for share in (0.0, 0.02, 0.1, 0.15, 0.3)
    )
    return "\n".join([*lines, *rows])


def _outcome(share: float, *, was_told: bool) -> str:
    source = random.Random(8)
    off = {f"d{number}" for number in source.sample(range(_DEVICES), round(share * _DEVICES))}
    now = _BEGIN
    rollout = operations.applied(_planned(), default_digest=_OLD, now=now)
    while rollout.state == "running":
        decision = policy.next_step(rollout, _observed(rollout, off, was_told=was_told), now)
        rollout = policy.apply_step(rollout, decision, now)
        if isinstance(decision.step, policy.Hold):
            now = decision.step.wake_at or now + timedelta(seconds=60)
    count = len(off) if rollout.state == "succeeded" else 0
    took = (now - _BEGIN).total_seconds() / 60
    left = f", {count:,} follow when they are back" if count and not was_told else ""
    return f"{rollout.state.replace('_', ' ')} after {took:,.0f} min in wave {len(rollout.waves)}{left}"


def _planned() -> Rollout:
    devices = [
        PlannedDevice(
            device_id=f"d{number}",
            wave=sum(number >= share * _DEVICES for share in _WAVES),
            base_digest=_OLD,
            certificate_digest="",
            base_certificate="",
        )
        for number in range(_DEVICES)
    ]
    plan = Plan(
        rollout_id="night-1",
        model="night",
        version="v2",
        artifact_digest=_NEW,
        certificate_digest="",
        devices=tuple(devices),
        wave_count=len(_WAVES),
        seed=0,
        gate=replace(GATE, min_audited=0),
        promised_harm=None,
        covers_fleet=True,
        skipped=(),
    )
    return Rollout(plan=plan, state="planned", created_at=_BEGIN)


def _observed(rollout: Rollout, off: set[str], *, was_told: bool) -> dict[str, Observation]:
    return {
        device.device_id: Observation(
            device_id=device.device_id,
            phase="committed",
            active_digest=_OLD if device.device_id in off else _NEW,
            failed_digest="",
            silent_s=2 * GATE.max_silence_s if device.device_id in off else 0.0,
            audited=0,
            audit_harm=0,
            is_handed=was_told or device.device_id not in off,
        )
        for device in rollout.plan.devices
        if device.wave < len(rollout.waves)
    }
