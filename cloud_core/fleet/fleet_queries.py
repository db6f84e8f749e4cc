"""Questions about the fleet: the store and the devices, turned into what policies decide from and people are shown.

Reads memory only; changes nothing, waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from cloud_core.fleet.devices import MAX_MODELS, Devices, Report, ReportedModel
from cloud_core.fleet.fleet_store import Entry, FleetStore
from cloud_core.fleet.messages import DesiredModel, PlanRequest, RolloutStatus, WaveDeviceStatus, WaveStatus
from cloud_core.policy.observations import Observation
from cloud_core.policy.planning import Candidate
from cloud_core.policy.rollout import Plan, PlannedDevice, Rollout
from cloud_core.registry.registry import ModelVersion, Registry
from penstock.errors import ArtifactError, NotFound
from penstock.process.telemetry import log
from penstock.wire.outcomes import NOTHING, OutcomeCounts

_log = logging.getLogger(__name__)


class FleetQueries:
    """Answers what a device should run, what it was seen to do, and how a rollout stands."""

    def __init__(
        self,
        store: FleetStore,
        devices: Devices,
        registry: Registry,
        now: Callable[[], datetime],
        *,
        max_silence_s: float,
    ) -> None:
        self._store, self._devices, self._registry, self._now = store, devices, registry, now
        self._max_silence_s = max_silence_s

    def desired_digest(self, device_id: str, model: str) -> str:
        """Return the assigned artifact, else the model's default; "" when there is neither."""
        assigned = self._store.assignments.get((device_id, model))
        if assigned is not None:
            return assigned
        try:
            return self._registry.resolve(model).digest
        except NotFound:
            return ""

    def desired_models(self, report: Report) -> tuple[DesiredModel, ...]:
        """Return what a device should run, for each model that it subscribes to."""
        names = self._registry.models() if "*" in report.subscriptions else report.subscriptions
        found = (self._desired_model(report, model) for model in dict.fromkeys(names[:MAX_MODELS]))
        return tuple(desired for desired in found if desired is not None)

    def _desired_model(self, report: Report, model: str) -> DesiredModel | None:
        digest = self.desired_digest(report.device_id, model)
        try:
            if digest and not report.runs(self._edge_targets(digest)):
                # the default has no variant for this device: it stays with what it has
                digest = report.model(model).active_digest
            version = self._registry.resolve(model, digest) if digest else None
            certificate = self._registry.certificate_of(digest) if version else None
        except (NotFound, ArtifactError) as error:
            log(_log, logging.WARNING, "nothing to run", device=report.device_id, model=model, error=error.message)
            return None
        if version is None:
            return None
        return DesiredModel(
            model=model,
            version=version.tag or digest.removeprefix("sha256:")[:12],
            artifact_digest=digest,
            certificate_digest=certificate[0] if certificate else "",
            is_distrusted=self._store.evidence.is_distrusted(digest, report.model(model).certificate_digest),
        )

    def _edge_targets(self, digest: str) -> set[str]:
        return {v.spec.target for v in self._registry.artifact(digest).variants if v.spec.role == "edge"}

    def candidates(self, version: ModelVersion) -> list[Candidate]:
        """Return every known device, as a rollout of ``version`` sees it."""
        at, targets = self._now().timestamp(), self._edge_targets(version.digest)
        return [
            Candidate(
                device_id=device.report.device_id,
                labels=device.report.labels,
                target=device.report.target,
                is_subscribed=device.report.subscribes(version.model),
                is_runnable=device.report.runs(targets),
                silent_s=at - device.last_seen,
                desired_digest=self.desired_digest(device.report.device_id, version.model),
            )
            for device in self._devices
        ]

    def frozen_plan(
        self,
        request: PlanRequest,
        version: ModelVersion,
        planned: tuple[PlannedDevice, ...],
        skipped: Sequence[str],
        number: int,
    ) -> Plan:
        """Make the plan to freeze, for devices that were chosen and assigned to waves."""
        certificate = self._registry.certificate_of(version.digest)
        name = version.tag or version.digest.removeprefix("sha256:")[:12]
        return Plan(
            rollout_id=f"{version.model}-{name}-{number}",
            model=version.model,
            version=name,
            artifact_digest=version.digest,
            certificate_digest=certificate[0] if certificate else "",
            devices=planned,
            wave_count=planned[-1].wave + 1,
            seed=request.seed,
            gate=request.gate,
            promised_harm=self._promised_harm(version.digest),
            covers_fleet=request.selection.is_everyone,
            skipped=tuple(skipped),
        )

    def _promised_harm(self, digest: str) -> float | None:
        """Return the largest audit bound that a device may keep to; None when no device keeps an answer.

        Devices differ in their variant, each with a certificate of its own, and may be set to any of its levels: a gate
        at less than the largest of these would fail devices that keep what they promised. Each device tests its own.
        """
        edges = {v.digest for v in self._registry.artifact(digest).variants if v.spec.role == "edge"}
        found = [one for _, one in self._registry.certificates_of(digest) if one.edge_digest in edges]
        return max((one.largest_audit_max_harm for one in found), default=None)

    def observed(self, rollout: Rollout) -> dict[str, Observation]:
        """Return what the devices of released waves do, by device id."""
        at = self._now().timestamp()
        baselines = self._store.get(rollout.plan.rollout_id).baselines
        return {
            planned.device_id: self._observation(rollout.plan, planned.device_id, baselines, at)
            for planned in rollout.plan.devices
            if planned.wave < len(rollout.waves)
        }

    def _reported(self, device_id: str, model: str) -> ReportedModel:
        device = self._devices.get(device_id)
        return device.report.model(model) if device else ReportedModel(model=model)

    def _observation(
        self, plan: Plan, device_id: str, baselines: Mapping[str, OutcomeCounts], at: float
    ) -> Observation:
        model = self._reported(device_id, plan.model)
        totals = self._store.counts(device_id, plan.artifact_digest)
        counts = totals.since(baselines.get(device_id, NOTHING))
        return Observation(
            device_id=device_id,
            phase=model.phase,
            active_digest=model.active_digest,
            failed_digest=model.failed_digest,
            silent_s=self._devices.silent_s(device_id, at),
            audited=counts.audited,
            audit_harm=counts.audit_harm,
            is_cloud_only=model.mode == "cloud_only",
            error=model.error,
        )

    def is_silent(self, device_id: str) -> bool:
        """Tell whether the last report of a device is older than the default limit."""
        return self._devices.silent_s(device_id, self._now().timestamp()) > self._max_silence_s

    def status(self, entry: Entry) -> RolloutStatus:
        """Return a rollout with its devices as they are now."""
        rollout, now = entry.rollout, self._now()
        waves = []
        for number in range(rollout.plan.wave_count):
            released = rollout.waves[number] if number < len(rollout.waves) else None
            members = [d.device_id for d in rollout.plan.devices if d.wave == number]
            waves.append(
                WaveStatus(
                    number=number,
                    is_released=released is not None,
                    devices=tuple(self._wave_device(entry, device_id) for device_id in members),
                    gate=released.verdict if released else None,
                )
            )
        started = rollout.started_at
        elapsed_s = ((rollout.finished_at or now) - started).total_seconds() if started else 0.0
        return RolloutStatus(
            rollout=rollout,
            plan_digest=entry.plan_digest,
            waves=tuple(waves),
            elapsed_s=max(0.0, elapsed_s),
            promises=self._store.evidence.statuses(rollout.plan.artifact_digest),
        )

    def _wave_device(self, entry: Entry, device_id: str) -> WaveDeviceStatus:
        plan = entry.rollout.plan
        model = self._reported(device_id, plan.model)
        totals = self._store.counts(device_id, plan.artifact_digest)
        return WaveDeviceStatus(
            device_id=device_id,
            phase=model.phase,
            active_digest=model.active_digest,
            active_version=model.active_version,
            is_silent=self._devices.silent_s(device_id, self._now().timestamp()) > plan.gate.max_silence_s,
            error=model.error,
            counts=totals.since(entry.baselines[device_id]) if device_id in entry.baselines else NOTHING,
        )
