"""How ``penstock fleet`` shows plans and rollouts. Formats messages; asks and decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from penstock import wording
from penstock.cli.fleet.device_view import date, trust_words
from penstock.cli.output import format_table, wrapped
from penstock.rpc.fleet import state_name
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.wire.outcomes import HEADINGS
from penstock.wording import short

_COUNTS = ("kept", "audited", "audit_harm")  # what decides a wave
_MAX_ROWS = 40
"""Devices of a rollout that are listed; of larger ones, those that want a look."""

_MAX_NAMED = 10
_MAX_STATUS = 72
"""Characters of a status in a list of rollouts: a week of them fits on a screen."""


def plan_text(plan: pb.RolloutPlan) -> str:
    """Write everything that ``apply`` will run, what would stop it, and what its tests can see."""
    devices, waves = len(plan.devices), plan.wave_count
    size = f"{devices} device{'s' * (devices != 1)} in {waves} wave{'s' * (waves != 1)}"
    lines = [
        f"plan     {plan.rollout_id}: {_what(plan)}, {size}",
        *_promise_lines(plan),
        wrapped(f"gate     {_gate_words(plan.gate)}", indent=" " * 9),
        f"seed     {plan.seed}",
        f"digest   {plan.plan_digest}",
        "",
        *_foresight_lines(plan),
        "",
        _plan_table(plan),
        *_left_out(plan),
    ]
    return "\n".join(lines)


def plans_text(found: Sequence[pb.Rollout]) -> str:
    """Write a row for each plan that was not applied."""
    if not found:
        return "no plans are waiting"
    rows = [
        (one.plan.rollout_id, date(one.events[0].at) if one.events else "-", len(one.plan.devices), _what(one.plan))
        for one in found
    ]
    table = format_table(["plan", "made", "devices", "of"], rows)
    return f"{table}\n\n'penstock fleet apply PLAN' runs one, 'penstock fleet delete PLAN' deletes it"


def rollout_text(rollout: pb.Rollout) -> str:
    """Write a rollout, its devices and what its gates say."""
    plan = rollout.plan
    lines = [
        f"{plan.rollout_id}  {_state(rollout)}  {rollout.elapsed_s:.0f} s  {_what(plan)}",
        wrapped(rollout.status),
        "",
    ]
    is_large = len(plan.devices) > _MAX_ROWS
    lines += [_waves_table(rollout), ""] if is_large else []
    chosen = [
        (wave, device)
        for wave in rollout.waves
        for device in wave.devices
        if not is_large or _note(device) or (wave.is_released and not _is_done(device, plan))
    ]
    if chosen:
        lines.append(_devices_table(chosen[:_MAX_ROWS]))
    if len(chosen) > _MAX_ROWS:
        lines.append(f"and {len(chosen) - _MAX_ROWS} more; -o json has them all")
    notes = [f"  {device.device_id}: {note}" for _, device in chosen[:_MAX_ROWS] if (note := _note(device))]
    lines += [wrapped(note, indent="    ") for note in notes]
    lines.append(f"\n{_counted(rollout)}")
    lines += _left_out(plan)
    for wave in rollout.waves:
        if wave.HasField("gate"):
            lines += ["", f"gate of wave {wave.number + 1}: {_verdict(wave.gate)}"]
            lines += [
                wrapped(f"  {test.name:10} {_verdict(test):5} {test.reason}", indent=" " * 19)
                for test in wave.gate.tests
            ]
    lines += [
        f"\nfleet evidence: {one.audit_harm} of {one.audited} audited rows harmful on {one.devices} devices, "
        f"promised at most {wording.bound(one.bound)}: {trust_words(one)} ('penstock fleet evidence')"
        for one in rollout.promises
        if one.has_alarm
    ]
    if rollout.waiting_plans:
        lines.append(f"\nnot applied: {_named(rollout.waiting_plans)} ('penstock fleet plans')")
    return "\n".join(lines)


def rollouts_text(rollouts: list[pb.Rollout]) -> str:
    """Write one row for each rollout."""
    if not rollouts:
        return "no rollouts yet"
    rows = [
        (r.plan.rollout_id, _state(r), date(r.events[0].at) if r.events else "-", len(r.plan.devices),
         wording.brief(r.status, _MAX_STATUS))
        for r in rollouts
    ]  # fmt: skip
    table = format_table(["rollout", "state", "planned", "devices", "status"], rows)
    is_cut = any(len(r.status) > _MAX_STATUS for r in rollouts)
    return f"{table}\n\n'penstock fleet status ROLLOUT' has the whole of it" if is_cut else table


def undo_text(rollout: pb.Rollout) -> str:
    """Write what an undo takes back."""
    plan = rollout.plan
    bases = Counter(_base(plan, device) for device in plan.devices)
    to = "; ".join(f"{count} to {base}" for base, count in bases.most_common())
    return wrapped(f"undo {plan.rollout_id} ({_state(rollout)}): {_what(plan)} is taken back; devices go back: {to}")


def situation(rollout: pb.Rollout) -> tuple[object, ...]:
    """Return what has to change for a new line of progress: everything but clocks and counts."""
    waves = tuple(
        (wave.is_released, tuple((d.phase, d.active_digest, d.is_silent) for d in wave.devices))
        for wave in rollout.waves
    )
    return rollout.state, waves, len(rollout.events)


def event_line(event: pb.RolloutEvent) -> str:
    """Write what happened as one line."""
    who = f" [{event.who}{f': {event.reason}' if event.reason else ''}]" if event.who else ""
    return f"{date(event.at)} {event.text}{who}"


def progress_line(rollout: pb.Rollout) -> str:
    """Write one line for logs: when, how far each released wave is, and why."""
    parts = []
    for wave in rollout.waves:
        if wave.is_released:
            done = sum(_is_done(device, rollout.plan) for device in wave.devices)
            parts.append(f"wave {wave.number + 1}: {done}/{len(wave.devices)}")
    return f"{rollout.elapsed_s:6.1f} s  {_state(rollout):15}  {', '.join(parts) or '-':24}  {rollout.status}"


def _what(plan: pb.RolloutPlan) -> str:
    if plan.is_removal:
        return f"{plan.model} is taken off"
    is_same = all(device.base_digest == plan.artifact_digest for device in plan.devices)
    only = ", a new certificate only" if is_same and plan.devices else ""
    return f"{plan.model}:{plan.version} ({short(plan.artifact_digest)}){only}"


def _gate_words(gate: pb.GateSettings) -> str:
    return (
        f"bake {gate.bake_s:g} s; failed updates tolerated {wording.percent(gate.max_failure_rate)}; one that was told "
        f"and is silent for {gate.max_silence_s:g} s failed; switched off tolerated "
        f"{wording.percent(gate.max_unreached_rate)}, after {gate.max_unreached_s:g} s; a wave that takes "
        f"{gate.max_wave_s:g} s pauses; chance to stop a good version (alpha) {gate.alpha:g}"
    )


def _promise_lines(plan: pb.RolloutPlan) -> list[str]:
    if plan.is_removal:
        return ["promise  none (a removal)"]
    if not plan.certificate_digest:
        return ["promise  none (no certificate): devices escalate every answer, nothing is audited"]
    certified, audited = wording.allowed(plan.certified_harm), wording.bound(plan.promised_harm)
    promise = f"promise  at most {certified} points of all rows are kept, wrong, and right in the cloud (certificate)"
    test = f"{' ' * 9}the audits and the gate test the same: at most {audited} of audited rows"
    if plan.promised_harm > plan.certified_harm:
        test = (
            f"{' ' * 9}at most {audited} of audited rows are kept and differ from the cloud's answer: in service "
            "nobody knows who is right, so this is what the audits and the gate test"
        )
    return [wrapped(promise, indent=" " * 9), wrapped(test, indent=" " * 9)]


def _foresight_lines(plan: pb.RolloutPlan) -> list[str]:
    rows = []
    for number, wave in enumerate(plan.foresight, start=1):
        stops = _failures(wave.stopping_failures) if wave.stopping_failures else "-"
        if wave.stops_when_all_revert:
            every = "it goes back" if wave.devices == 1 else "all go back"
            stops = every if stops == "-" else f"{stops}, or {every}"
        holds = _failures(wave.holding_failures) if wave.holding_failures <= wave.devices else "-"
        harm = wording.percent(wave.visible_harm) if wave.audited_rows else "-"
        rows.append((number, wave.devices, stops, holds, f"{wave.visible_failure_rate:.0%}", harm, wave.audited_rows))
    if not rows:
        return []
    columns = ["wave", "devices", "stops at", "holds at", "sees failures", "sees harm", "audits"]
    what = (
        f"sees: the smallest rate that a wave which passes has shown, with a chance of {plan.foresight[0].power:.0%}; "
        "audits: rows that it waits for"
    )
    return [format_table(columns, rows), wrapped(what)]


def _failures(count: int) -> str:
    return "1 failure" if count == 1 else f"{count} failures"


def _plan_table(plan: pb.RolloutPlan) -> str:
    rows = [
        (device.wave + 1, device.device_id, short(device.certificate_digest) or "none", _base(plan, device))
        for device in plan.devices[:_MAX_ROWS]
    ]
    table = format_table(["wave", "device", "certificate", "goes back to"], rows)
    more = len(plan.devices) - len(rows)
    return f"{table}\nand {more} more; -o json has them all" if more else table


def _base(plan: pb.RolloutPlan, device: pb.PlannedDevice) -> str:
    """Name what a device goes back to: by its tag, the digest beside it."""
    if not device.base_digest:
        return "nothing"
    named = f"{plan.model}:{device.base_version} ({short(device.base_digest)})" if device.base_version else ""
    found = named or short(device.base_digest)
    is_same = device.base_digest == plan.artifact_digest
    return f"{found}, certificate {short(device.base_certificate) or 'none'}" if is_same else found


def _left_out(plan: pb.RolloutPlan) -> list[str]:
    """Name the devices that a plan is not about, and why."""
    lines = [wrapped(f"skipped  {reason}", indent=" " * 9) for reason in plan.skipped[:_MAX_ROWS]]
    if len(plan.skipped) > _MAX_ROWS:
        lines.append(f"skipped  {len(plan.skipped) - _MAX_ROWS} more")
    if plan.newcomers:
        lines.append(
            wrapped(
                f"new      {_named(plan.newcomers)}: came after the plan was made, and get the version when it has "
                "succeeded",
                indent=" " * 9,
            )
        )
    return lines


def _waves_table(rollout: pb.Rollout) -> str:
    rows = []
    for wave in rollout.waves:
        done = sum(_is_done(device, rollout.plan) for device in wave.devices)
        silent = sum(device.is_silent for device in wave.devices)
        failed = sum(device.phase in (pb.REVERTED, pb.FAILED) for device in wave.devices)
        released = "yes" if wave.is_released else "no"
        rows.append((wave.number + 1, released, len(wave.devices), done, failed, silent))
    return format_table(["wave", "released", "devices", "done", "reverted or failed", "silent"], rows)


def _devices_table(chosen: Sequence[tuple[pb.Wave, pb.WaveDevice]]) -> str:
    rows = []
    for wave, device in chosen:
        runs = device.active_version or short(device.active_digest) or "nothing"
        phase = _word(pb.UpdatePhase.Name(device.phase))
        where = f"{wave.number + 1}" if wave.is_released else f"({wave.number + 1})"
        rows.append((where, device.device_id, phase, runs, *(getattr(device.counts, name) for name in _COUNTS)))
    return format_table(["wave", "device", "phase", "runs", *(HEADINGS[name] for name in _COUNTS)], rows)


def _note(device: pb.WaveDevice) -> str:
    notes = [
        "silent" if device.is_silent else "",
        device.error,
        "several agents report under this id ('penstock fleet devices')" if device.is_duplicated else "",
        f"{device.counts.not_finite} rows not finite" if device.counts.not_finite else "",
    ]
    return "; ".join(filter(None, notes))


def _counted(rollout: pb.Rollout) -> str:
    """Count all devices of the rollout, by what they are now."""
    plan = rollout.plan
    devices = [device for wave in rollout.waves for device in wave.devices]
    done = sum(_is_done(device, plan) for device in devices)
    what = f"without {plan.model}" if plan.is_removal else f"on {plan.version}"
    text = f"{done} of {len(devices)} device{'s' * (len(devices) != 1)} {what}"
    text += f", {len(plan.skipped)} skipped" if plan.skipped else ""
    return text + (f", {len(plan.newcomers)} new" if plan.newcomers else "")


def _is_done(device: pb.WaveDevice, plan: pb.RolloutPlan) -> bool:
    # of a removal, nothing is left that could be committed
    return device.active_digest == plan.artifact_digest and (plan.is_removal or device.phase == pb.COMMITTED)


def _named(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
    return ", ".join(known[:_MAX_NAMED]) + more


def _state(rollout: pb.Rollout) -> str:
    return _word(state_name(rollout))


def _verdict(judged: pb.GateVerdict | pb.GateTest) -> str:
    return _word(pb.Verdict.Name(judged.verdict))


def _word(name: str) -> str:
    return name.lower().replace("_", " ")
