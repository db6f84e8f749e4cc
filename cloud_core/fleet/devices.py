"""Devices as they report themselves, and when the server saw their last report.

Owns the guard against what a broken or hostile device may send: ids are checked, everything else is cut to size.
Silence is measured by the server's clock and only while the server listens: after a restart every device gets its time
again. Which agents report under one id is noted here, and decided in ``cloud_core.policy.rollouts.instances``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec

from cloud_core.policy.rollouts import instances
from cloud_core.policy.rollouts.instances import Voice
from cloud_core.policy.rollouts.observations import Phase
from cloud_core.state import fleet as rows
from penstock.artifact.manifests import Artifact, Variant
from penstock.errors import InvalidInput, QueueFull
from penstock.process.machine import runnable_targets
from penstock.wire.device_ids import check_device_id

Mode = Literal["unknown", "cascade", "escalate_all", "cloud_only"]

MAX_MODELS = 256
"""Models and subscriptions of one device."""

_MAX_LABELS = 64
_MAX_TEXT = 255
_MAX_ERROR = 1024
_MAX_INTEGER = 2**62
_KEY = re.compile(r"[A-Za-z0-9._-]{0,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedModel:
    """Holds what a device reports of one model; the fields of ``penstock.v1.ReportedModel``.

    Attributes:
        max_harm: level of the certificate in use; 0 where none is, or the device does not say.
    """

    model: str
    active_digest: str = ""
    active_version: str = ""
    certificate_digest: str = ""
    desired_digest: str = ""
    phase: Phase = "idle"
    mode: Mode = "unknown"
    max_harm: float = 0.0
    failed_digest: str = ""
    error: str = ""
    fetched_bytes: int = 0
    total_bytes: int = 0
    desired_certificate_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Holds what a device reports of itself in a heartbeat.

    Attributes:
        instance: names its data directory, and ``run`` its process; "" from older agents.
    """

    device_id: str
    agent_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    subscriptions: tuple[str, ...] = ()
    models: tuple[ReportedModel, ...] = ()
    outbox_records: int = 0
    rung: str = "edge"
    instance: str = ""
    run: str = ""

    def model(self, name: str) -> ReportedModel:
        """Return what is reported of a model; an idle one when nothing is."""
        return next((model for model in self.models if model.model == name), ReportedModel(model=name))

    def subscribes(self, model: str) -> bool:
        return "*" in self.subscriptions or model in self.subscriptions

    def variant_of(self, artifact: Artifact) -> Variant | None:
        """Return the variant that this device runs of an artifact: of its rung, the best for its target."""
        edges = {v.spec.target: v for v in reversed(artifact.variants) if v.spec.role == self.rung}
        try:
            targets: tuple[str, ...] = runnable_targets(self.target)
        except InvalidInput:
            targets = (self.target,)  # a target newer than this core
        return next((edges[target] for target in targets if target in edges), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Holds what is known of a device. Times are UNIX seconds by the server's clock.

    Attributes:
        report: the last one, of whichever agent.
        delivered: by instance, what of it is counted.
        runs_since: when a model was first seen to run the artifact that it runs, by model.
        voices: who reported of late.
        reports: the last one of each instance that was heard since the start.
    """

    report: Report
    first_seen: float
    last_seen: float
    delivered: Mapping[str, Delivered] = field(default_factory=dict)
    runs_since: Mapping[str, float] = field(default_factory=dict)
    voices: tuple[Voice, ...] = ()
    reports: Mapping[str, Report] = field(default_factory=dict)

    def report_of(self, instance: str) -> Report:
        """Return the last report of an instance; what nobody named, or nobody else did, is the device's own."""
        known = self.reports.get(instance, self.report if instance in ("", self.report.instance) else None)
        # what another instance runs says nothing of this one
        found = known or Report(device_id=self.report.device_id)
        return replace(found, instance=instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """Holds the highest sequence of an instance that is on disk, and when that changed last."""

    sequence: int
    updated_at: float


class Devices:
    """Keeps all devices in memory.

    Attributes:
        dirty: ids of devices that are not on disk as they are here.
    """

    def __init__(
        self, stored: rows.FleetRows, *, max_devices: int, max_instances: int, forget_s: float, window_s: float,
        opened_at: float,
    ) -> None:  # fmt: skip
        """
        Args:
            max_instances: data directories, and agents, of one device.
            window_s: an agent that reported within it is there.
        """
        delivered: dict[str, dict[str, Delivered]] = {}
        for row in stored.instances:
            found = Delivered(sequence=row.durable_sequence, updated_at=row.updated_at)
            delivered.setdefault(row.device_id, {})[row.instance] = found
        self._known = {row.device_id: _decoded(row, delivered.get(row.device_id, {})) for row in stored.devices}
        self._max_devices, self._forget_s, self._opened_at = max_devices, forget_s, opened_at
        self._max_instances, self._window_s = max_instances, window_s
        self.dirty: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Device]:
        return iter([self._known[name] for name in sorted(self._known)])

    def get(self, device_id: str) -> Device | None:
        return self._known.get(device_id)

    def silent_s(self, device_id: str, at: float) -> float:
        """Return for how long a device sent no report while the server listened; an unknown one never sent any."""
        device = self._known.get(device_id)
        since = self._opened_at if device is None else max(device.last_seen, self._opened_at)
        return max(0.0, at - since)

    def see(self, report: Report, at: float) -> tuple[Device | None, list[str]]:
        """Take a report in; return the device as it was before, and the devices forgotten to make room.

        Raises:
            InvalidInput: the report has no valid device id.
            QueueFull: there are too many devices.
        """
        checked = sanitized(report)
        before = self._known.get(report.device_id)
        forgotten = [] if before or len(self._known) < self._max_devices else self._make_room(at)
        known = before or Device(report=checked, first_seen=at, last_seen=at)
        self._known[report.device_id] = replace(
            known,
            report=checked,
            last_seen=max(at, known.last_seen),
            runs_since=_runs_since(before, checked, at),
            voices=instances.heard(
                known.voices, run=checked.run, instance=checked.instance, at=at, window_s=self._window_s,
                most=self._max_instances,
            ),
            reports=self._with_report(known.reports, checked),
        )  # fmt: skip
        self.dirty.add(report.device_id)
        return before, forgotten

    def agents(self, device_id: str, at: float) -> tuple[Voice, ...]:
        """Return the agents that report under an id; several only where that is certain."""
        device = self._known.get(device_id)
        return instances.live(device.voices, at=at, window_s=self._window_s) if device else ()

    def room_for(self, device_id: str, instance: str, at: float) -> tuple[str, ...]:
        """Return the instances that are forgotten when one delivers.

        Raises:
            QueueFull: all that are known report now, and there is no room for one more.
        """
        known = {name: one.updated_at for name, one in self._known[device_id].delivered.items()}
        alive = frozenset(voice.instance for voice in self.agents(device_id, at))
        found = instances.to_forget(known, newcomer=instance, alive=alive, most=self._max_instances)
        if found is None:
            raise QueueFull(
                f"{len(known)} agents report as {device_id}, which is the limit ([fleet] max_instances_per_device): "
                "a data directory was copied; give each device an id and a directory of its own",
                retry_after_s=60.0,
            )
        return found

    def note_delivered(self, device_id: str, instance: str, delivered: Delivered, forgotten: Iterable[str]) -> None:
        """Note what is on disk by now."""
        device, gone = self._known[device_id], set(forgotten)
        kept = {name: one for name, one in device.delivered.items() if name not in gone}
        self._known[device_id] = replace(device, delivered={**kept, instance: delivered})

    def row(self, device_id: str) -> rows.DeviceRow:
        """Return a device as it is stored."""
        device = self._known[device_id]
        return rows.DeviceRow(
            device_id=device_id,
            reported=msgspec.json.encode(device.report).decode(),
            first_seen=device.first_seen,
            last_seen=device.last_seen,
            runs_since=msgspec.json.encode(device.runs_since).decode(),
        )

    def forget(self, device_id: str) -> None:
        """Forget a device; it is new when it reports again."""
        del self._known[device_id]
        self.dirty.discard(device_id)

    def _with_report(self, reports: Mapping[str, Report], report: Report) -> Mapping[str, Report]:
        if len(reports) <= 1 and report.instance in reports:
            return {report.instance: report}
        kept = {name: one for name, one in reports.items() if name != report.instance} | {report.instance: report}
        return dict(list(kept.items())[-self._max_instances :])

    def _make_room(self, at: float) -> list[str]:
        oldest = [name for name, device in self._known.items() if at - device.last_seen > self._forget_s]
        if not oldest:
            raise QueueFull(
                f"{len(self._known)} devices are known, which is the limit ([fleet] max_devices)", retry_after_s=60.0
            )
        for name in oldest:
            del self._known[name]
            self.dirty.discard(name)
        return oldest


def is_news(before: Device, after: Device, *, quiet_s: float) -> bool:
    """Say whether a report is news: another state, or a voice after a silence that may have counted as failure."""
    return after.last_seen - before.last_seen > quiet_s or before.report.models != after.report.models


def check_key(field: str, key: str) -> str:
    """Return the name of an instance or a run unchanged.

    Raises:
        InvalidInput: it is not what an agent makes.
    """
    if not _KEY.fullmatch(key):
        shown = ascii(key[:40])
        raise InvalidInput(f"{field}: {shown} must be at most 64 letters, digits and . _ -", field=field)
    return key


def sanitized(report: Report) -> Report:
    """Return a report whose every part is bounded.

    Raises:
        InvalidInput: it has no valid device id, or names an instance or a run in another way than agents do.
    """
    check_device_id(report.device_id)
    check_key("instance", report.instance)
    check_key("run", report.run)
    labels = sorted(report.labels.items())[:_MAX_LABELS]
    return Report(
        device_id=report.device_id,
        agent_version=_cut(report.agent_version),
        labels={_cut(name): _cut(value) for name, value in labels},
        target=_cut(report.target),
        subscriptions=tuple(_cut(name) for name in report.subscriptions[:MAX_MODELS]),
        models=tuple(_bounded(model) for model in report.models[:MAX_MODELS]),
        outbox_records=min(report.outbox_records, _MAX_INTEGER),
        rung=_cut(report.rung),
        instance=report.instance,
        run=report.run,
    )


def _bounded(model: ReportedModel) -> ReportedModel:
    return replace(
        model,
        model=_cut(model.model),
        active_digest=_cut(model.active_digest),
        active_version=_cut(model.active_version),
        certificate_digest=_cut(model.certificate_digest),
        max_harm=model.max_harm if 0 <= model.max_harm <= 1 else 0.0,  # NaN would not come back from JSON
        desired_digest=_cut(model.desired_digest),
        desired_certificate_digest=_cut(model.desired_certificate_digest),
        failed_digest=_cut(model.failed_digest),
        error=_cut(model.error, _MAX_ERROR),
        fetched_bytes=min(model.fetched_bytes, _MAX_INTEGER),
        total_bytes=min(model.total_bytes, _MAX_INTEGER),
    )


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    """Return at most ``limit`` characters, none of which can move a terminal's cursor."""
    cut = text[:limit]
    # asked of the whole first: this runs for every text of every heartbeat
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " for c in cut)


def _runs_since(before: Device | None, report: Report, at: float) -> Mapping[str, float]:
    """Return since when each model runs what it runs; it is in no hurry, or each heartbeat would make a new mapping."""
    if before is not None and before.report.models == report.models:
        return before.runs_since
    found = {}
    for model in report.models:
        is_same = before is not None and before.report.model(model.model).active_digest == model.active_digest
        found[model.model] = before.runs_since.get(model.model, 0.0) if before is not None and is_same else at
    return found


def _decoded(row: rows.DeviceRow, delivered: Mapping[str, Delivered]) -> Device:
    return Device(
        report=msgspec.json.decode(row.reported, type=Report),
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        runs_since=msgspec.json.decode(row.runs_since, type=dict[str, float]),
        delivered=delivered,
    )
