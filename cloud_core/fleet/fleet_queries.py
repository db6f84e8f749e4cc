"""Questions about the fleet: the store and the devices, turned into what policies decide from and people are shown.

Reads memory only; changes nothing, waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from cloud_core.fleet.devices import MAX_MODELS, Devices, Report, ReportedModel
from cloud_core.fleet.entries import Entry
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.messages import DesiredModel, PlanRequest
from cloud_core.policy.rollouts.assignments import Assignment, FleetRelease, Plan, PlannedDevice
from cloud_core.policy.rollouts.gate_settings import audits_needed
from cloud_core.policy.rollouts.observations import Observation
from cloud_core.policy.rollouts.planning import Candidate
from cloud_core.policy.rollouts.rollout import Rollout
from cloud_core.registry.registry import ModelVersion, Registry
from penstock.errors import ArtifactError, Conflict, NotFound
from penstock.process.telemetry import log
from penstock.wire.outcomes import summed

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

    def desired(self, report: Report, model: str) -> Assignment:
        """Return what was assigned, else the fleet's release with the certificate of the device's variant.

        What was only pushed is neither: devices get it by a plan.
        """
        assigned = self._store.assignments.get((report.device_id, model))
        if assigned is not None and assigned.certificate_digest is not None:
            return assigned
        if assigned is not None:  # it names an artifact that could not be read at the start
            return replace(assigned, certificate_digest=self.certificate_for(report, assigned.artifact_digest))
        release = self._store.releases.get(model)
        if release is None or not release.artifact_digest:
            return Assignment(artifact_digest="")
        digest = release.artifact_digest
        found = self.certificate_for(report, digest, among=release.certificates)
        return Assignment(artifact_digest=digest, certificate_digest=found)

    def desired_of(self, device_id: str, model: str) -> Assignment:
        """Return :meth:`desired` for a known device."""
        device = self._devices.get(device_id)
        return self.desired(device.report if device else Report(device_id=device_id), model)

    def check_unused(self, model: str, version: str) -> None:
        """Check that no device runs a model through the fleet.

        Raises:
            Conflict: one does, or will; says which.
        """
        release = self._store.releases.get(model)
        users = ["the fleet's release"] if release is not None and release.artifact_digest else []
        users += [f"rollout {entry.rollout.plan.rollout_id}" for entry in self._store.active(model)]
        for (device, name), assigned in self._store.assignments.items():
            users += [f"device {device}"] if name == model and assigned.artifact_digest else []
        if users:
            raise Conflict(
                f"devices run {model} ({', '.join(users[:3])}), and the default moves with them: "
                f"'penstock fleet apply {model}:{version}'"
            )

    def default(self, model: str) -> str:
        """Return what the core serves by default; "" for nothing."""
        try:
            return self._registry.resolve(model).digest
        except NotFound:
            return ""  # a removal of what was deleted from the registry

    def elsewhere(self, plan: Plan, expected: Mapping[str, Assignment]) -> list[str]:
        """Return the devices that should by now run something else than is expected of them."""
        found = []
        for name, wanted in expected.items():
            current = self.desired_of(name, plan.model)
            is_same = wanted.certificate_digest in (None, current.certificate_digest) or not wanted.artifact_digest
            if current.artifact_digest != wanted.artifact_digest or not is_same:
                found.append(name)
        return found

    def certificate_for(self, report: Report, digest: str, among: Sequence[str] | None = None) -> str:
        """Return the certificate of the variant that a device runs of an artifact; "" when there is none.

        Args:
            among: manifests of the only certificates that count; None for the newest of each variant.
        """
        try:
            edge = report.variant_of(self._registry.artifact(digest))
            if among is None:
                found = self._registry.certificates_of(digest)
            else:
                found = tuple((one, self._registry.certificate(one)) for one in among)
        except (NotFound, ArtifactError):
            return ""
        return next((one for one, certificate in found if edge and certificate.edge_digest == edge.digest), "")

    def to_trust(self, device_id: str, model: str) -> tuple[ReportedModel, ...]:
        """Return the models that a device runs under a certificate: the given one, or all for "".

        Raises:
            NotFound: no such device, or it runs no such model under a certificate.
        """
        device = self._devices.get(device_id)
        if device is None:
            raise NotFound(f"no device {device_id[:80]!r}; 'penstock fleet devices' lists them")
        found = tuple(
            one
            for one in device.report.models
            if model in ("", one.model) and one.active_digest and one.certificate_digest
        )
        if not found:
            what = f"{model} under a certificate" if model else "no model under a certificate"
            raise NotFound(f"{device_id} runs {'no ' if model else ''}{what}: there is no audit to begin again")
        return found

    def unpinned(self) -> tuple[dict[tuple[str, str], Assignment], dict[str, FleetRelease]]:
        """Return assignments and releases that an older release kept without certificates, with those of now."""
        assignments = {
            key: replace(self.desired_of(*key))
            for key, assigned in self._store.assignments.items()
            if assigned.certificate_digest is None
        }
        releases = {
            model: replace(release, certificates=self.certificates(release.artifact_digest))
            for model, release in self._store.releases.items()
            if release.certificates is None
        }
        return assignments, releases

    def certificates(self, digest: str) -> tuple[str, ...]:
        """Return the newest certificate of each variant of an artifact."""
        return tuple(one for one, _ in self._registry.certificates_of(digest)) if digest else ()

    def desired_models(self, report: Report) -> tuple[DesiredModel, ...]:
        """Return what a device should run, for each model that it subscribes to."""
        known = dict.fromkeys((*self._registry.models(), *(model.model for model in report.models)))
        names = tuple(known) if "*" in report.subscriptions else report.subscriptions
        found = (self._desired_model(report, model) for model in dict.fromkeys(names[:MAX_MODELS]))
        return tuple(desired for desired in found if desired is not None)

    def _desired_model(self, report: Report, model: str) -> DesiredModel | None:
        desired = self.desired(report, model)
        digest, certificate = desired.artifact_digest, desired.certificate_digest or ""
        if not digest:
            return self._removed(report, model)
        try:
            if report.variant_of(self._registry.artifact(digest)) is None:
                # the default has no variant for this device: it stays with what it has
                digest = report.model(model).active_digest
                certificate = report.model(model).certificate_digest
            version = self._registry.resolve(model, digest) if digest else None
        except (NotFound, ArtifactError) as error:
            log(_log, logging.WARNING, "nothing to run", device=report.device_id, model=model, error=error.message)
            return None
        if version is None:
            return None
        return DesiredModel(
            model=model,
            version=version.tag or digest.removeprefix("sha256:")[:12],
            artifact_digest=digest,
            is_distrusted=self._store.evidence.is_distrusted(digest, report.model(model).certificate_digest),
            certificate_digest=certificate,
            trusted_at=self._store.trusted_at(report.device_id, model, digest, certificate),
        )

    def _removed(self, report: Report, model: str) -> DesiredModel | None:
        """Say that a model is to be dropped, where somebody decided that."""
        is_decided = (report.device_id, model) in self._store.assignments or model in self._store.releases
        if not is_decided or all(one.model != model for one in report.models):
            return None
        return DesiredModel(model=model, version="", artifact_digest="", certificate_digest="", is_removed=True)

    def candidates(self, model: str, version: ModelVersion | None) -> list[Candidate]:
        """Return every known device, as a rollout of ``version`` sees it; None for a removal."""
        at = self._now().timestamp()
        artifact = self._registry.artifact(version.digest) if version else None
        found = []
        for device in self._devices:
            report = device.report
            desired = self.desired(report, model)
            found.append(
                Candidate(
                    device_id=report.device_id,
                    labels=report.labels,
                    target=report.target,
                    is_subscribed=report.subscribes(model),
                    is_runnable=artifact is not None and report.variant_of(artifact) is not None,
                    silent_s=at - device.last_seen,
                    desired_digest=desired.artifact_digest,
                    desired_certificate=desired.certificate_digest or "",
                    certificate_digest=self.certificate_for(report, version.digest) if version else "",
                )
            )
        return found

    def frozen_plan(
        self,
        request: PlanRequest,
        version: ModelVersion | None,
        planned: tuple[PlannedDevice, ...],
        skipped: Sequence[str],
        number: int,
    ) -> Plan:
        """Make the plan to freeze, for devices that were chosen and assigned to waves."""
        digest = version.digest if version else ""
        certificates = self.certificates(digest)
        promised_harm = self._promised_harm(digest) if digest else None
        wave_count = planned[-1].wave + 1
        name = (version.tag or digest.removeprefix("sha256:")[:12]) if version else "removal"
        return Plan(
            rollout_id=f"{request.model}-{name}-{number}",
            model=request.model,
            version=name,
            artifact_digest=digest,
            certificate_digest=certificates[0] if certificates else "",
            certificates=certificates,
            devices=planned,
            wave_count=wave_count,
            seed=request.seed,
            gate=replace(request.gate, min_audited=audits_needed(request.gate, promised_harm, wave_count)),
            promised_harm=promised_harm,
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

    def versions(self, plan: Plan) -> dict[str, str]:
        """Return the tags of the artifacts that a plan is about, by digest; "" of one that has none, or is gone."""
        digests = {plan.artifact_digest, *(device.base_digest for device in plan.devices)} - {""}
        return {digest: self._registry.tag_of(plan.model, digest) for digest in sorted(digests)}

    def certified_harm(self, digest: str) -> float | None:
        """Return what the certificates of an artifact promise of all rows; None where there is none."""
        try:
            found = self._registry.certificates_of(digest) if digest else ()
        except (NotFound, ArtifactError):
            return None  # deleted since, or its files were changed
        return max((harm for _, one in found for harm in one.max_harms), default=None)

    def observed(self, rollout: Rollout) -> dict[str, Observation]:
        """Return what the devices of released waves do, by device id."""
        at = self._now().timestamp()
        entry = self._store.get(rollout.plan.rollout_id)
        return {
            planned.device_id: self._observation(entry, planned, at)
            for planned in rollout.plan.devices
            if planned.wave < len(rollout.waves)
        }

    def reported(self, device_id: str, model: str) -> ReportedModel:
        """Return what a device reports of a model; an idle one when nothing is known of it."""
        device = self._devices.get(device_id)
        return device.report.model(model) if device else ReportedModel(model=model)

    def _observation(self, entry: Entry, planned: PlannedDevice, at: float) -> Observation:
        rollout = entry.rollout
        plan, device_id, wanted = rollout.plan, planned.device_id, planned.certificate_digest
        model = self.reported(device_id, plan.model)
        by_instance = tuple(self._store.counts_since(entry, device_id).values())
        counts = summed(by_instance)
        is_as_assigned = plan.is_removal or wanted in (None, model.certificate_digest)
        # a failure under the former certificate says nothing about this one; an older agent does not tell them apart
        is_about_this = wanted is None or model.desired_certificate_digest in ("", wanted)
        # a report that says nothing of the model is only evidence when it is newer than the order to drop it: the one
        # on disk may be from before the device had it
        device = self._devices.get(device_id)
        is_fresh = device is not None and device.last_seen > rollout.waves[planned.wave].released_at.timestamp()
        is_off = plan.is_removal and not model.active_digest and is_fresh
        is_target = model.active_digest == plan.artifact_digest
        # it took what was asked for, and cannot use the certificate: it escalates everything
        is_settled = model.phase == "committed" and model.desired_certificate_digest == wanted
        is_uncertified = is_target and not is_as_assigned and is_settled
        return Observation(
            device_id=device_id,
            phase="committed" if is_off else model.phase,
            active_digest="" if is_target and not is_as_assigned else model.active_digest,
            failed_digest=plan.artifact_digest if is_uncertified else model.failed_digest if is_about_this else "",
            silent_s=self._devices.silent_s(device_id, at),
            audited=counts.audited,
            audit_harm=counts.audit_harm,
            is_handed=device_id in self._store.handed.get(entry.number, ()) or is_off,
            is_cloud_only=model.mode == "cloud_only",
            error=model.error,
            by_instance=tuple((one.audited, one.audit_harm) for one in by_instance) if len(by_instance) > 1 else (),
            is_duplicated=self.is_duplicated(device_id),
        )

    def is_duplicated(self, device_id: str) -> bool:
        """Tell whether several agents report under one id."""
        return len(self._devices.agents(device_id, self._now().timestamp())) > 1

    def is_silent(self, device_id: str) -> bool:
        """Tell whether the last report of a device is older than the default limit."""
        return self._devices.silent_s(device_id, self._now().timestamp()) > self._max_silence_s
