"""How devices, plans and rollouts look as text. Formats messages; asks and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from penstock import wording
from penstock.cli.output import format_table
from penstock.rpc.fleet import state_name
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.wire.outcomes import HEADINGS
from penstock.wording import short

_COUNTS = ("requests", "kept", "not_finite", "audited", "audit_harm")  # what decides a wave, and broken sensors


def devices_text(devices: list[pb.Device]) -> str:
    """Write a row for each model on each device."""
    rows = []
    for device in devices:
        seen = f"{device.last_seen_s:.0f} s ago" + (" (silent)" if device.is_silent else "")
        seen += f" ({_agents(device)} agents)" if device.is_duplicated else ""
        labels = ",".join(f"{name}={value}" for name, value in sorted(device.labels.items())) or "-"
        for model in device.models or [pb.ReportedModel(model="-")]:
            phase = _word(pb.UpdatePhase.Name(model.phase)) if model.model != "-" else "-"
            mode = _word(pb.CascadeMode.Name(model.mode)) if model.mode else "-"
            version = model.active_version or short(model.active_digest) or "-"
            rows.append(
                (device.device_id, device.target or "-", labels, model.model, version, phase, mode, seen,
                 device.outbox_records, model.error or "-")
            )  # fmt: skip
    columns = ["device", "target", "labels", "model", "runs", "phase", "mode", "seen", "outbox", "error"]
    if not rows:
        return "no devices yet; an agent appears with its first heartbeat"
    notes = [_duplicate(device) for device in devices if device.is_duplicated]
    return "\n".join([format_table(columns, rows), *notes])


def promises_text(promises: Sequence[pb.FleetPromise]) -> str:
    """Write a row for each certificate in use."""
    rows = [
        (one.model, short(one.artifact_digest), short(one.certificate_digest), one.devices, one.audited, one.audit_harm,
         wording.bound(one.bound), f"{min(one.evidence, 1e15):,.0f} of {one.run_length:,.0f}", _trust(one))
        for one in promises
    ]  # fmt: skip
    columns = ["model", "artifact", "certificate", "devices", "audited", "harm", "promised", "evidence", "trust"]
    return format_table(columns, rows) if rows else "no audits yet; devices audit answers under a certificate"


def trusted_text(trusted: pb.TrustDeviceResponse) -> str:
    """Write which audits of a device begin again."""
    rows = [
        (one.model, short(one.artifact_digest), short(one.certificate_digest), _word(pb.CascadeMode.Name(one.mode)))
        for one in trusted.models
    ]
    table = format_table(["model", "artifact", "certificate", "mode until now"], rows)
    return f"{table}\n{trusted.device_id} begins these audits without evidence, with its next heartbeat"


def actions_text(actions: Sequence[pb.OperatorAction]) -> str:
    """Write a row for each action."""
    rows = [
        (datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ"), one.who or "-", one.action, one.subject,
         one.reason or "-")
        for one in actions
    ]  # fmt: skip
    return format_table(["at", "who", "action", "on", "why"], rows) if rows else "no actions yet, beside rollouts"


def plan_text(plan: pb.RolloutPlan) -> str:
    """Write everything that ``apply`` will run."""
    gate = plan.gate
    promise = (
        f"at most {wording.bound(plan.promised_harm)} harm" if plan.certificate_digest else "none (no certificate)"
    )
    what = f"{plan.model}:{plan.version} ({short(plan.artifact_digest)})"
    is_same = not plan.is_removal and all(d.base_digest == plan.artifact_digest for d in plan.devices)
    if plan.is_removal:
        what, promise = f"{plan.model} is taken off its devices", "none (a removal)"
    lines = [
        f"plan      {plan.rollout_id}: {what}{', a new certificate only' if is_same else ''}",
        f"promise   {promise}",
        f"gate      bake {gate.bake_s:g} s, {gate.min_audited} audited rows in each wave, alpha {gate.alpha:g}, "
        f"failures at most {wording.percent(gate.max_failure_rate)}, silence {gate.max_silence_s:g} s, "
        f"wave {gate.max_wave_s:g} s",
        f"          switched off at most {wording.percent(gate.max_unreached_rate)}, after {gate.max_unreached_s:g} s",
        f"seed      {plan.seed}",
        f"digest    {plan.plan_digest}",
        "",
        format_table(
            ["wave", "device", "certificate", "goes back to", "and to certificate"],
            [
                (
                    d.wave + 1,
                    d.device_id,
                    short(d.certificate_digest) or "none",
                    short(d.base_digest) or "nothing",
                    short(d.base_certificate) or "none",
                )
                for d in plan.devices
            ],
        ),
    ]
    lines += [f"skipped   {reason}" for reason in plan.skipped]
    return "\n".join(lines)


def rollout_text(rollout: pb.Rollout) -> str:
    """Write a rollout, its devices and what its gates say."""
    lines = [f"{rollout.plan.rollout_id}  {_state(rollout)}  {rollout.elapsed_s:.0f} s", rollout.status, ""]
    rows = []
    for wave in rollout.waves:
        for device in wave.devices:
            note = "silent" if device.is_silent else device.error or "-"
            if device.is_duplicated:
                note = "several agents report under this id ('penstock fleet devices')"
            counts = device.counts
            runs = device.active_version or short(device.active_digest) or "-"
            phase = _word(pb.UpdatePhase.Name(device.phase))
            where = f"{wave.number + 1}" if wave.is_released else f"({wave.number + 1})"
            numbers = [getattr(counts, name) for name in _COUNTS]
            rows.append((where, device.device_id, phase, runs, *numbers, note))
    columns = ["wave", "device", "phase", "runs", *(HEADINGS[name] for name in _COUNTS), "note"]
    lines.append(format_table(columns, rows))
    for wave in rollout.waves:
        if wave.HasField("gate"):
            lines += ["", f"gate of wave {wave.number + 1}: {_verdict(wave.gate)}: {wave.gate.reason}"]
            lines += [f"  {test.name:10} {_verdict(test):5} {test.reason}" for test in wave.gate.tests]
    lines += [
        f"\nfleet evidence: {one.audit_harm} of {one.audited} audited rows harmful on {one.devices} devices, "
        f"promised at most {wording.bound(one.bound)}: {_trust(one)} ('penstock fleet evidence')"
        for one in rollout.promises
        if one.has_alarm
    ]
    return "\n".join(lines)


def rollouts_text(rollouts: list[pb.Rollout]) -> str:
    """Write one row for each rollout."""
    rows = [(r.plan.rollout_id, _state(r), len(r.plan.devices), f"{r.elapsed_s:.0f} s", r.status) for r in rollouts]
    return format_table(["rollout", "state", "devices", "took", "status"], rows)


def situation(rollout: pb.Rollout) -> tuple[object, ...]:
    """Return what has to change for a new line of progress: everything but clocks and counts."""
    waves = tuple(
        (wave.is_released, tuple((d.phase, d.active_digest, d.is_silent) for d in wave.devices))
        for wave in rollout.waves
    )
    return rollout.state, waves, len(rollout.events)


def events_after(rollout: pb.Rollout, last: str) -> list[str]:
    """Return events that came after ``last``; all when it is not one of them. Several may come between two looks."""
    events = list(rollout.events)
    return events[events.index(last) + 1 :] if last in events else events


def progress_line(rollout: pb.Rollout) -> str:
    """Write one line for logs: when, how far each released wave is, and why."""
    parts = []
    for wave in rollout.waves:
        if wave.is_released:
            done = sum(_is_done(device, rollout.plan) for device in wave.devices)
            parts.append(f"wave {wave.number + 1}: {done}/{len(wave.devices)}")
    return f"{rollout.elapsed_s:6.1f} s  {_state(rollout):15}  {', '.join(parts) or '-':24}  {rollout.status}"


def _is_done(device: pb.WaveDevice, plan: pb.RolloutPlan) -> bool:
    # of a removal, nothing is left that could be committed
    return device.active_digest == plan.artifact_digest and (plan.is_removal or device.phase == pb.COMMITTED)


def _agents(device: pb.Device) -> int:
    return sum(one.agents for one in device.instances)


def _duplicate(device: pb.Device) -> str:
    counted = ", ".join(
        f"{one.instance[:8] or 'older agents'}: {sum(found.counts.requests for found in one.outcomes)} rows"
        for one in device.instances
    )
    return (
        f"\n{device.device_id}: {_agents(device)} agents report under this id, because a data directory was copied "
        f"(counted apart: {counted}); give each device an id and a directory of its own"
    )


def _trust(promise: pb.FleetPromise) -> str:
    if not promise.has_alarm:
        return "held so far"
    return "BROKEN, devices ask the cloud" if promise.is_distrusted else "BROKEN"


def _state(rollout: pb.Rollout) -> str:
    return _word(state_name(rollout))


def _verdict(judged: pb.GateVerdict | pb.GateTest) -> str:
    return _word(pb.Verdict.Name(judged.verdict))


def _word(name: str) -> str:
    return name.lower().replace("_", " ")
