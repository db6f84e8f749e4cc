"""How ``penstock fleet`` shows devices, their audits and what operators did. Formats messages; asks nothing."""

from __future__ import annotations

from collections.abc import Sequence

from penstock import wording
from penstock.cli.output import format_table, wrapped
from penstock.rpc.fleet import moment
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.wording import short

_MODES = {
    pb.CASCADE: "",
    pb.ESCALATE_ALL: "asks the cloud: no certificate fits",
    pb.CLOUD_ONLY: "asks the cloud: its audit found harm",
}


def devices_text(page: pb.ListDevicesResponse, *, is_wide: bool = False) -> str:
    """Write a row for each model on each device, and how many devices there are."""
    if not page.devices:
        return _nobody(page)
    rows = [_row(device, model, is_wide) for device in page.devices for model in device.models or [pb.ReportedModel()]]
    columns = ["device", "runs", "since", "phase", "seen"]
    columns += ["agent", "target", "labels", "outbox"] if is_wide else []
    lines = [format_table(columns, rows)]
    lines += [
        wrapped(f"  {device.device_id}: {note}", indent="    ") for device in page.devices for note in _notes(device)
    ]
    lines += [_duplicate(device) for device in page.devices if device.is_duplicated]
    silent = sum(device.is_silent for device in page.devices)
    count = f"{len(page.devices)} of {page.matching} devices" if page.next_after else _devices(page.matching)
    elsewhere = f", of {page.known} known" if page.matching != page.known else ""
    lines.append(f"\n{count}{elsewhere}{f'; {silent} silent' if silent else ''}")
    if page.next_after:
        lines.append(
            f"more: --after {page.next_after}, or a larger --limit; 'penstock fleet devices --by version' counts"
        )
    return "\n".join(lines)


def groups_text(by: str, groups: Sequence[pb.DeviceGroup]) -> str:
    """Write a row for each group of devices."""
    if not groups:
        return "no devices yet; an agent appears with its first heartbeat"
    rows = [
        (
            one.name,
            one.devices,
            one.silent,
            ", ".join(f"{count} {_word(name)}" for name, count in sorted(one.phases.items())),
        )
        for one in groups
    ]
    total = sum(one.devices for one in groups)
    return f"{format_table([by.removeprefix('label:'), 'devices', 'silent', 'phases'], rows)}\n\n{total} in all"


def promises_text(promises: Sequence[pb.FleetPromise]) -> str:
    """Write a row for each certificate in use."""
    rows = [
        (_promised(one), short(one.certificate_digest), one.devices, f"{one.audit_harm} of {one.audited}",
         wording.bound(one.bound), f"{min(one.evidence / one.run_length, 1e6):,.2f}", trust_words(one))
        for one in promises
    ]  # fmt: skip
    columns = ["version", "certificate", "devices", "harmful", "promised", "evidence", "trust"]
    if not rows:
        return "no audits yet; devices audit answers under a certificate"
    return f"{format_table(columns, rows)}\n\nevidence: against the promise, by all devices; an alarm at 1"


def trusted_text(trusted: pb.TrustDeviceResponse) -> str:
    """Write which audits of a device begin again."""
    rows = [
        (one.model, short(one.artifact_digest), short(one.certificate_digest), _word(pb.CascadeMode.Name(one.mode)))
        for one in trusted.models
    ]
    table = format_table(["model", "artifact", "certificate", "mode until now"], rows)
    return f"{table}\n{trusted.device_id} begins these audits without evidence, with its next heartbeat"


def actions_text(actions: Sequence[pb.OperatorAction]) -> str:
    """Write a row for each action of an operator."""
    rows = [
        (date(one.at), one.who or "-", one.action, f"{one.subject}: {one.reason}" if one.reason else one.subject)
        for one in actions
    ]
    return format_table(["at", "who", "command", "on, and why"], rows) if rows else "nothing yet"


def events_text(events: Sequence[pb.RolloutEvent]) -> str:
    """Write a row for each step of a rollout."""
    rows = [
        (date(one.at), one.who or "(gates)", f"{one.text} (why: {one.reason})" if one.reason else one.text)
        for one in events
    ]
    return format_table(["at", "who", "what happened"], rows) if rows else "nothing yet"


def date(at: float) -> str:
    """Write UNIX seconds to the minute, in UTC; "-" for what is not known."""
    found = moment(at)
    return f"{found[:16]}Z".replace("T", " ") if found else "-"


def trust_words(promise: pb.FleetPromise) -> str:
    """Say what becomes of a promise."""
    if not promise.has_alarm:
        return "held so far"
    return "BROKEN: cloud only" if promise.is_distrusted else "BROKEN"


def _promised(promise: pb.FleetPromise) -> str:
    return f"{promise.model}:{promise.version or short(promise.artifact_digest)}"


def _row(device: pb.Device, model: pb.ReportedModel, is_wide: bool) -> tuple[object, ...]:
    version = model.active_version or short(model.active_digest) or "nothing"
    labels = ",".join(f"{name}={value}" for name, value in sorted(device.labels.items())) or "-"
    wide = (device.agent_version or "-", device.target or "-", labels, device.outbox_records) if is_wide else ()
    return (
        device.device_id,
        f"{model.model}:{version}" if model.model else "-",
        date(device.runs_since.get(model.model, 0.0)) if model.active_digest else "-",
        _word(pb.UpdatePhase.Name(model.phase)) if model.model else "-",
        f"{_age(device.last_seen_s)} ago",
        *wide,
    )


def _notes(device: pb.Device) -> list[str]:
    """Write what is out of the ordinary with a device."""
    of_models = [
        f"{model.model}: {note}"
        for model in device.models
        for note in (_MODES.get(model.mode, ""), model.error)
        if note
    ]
    agents = [f"{_agents(device)} agents under this id"] if device.is_duplicated else []
    return of_models + ["silent"] * device.is_silent + agents


def _nobody(page: pb.ListDevicesResponse) -> str:
    if not page.known:
        return "no devices yet; an agent appears with its first heartbeat"
    if page.matching:
        return f"no more devices; {page.matching} match"
    return (
        f"none of {_devices(page.known)} has these labels; there are: {', '.join(page.labels) or 'none of that name'}"
    )


def _duplicate(device: pb.Device) -> str:
    counted = ", ".join(
        f"{one.instance[:8] or 'older agents'}: {sum(found.counts.requests for found in one.outcomes)} rows"
        for one in device.instances
    )
    return (
        f"\n{device.device_id}: {_agents(device)} agents report under this id, because a data directory was copied "
        f"(counted apart: {counted}); give each device an id and a directory of its own"
    )


def _agents(device: pb.Device) -> int:
    return sum(one.agents for one in device.instances)


def _age(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _word(name: str) -> str:
    return name.lower().replace("_", " ")
