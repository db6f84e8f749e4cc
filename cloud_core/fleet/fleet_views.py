"""What people are shown of the fleet: rollouts with their devices as they are now, devices, and devices counted.

Reads memory only; decides nothing, changes nothing, waits for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import get_args

from cloud_core.fleet.devices import Device, Devices, ReportedModel
from cloud_core.fleet.entries import Entry
from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.messages import (
    DeviceGroup,
    DevicePage,
    DeviceStatus,
    InstanceStatus,
    RolloutStatus,
    WaveDeviceStatus,
    WaveStatus,
)
from cloud_core.policy.rollouts import instances
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.assignments import Plan
from cloud_core.policy.rollouts.foresight import foretell
from cloud_core.policy.rollouts.observations import Phase
from cloud_core.policy.rollouts.rollout import State
from penstock.errors import InvalidInput, NotFound
from penstock.wire.outcomes import summed

MAX_PAGE = 1000
"""Devices in one answer."""

_MAX_LABELS_NAMED = 20
_MAX_SERIES = 1000
_AT_REST: frozenset[Phase] = frozenset({"idle", "committed", "reverted", "failed"})
_LABEL = "label:"


class FleetViews:
    """Shows rollouts and devices."""

    def __init__(
        self,
        store: FleetStore,
        devices: Devices,
        queries: FleetQueries,
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._devices, self._queries, self._now = store, devices, queries, now

    def __len__(self) -> int:
        return len(self._devices)

    def rollout(self, entry: Entry) -> RolloutStatus:
        """Return a rollout with its devices as they are now."""
        rollout, now = entry.rollout, self._now()
        plan = rollout.plan
        members: list[list[str]] = [[] for _ in range(plan.wave_count)]
        for device in plan.devices:
            members[device.wave].append(device.device_id)
        released = dict(enumerate(rollout.waves))
        started = rollout.started_at
        elapsed_s = ((rollout.finished_at or now) - started).total_seconds() if started else 0.0
        return RolloutStatus(
            rollout=rollout,
            plan_digest=entry.plan_digest,
            waves=tuple(
                WaveStatus(
                    number=number,
                    is_released=number in released,
                    devices=tuple(self._wave_device(entry, name) for name in names),
                    gate=released[number].verdict if number in released else None,
                )
                for number, names in enumerate(members)
            ),
            elapsed_s=max(0.0, elapsed_s),
            promises=self._store.evidence.statuses(plan.artifact_digest),
            versions=self._queries.versions(plan),
            certified_harm=self._queries.certified_harm(plan.artifact_digest),
            foresight=foretell([len(names) for names in members], plan.gate, plan.promised_harm),
            newcomers=self._newcomers(plan) if plan.covers_fleet and rollout.finished_at is None else (),
            waiting_plans=tuple(
                name
                for name, other in self._store.entries.items()
                if other.rollout.state == "planned" and name != plan.rollout_id
            ),
        )

    def device(self, device: Device) -> DeviceStatus:
        """Return a device with everything that it has delivered."""
        at, device_id = self._now().timestamp(), device.report.device_id
        agents = instances.agents_by_instance(self._devices.agents(device_id, at))
        totals = self._store.totals.get(device_id, {})
        found = tuple(
            InstanceStatus(
                instance=name,
                agents=agents[name],
                durable_sequence=device.delivered[name].sequence if name in device.delivered else 0,
                outcomes=dict(totals.get(name, {})),
            )
            for name in sorted({*device.delivered, *agents})
        )
        digests = dict.fromkeys(digest for one in totals.values() for digest in one)
        return DeviceStatus(
            report=device.report,
            first_seen=device.first_seen,
            runs_since=device.runs_since,
            last_seen_s=max(0.0, at - device.last_seen),
            is_silent=self._queries.is_silent(device_id),
            outcomes={digest: summed(self._store.counts(device_id, digest).values()) for digest in digests},
            is_duplicated=sum(agents.values()) > 1,
            instances=found,
        )

    def page(self, labels: Mapping[str, str], *, after: str = "", limit: int = MAX_PAGE) -> DevicePage:
        """Return the devices whose labels match, by id, from the first one behind ``after``."""
        matching = self._matching(labels)
        names = [device.report.device_id for device in matching]
        start = next((i for i, name in enumerate(names) if name > after), len(names))
        end = start + min(limit, MAX_PAGE)
        return DevicePage(
            devices=tuple(self.device(device) for device in matching[start:end]),
            matching=len(matching),
            known=len(self._devices),
            next_after=names[end - 1] if start < end < len(names) else "",
            labels=() if matching else self._labels(labels),
        )

    def groups(self, by: str, labels: Mapping[str, str], model: str = "") -> tuple[DeviceGroup, ...]:
        """Count devices by ``version``, ``wave`` (of the newest rollout), ``phase``, ``target`` or ``label:NAME``.

        A device with several models is counted once for each, by ``version`` and ``phase``.

        Raises:
            InvalidInput: not one of these. NotFound: there is no rollout whose waves could be counted.
        """
        places = self._places(by, model)
        found: dict[str, tuple[Counter[Phase], int]] = {}
        for device in self._matching(labels):
            is_silent = self._queries.is_silent(device.report.device_id)
            for name, phase in places(device):
                phases, silent = found.setdefault(name, (Counter(), 0))
                phases[phase] += 1
                found[name] = (phases, silent + is_silent)
        return tuple(
            DeviceGroup(name=name, devices=phases.total(), silent=silent, phases=dict(phases))
            for name, (phases, silent) in sorted(found.items())
        )

    def running(self) -> Counter[tuple[str, str, Phase]]:
        """Count devices by model, version and phase. Versions are their word; the rarest beyond a bound are one."""
        found = Counter(
            (model.model, model.active_version or "none", model.phase)
            for device in self._devices
            for model in device.report.models
        )
        shown = dict(found.most_common(_MAX_SERIES))
        rest = found.total() - sum(shown.values())
        return Counter(shown) if not rest else Counter({**shown, ("other", "other", "idle"): rest})

    def silent(self) -> int:
        """Count devices whose last report is old."""
        return sum(self._queries.is_silent(device.report.device_id) for device in self._devices)

    def states(self) -> Counter[tuple[str, State]]:
        """Count rollouts and plans by model and state; those of a model that are over keep their 0."""
        found = Counter({
            (entry.rollout.plan.model, state): 0 for entry in self._store.entries.values() for state in get_args(State)
        })  # fmt: skip
        found.update((entry.rollout.plan.model, entry.rollout.state) for entry in self._store.entries.values())
        return found

    def stopped_at(self) -> dict[str, float]:
        """Return when a gate last stopped a rollout of a model that is kept, in seconds since 1970."""
        stopped = [one.rollout for one in self._store.entries.values() if one.rollout.state == "stopped_by_gate"]
        times = [(one.finished_at.timestamp(), one.plan.model) for one in stopped if one.finished_at is not None]
        return {model: at for at, model in sorted(times)}

    def nobody_there(self, labels: Mapping[str, str]) -> str:
        """Say that no device has reported yet, or that none has the labels that were asked for, and which there are;
        "" where one has.
        """
        if not len(self._devices):
            return "no device has reported yet; an agent appears with its first heartbeat"
        if self._matching(labels):
            return ""
        asked = ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
        known = ", ".join(self._labels(labels)) or "none of that name"
        return f"none of {len(self._devices)} known devices has {asked}; labels that they have: {known}"

    def _matching(self, labels: Mapping[str, str]) -> list[Device]:
        return [
            device
            for device in self._devices
            if all(device.report.labels.get(name) == value for name, value in labels.items())
        ]

    def _labels(self, wanted: Mapping[str, str]) -> tuple[str, ...]:
        """Return labels that devices have, those of the wanted names first."""
        found = {
            (name not in wanted, name, value)
            for device in self._devices
            for name, value in device.report.labels.items()
        }
        return tuple(f"{name}={value}" for _, name, value in sorted(found)[:_MAX_LABELS_NAMED])

    def _places(self, by: str, model: str) -> Callable[[Device], Sequence[tuple[str, Phase]]]:
        """Return what says under which names a device is counted, and in which phase."""

        def phase_of(device: Device) -> Phase:
            named = next((one for one in device.report.models if model in ("", one.model)), None)
            return named.phase if named else "idle"

        if by in ("version", "phase"):
            return lambda device: (
                [
                    (_running(one) if by == "version" else one.phase, one.phase)
                    for one in device.report.models
                    if model in ("", one.model)
                ]
                or [("none", "idle")]
            )
        if by == "target":
            return lambda device: [(device.report.target or "-", phase_of(device))]
        if by.startswith(_LABEL) and len(by) > len(_LABEL):
            return lambda device: [(device.report.labels.get(by.removeprefix(_LABEL), "-"), phase_of(device))]
        if by == "wave":
            return self._by_wave(model)
        raise InvalidInput(f"by: {by[:40]!r} is not version, wave, phase, target or label:NAME", field="by")

    def _by_wave(self, model: str) -> Callable[[Device], Sequence[tuple[str, Phase]]]:
        known = [one.rollout for one in self._store.entries.values() if model in ("", one.rollout.plan.model)]
        shown = policy.shown(known)
        if shown is None:
            raise NotFound("there is no rollout whose waves could be counted; make one with 'penstock fleet plan'")
        plan = shown.plan
        waves = {device.device_id: f"{plan.rollout_id} wave {device.wave + 1}" for device in plan.devices}
        elsewhere = f"not in {plan.rollout_id}"
        return lambda device: [(waves.get(device.report.device_id, elsewhere), device.report.model(plan.model).phase)]

    def _wave_device(self, entry: Entry, device_id: str) -> WaveDeviceStatus:
        plan = entry.rollout.plan
        model = self._queries.reported(device_id, plan.model)
        is_released = device_id in entry.baselines
        wanted = self._queries.desired_of(device_id, plan.model)
        certificates = (model.certificate_digest, model.desired_certificate_digest)
        is_same = wanted.certificate_digest is None or not wanted.artifact_digest
        return WaveDeviceStatus(
            device_id=device_id,
            phase=model.phase,
            active_digest=model.active_digest,
            active_version=model.active_version,
            is_silent=self._devices.silent_s(device_id, self._now().timestamp()) > plan.gate.max_silence_s,
            error=model.error,
            counts=summed(self._store.counts_since(entry, device_id).values() if is_released else ()),
            is_duplicated=self._queries.is_duplicated(device_id),
            is_there=model.active_digest == wanted.artifact_digest
            and model.phase in _AT_REST
            and (is_same or wanted.certificate_digest in certificates),
        )

    def _newcomers(self, plan: Plan) -> tuple[str, ...]:
        considered = {device.device_id for device in plan.devices}
        considered |= {reason.partition(": ")[0] for reason in plan.skipped}
        names = (device.report.device_id for device in self._devices if device.report.subscribes(plan.model))
        return tuple(name for name in names if name not in considered)


def _running(model: ReportedModel) -> str:
    version = model.active_version or model.active_digest.removeprefix("sha256:")[:12]
    return f"{model.model}:{version}" if version else f"{model.model}: none"
