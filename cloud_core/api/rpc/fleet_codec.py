"""Messages of ``penstock.v1.Fleet`` to values of the fleet service, and back. Decodes and encodes; decides nothing.

A device may be newer than this core: enum values that are not known here become the neutral one, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import get_args

from cloud_core.fleet.devices import Mode, Report, ReportedModel
from cloud_core.fleet.messages import (
    DeviceGroup,
    DevicePage,
    DeviceStatus,
    HeartbeatReply,
    PlanRequest,
    PromiseStatus,
    RolloutStatus,
    WaveDeviceStatus,
    WaveStatus,
)
from cloud_core.fleet.outcome_totals import Record
from cloud_core.fleet.settings import GateDefaults
from cloud_core.policy.rollouts.foresight import WaveForesight
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.observations import Phase
from cloud_core.policy.rollouts.operations import Action
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.policy.rollouts.rollout import Event, Operator, State
from cloud_core.policy.rollouts.verdicts import GateVerdict, Verdict
from penstock.errors import InvalidInput
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.wire.device_ids import check_device_id
from penstock.wire.outcomes import OutcomeCounts, from_columns

_PHASE_OF: Mapping[Phase, pb.UpdatePhase] = {
    "idle": pb.IDLE,
    "fetching": pb.FETCHING,
    "proving": pb.PROVING,
    "probation": pb.PROBATION,
    "committed": pb.COMMITTED,
    "reverted": pb.REVERTED,
    "failed": pb.FAILED,
}
_MODE_OF: Mapping[Mode, pb.CascadeMode] = {
    "unknown": pb.CASCADE_MODE_UNSPECIFIED,
    "cascade": pb.CASCADE,
    "escalate_all": pb.ESCALATE_ALL,
    "cloud_only": pb.CLOUD_ONLY,
}
_PHASES: Mapping[int, Phase] = {number: name for name, number in _PHASE_OF.items()}
_MODES: Mapping[int, Mode] = {number: name for name, number in _MODE_OF.items()}
_STATE_OF: Mapping[State, pb.RolloutState] = {
    "planned": pb.PLANNED,
    "running": pb.RUNNING,
    "paused": pb.PAUSED,
    "succeeded": pb.SUCCEEDED,
    "stopped_by_gate": pb.STOPPED_BY_GATE,
    "aborted": pb.ABORTED,
    "undone": pb.UNDONE,
}
_ACTIONS: Mapping[str, Action] = {name: name for name in get_args(Action)}
_MAX_WHO, _MAX_REASON = 128, 1000
Commanded = (
    pb.PlanRolloutRequest
    | pb.ApplyRolloutRequest
    | pb.RolloutActionRequest
    | pb.ResumeRolloutRequest
    | pb.AbortRolloutRequest
    | pb.SetDefaultRequest
    | pb.TrustDeviceRequest
    | pb.ForgetDeviceRequest
)
_VERDICT_OF: Mapping[Verdict, pb.Verdict] = {"pass": pb.PASS, "fail": pb.FAIL, "hold": pb.HOLD}


def decode_report(message: pb.HeartbeatRequest) -> Report:
    """Read a heartbeat; nothing of it is checked yet."""
    return Report(
        device_id=message.device_id,
        agent_version=message.agent_version,
        labels=dict(message.labels),
        target=message.target,
        subscriptions=tuple(message.subscriptions),
        models=tuple(_decode_model(model) for model in message.models),
        outbox_records=message.outbox_records,
        rung=message.rung or "edge",
        instance=message.instance,
        run=message.run,
    )


def decode_records(message: pb.DeliverOutcomesRequest) -> list[Record]:
    """Read outcome records; nothing of them is checked yet."""
    return [
        Record(
            sequence=record.sequence,
            model=record.model,
            artifact_digest=record.artifact_digest,
            counts=from_columns(record.counts),
        )
        for record in message.records
    ]


def decode_plan_request(message: pb.PlanRolloutRequest, defaults: GateDefaults) -> PlanRequest:
    """Read a plan request; gate settings that are left out take the defaults (a 0 that is given is a 0).

    Raises:
        InvalidInput: it names what is not a device id.
    """
    asked = message.gate
    return PlanRequest(
        model=message.model,
        version=message.version,
        selection=Selection(device_ids=tuple(map(check_device_id, message.device_ids)), labels=dict(message.selector)),
        waves=tuple(message.waves),
        seed=message.seed,
        is_removal=message.is_removal,
        gate=Gate(
            **{name: getattr(asked if asked.HasField(name) else defaults, name) for name in Gate.__dataclass_fields__}
        ),
    )


def decode_action(name: str) -> Action | None:
    """Read the name of an action; None for "".

    Raises:
        InvalidInput: no such action.
    """
    if not name:
        return None
    found = _ACTIONS.get(name)
    if found is None:
        raise InvalidInput(f"action: {name[:40]!r} is none of {', '.join(_ACTIONS)}", field="action")
    return found


def decode_operator(message: Commanded, tenant: str) -> Operator:
    """Read who gives a command and why; ``tenant`` is the one of the credential, "" where the core has none."""
    return operator_of(message.who, message.reason, tenant)


def operator_of(who: str, reason: str, tenant: str) -> Operator:
    """Make a record of who gives a command, as they say and as their credential says, and why."""
    who = _printable(who)[:_MAX_WHO] or "nobody said who"
    return Operator(who=f"{who} (tenant {tenant})" if tenant else who, reason=_printable(reason)[:_MAX_REASON])


def encode_reply(reply: HeartbeatReply) -> pb.HeartbeatResponse:
    """Write the reply to a heartbeat."""
    return pb.HeartbeatResponse(
        models=[
            pb.DesiredModel(
                model=model.model,
                version=model.version,
                artifact_digest=model.artifact_digest,
                certificate_digest=model.certificate_digest,
                is_distrusted=model.is_distrusted,
                is_removed=model.is_removed,
                trusted_at=model.trusted_at,
            )
            for model in reply.models
        ],
        next_heartbeat_s=reply.next_heartbeat_s,
        counts_instances=True,
        must_renew_instance=reply.must_renew_instance,
    )


def encode_device(status: DeviceStatus) -> pb.Device:
    """Write a device for a listing."""
    report = status.report
    return pb.Device(
        device_id=report.device_id,
        agent_version=report.agent_version,
        labels=dict(report.labels),
        target=report.target,
        models=[_encode_model(model) for model in report.models],
        last_seen_s=status.last_seen_s,
        is_silent=status.is_silent,
        outbox_records=report.outbox_records,
        outcomes=_encode_outcomes(status.outcomes),
        is_duplicated=status.is_duplicated,
        first_seen_at=status.first_seen,
        runs_since=dict(status.runs_since),
        instances=[
            pb.DeviceInstance(
                instance=one.instance,
                agents=one.agents,
                durable_sequence=one.durable_sequence,
                outcomes=_encode_outcomes(one.outcomes),
            )
            for one in status.instances
        ],
    )


def encode_page(page: DevicePage) -> pb.ListDevicesResponse:
    """Write a page of a listing."""
    return pb.ListDevicesResponse(
        devices=[encode_device(device) for device in page.devices],
        next_after=page.next_after,
        matching=page.matching,
        known=page.known,
        labels=page.labels,
    )


def encode_group(group: DeviceGroup) -> pb.DeviceGroup:
    """Write devices that have something in common."""
    phases = {pb.UpdatePhase.Name(_PHASE_OF[phase]): count for phase, count in group.phases.items()}
    return pb.DeviceGroup(name=group.name, devices=group.devices, silent=group.silent, phases=phases)


def encode_plan(status: RolloutStatus) -> pb.RolloutPlan:
    """Write a plan, as ``apply`` will run it."""
    plan, gate = status.rollout.plan, status.rollout.plan.gate
    return pb.RolloutPlan(
        rollout_id=plan.rollout_id,
        model=plan.model,
        version=plan.version,
        artifact_digest=plan.artifact_digest,
        certificate_digest=plan.certificate_digest,
        devices=[
            pb.PlannedDevice(
                device_id=device.device_id,
                wave=device.wave,
                base_digest=device.base_digest,
                certificate_digest=device.certificate_digest or "",
                base_certificate=device.base_certificate or "",
                base_version=status.versions.get(device.base_digest, ""),
            )
            for device in plan.devices
        ],
        wave_count=plan.wave_count,
        seed=plan.seed,
        gate=pb.GateSettings(**asdict(gate)),
        promised_harm=plan.promised_harm or 0.0,
        skipped=plan.skipped,
        plan_digest=status.plan_digest,
        is_removal=plan.is_removal,
        certified_harm=status.certified_harm or 0.0,
        foresight=[_encode_foresight(one) for one in status.foresight],
        newcomers=status.newcomers,
    )


def encode_trusted(device_id: str, models: tuple[ReportedModel, ...]) -> pb.TrustDeviceResponse:
    """Write what an operator trusts on a device."""
    return pb.TrustDeviceResponse(
        device_id=device_id,
        models=[
            pb.TrustedModel(
                model=model.model,
                artifact_digest=model.active_digest,
                certificate_digest=model.certificate_digest,
                mode=_encode_model(model).mode,
            )
            for model in models
        ],
    )


def encode_promise(status: PromiseStatus) -> pb.FleetPromise:
    """Write what the audits of all devices say about a promise."""
    return pb.FleetPromise(
        model=status.model,
        version=status.version,
        artifact_digest=status.artifact_digest,
        certificate_digest=status.certificate_digest,
        devices=status.devices,
        audited=status.audited,
        audit_harm=status.audit_harm,
        bound=status.bound,
        evidence=status.evidence,
        run_length=status.run_length,
        has_alarm=status.alarmed_at is not None,
        alarmed_at=status.alarmed_at or 0.0,
        is_distrusted=status.is_distrusted,
    )


def encode_rollout(status: RolloutStatus) -> pb.Rollout:
    """Write a rollout with its devices as they are now."""
    return pb.Rollout(
        plan=encode_plan(status),
        state=_STATE_OF[status.rollout.state],
        waves=[_encode_wave(wave) for wave in status.waves],
        status=status.rollout.status,
        elapsed_s=status.elapsed_s,
        promises=[encode_promise(promise) for promise in status.promises],
        events=[_encode_event(event) for event in status.rollout.events],
        waiting_plans=status.waiting_plans,
        acknowledged=status.rollout.acknowledged,
        kept=status.rollout.kept,
    )


def _decode_model(model: pb.ReportedModel) -> ReportedModel:
    return ReportedModel(
        model=model.model,
        active_digest=model.active_digest,
        active_version=model.active_version,
        certificate_digest=model.certificate_digest,
        desired_digest=model.desired_digest,
        phase=_PHASES.get(model.phase, "idle"),
        mode=_MODES.get(model.mode, "unknown"),
        failed_digest=model.failed_digest,
        error=model.error,
        fetched_bytes=model.fetched_bytes,
        total_bytes=model.total_bytes,
        max_harm=model.max_harm,
        desired_certificate_digest=model.desired_certificate_digest,
    )


def _encode_outcomes(outcomes: Mapping[str, OutcomeCounts]) -> list[pb.DeliveredOutcomes]:
    return [
        pb.DeliveredOutcomes(artifact_digest=digest, counts=pb.OutcomeCounts(**counts.columns()))
        for digest, counts in outcomes.items()
    ]


def _encode_model(model: ReportedModel) -> pb.ReportedModel:
    return pb.ReportedModel(
        model=model.model,
        active_digest=model.active_digest,
        active_version=model.active_version,
        certificate_digest=model.certificate_digest,
        desired_digest=model.desired_digest,
        phase=_PHASE_OF[model.phase],
        mode=_MODE_OF[model.mode],
        failed_digest=model.failed_digest,
        error=model.error,
        fetched_bytes=model.fetched_bytes,
        total_bytes=model.total_bytes,
        max_harm=model.max_harm,
        desired_certificate_digest=model.desired_certificate_digest,
    )


def _encode_wave(wave: WaveStatus) -> pb.Wave:
    return pb.Wave(
        number=wave.number,
        is_released=wave.is_released,
        devices=[_encode_wave_device(device) for device in wave.devices],
        gate=_encode_verdict(wave.gate) if wave.gate else None,
    )


def _encode_wave_device(device: WaveDeviceStatus) -> pb.WaveDevice:
    return pb.WaveDevice(
        device_id=device.device_id,
        phase=_PHASE_OF[device.phase],
        active_digest=device.active_digest,
        active_version=device.active_version,
        is_silent=device.is_silent,
        error=device.error,
        counts=pb.OutcomeCounts(**device.counts.columns()),
        is_duplicated=device.is_duplicated,
        is_there=device.is_there,
    )


def _encode_event(event: Event) -> pb.RolloutEvent:
    return pb.RolloutEvent(at=event.at.timestamp(), text=event.text, who=event.who, reason=event.reason)


def _encode_foresight(wave: WaveForesight) -> pb.WaveForesight:
    return pb.WaveForesight(**{**asdict(wave), "stopping_failures": wave.stopping_failures or 0})


def _encode_verdict(verdict: GateVerdict) -> pb.GateVerdict:
    return pb.GateVerdict(
        verdict=_VERDICT_OF[verdict.verdict],
        reason=verdict.reason,
        tests=[
            pb.GateTest(
                name=test.name,
                verdict=_VERDICT_OF[test.verdict],
                reason=test.reason,
                measured=test.measured,
                limit=test.limit,
                samples=test.samples,
                e_value=test.e_value,
            )
            for test in verdict.tests
        ],
    )


def _printable(text: str) -> str:
    """Return a text in which nothing can move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)
