"""Whether a wave passes: two sequential tests over what its devices did, three-valued.

Decides from observations, the promise and ``now``; releases nothing, reverts nothing, reads no clock. One test watches
harm (audited answers that the device kept and the cloud would have given differently) against what the certificate
promises; the other watches updates that failed. Both are e-processes, so they may be looked at after every report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from penstock.errors import InvalidInput
from penstock.policy.sequential import e_value_above

Phase = Literal["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"]
Verdict = Literal["pass", "fail", "hold"]
Outcome = Literal["committed", "failed", "pending"]

_MAX_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a wave must show.

    Attributes:
        alpha: error budget of each test: the chance ever to stop a rollout that keeps its promises.
        max_failure_rate: tolerated share of devices that fail to update.
        min_audited: audited rows a wave needs to pass, when the artifact has a certificate.
        bake_s: shortest time a wave runs. ``max_silence_s``: a device silent for longer counts as failed.
        max_wave_s: a wave that has not passed by then pauses the rollout.
    """

    alpha: float
    max_failure_rate: float
    min_audited: int
    bake_s: float
    max_silence_s: float
    max_wave_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known of one device, with regard to the artifact that is rolled out.

    Attributes:
        silent_s: since it was last heard, by the server's clock and only while the server was listening.
        audited, audit_harm: audited rows of this artifact since its wave was released, and the harmful among them.
        is_cloud_only: the device's own audit crossed its bound, and it keeps no answer of this artifact any more.
    """

    device_id: str
    phase: Phase
    active_digest: str
    failed_digest: str
    silent_s: float
    audited: int
    audit_harm: int
    is_cloud_only: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """A verdict with its evidence. ``wake_at``: when time alone could change it; None when only news can."""

    verdict: Verdict
    reason: str
    audited: int
    audit_harm: int
    harm_e_value: float
    failure_e_value: float
    promised_harm: float
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """The devices of one released wave. ``acknowledged`` failures were accepted by an operator and count no more."""

    released_at: datetime
    observations: tuple[Observation, ...]
    acknowledged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Failed updates among all devices of one or more waves.

    Devices that are not done yet count as not failed. Counting only those with an outcome would be wrong: an update
    fails within seconds and commits only after its probation, so 4 bad devices of 100 would look like 4 of 4.
    """

    failed: int
    devices: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(failed=self.failed + other.failed, devices=self.devices + other.devices)


def check_gate(gate: Gate) -> None:
    """
    Raises:
        InvalidInput: settings that make no sense.
    """
    shares = {"alpha": gate.alpha, "max_failure_rate": gate.max_failure_rate}
    seconds = {"bake_s": gate.bake_s, "max_silence_s": gate.max_silence_s, "max_wave_s": gate.max_wave_s}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise InvalidInput(f"gate.{name}: {value:g} is not between 0 and 1", field=f"gate.{name}")
    for name, value in seconds.items():
        if not 0 <= value <= 10 * 365 * 86400:
            raise InvalidInput(f"gate.{name}: {value:g} is not a number of seconds", field=f"gate.{name}")
    if gate.bake_s >= gate.max_wave_s:
        raise InvalidInput(
            f"gate.max_wave_s: {gate.max_wave_s:g} s is over before the bake of {gate.bake_s:g} s",
            field="gate.max_wave_s",
        )


def outcome_of(device: Observation, target: str, gate: Gate, released_at: datetime, now: datetime) -> Outcome:
    """How a device's update went.

    Silence counts as failure, or a bricked device would never count. A device that says it cannot fetch or load tries
    again by itself; only when that lasts longer than ``max_silence_s`` it counts, or a registry that restarts at the
    wrong moment would stop every rollout.
    """
    if device.silent_s > gate.max_silence_s:
        return "failed"
    if device.failed_digest == target and device.active_digest != target:
        return "failed"
    if device.phase == "failed" and (now - released_at).total_seconds() > gate.max_silence_s:
        return "failed"
    if device.active_digest == target and device.is_cloud_only:
        return "failed"  # it runs, but it does not do what it was rolled out for
    if device.active_digest == target and device.phase == "committed":
        return "committed"
    return "pending"


def tally(wave: Wave, target: str, gate: Gate, now: datetime) -> Tally:
    """Failed updates of a wave, acknowledged failures left out."""
    outcomes = _outcomes(wave, target, gate, now).values()
    return Tally(failed=sum(outcome == "failed" for outcome in outcomes), devices=len(outcomes))


def judge(
    wave: Wave, earlier: Tally, target: str, gate: Gate, *, promised_harm: float | None, now: datetime
) -> GateVerdict:
    """Judge one released wave.

    Args:
        earlier: failures of the waves before it. Failures are tested in this wave and in all waves together, by the
            mean of the two e-values (itself an e-value), so that neither a large healthy first wave hides a failing
            second one, nor do one failure here and one there go unnoticed.
        promised_harm: the certificate's audit bound; None for an artifact without one (its devices keep no answer, so
            there is no harm to watch).
    """
    outcomes = _outcomes(wave, target, gate, now)
    own = tally(wave, target, gate, now)
    both = own + earlier
    audited = sum(device.audited for device in wave.observations)
    harm = sum(min(device.audit_harm, device.audited) for device in wave.observations)
    harm_e = 1.0 if promised_harm is None else e_value_above(harm, audited, promised_harm)
    failure_e = (
        e_value_above(own.failed, own.devices, gate.max_failure_rate)
        + e_value_above(both.failed, both.devices, gate.max_failure_rate)
    ) / 2
    audit = _audit_text(harm, audited, promised_harm)
    limit = f"evidence {{:,.0f}} to 1, limit {1 / gate.alpha:,.0f} to 1"

    def verdict(kind: Verdict, reason: str, wake_at: datetime | None = None) -> GateVerdict:
        return GateVerdict(
            verdict=kind,
            reason=reason,
            audited=audited,
            audit_harm=harm,
            harm_e_value=harm_e,
            failure_e_value=failure_e,
            promised_harm=promised_harm or 0.0,
            wake_at=wake_at,
        )

    if harm_e >= 1 / gate.alpha:
        return verdict("fail", f"harm above the promise: {audit} ({limit.format(min(harm_e, 1e15))})")
    if failure_e >= 1 / gate.alpha:
        tolerated = f"tolerated {gate.max_failure_rate:.1%}"
        why = _failures_text(wave, outcomes, gate)
        count = f"{both.failed} of {both.devices} devices failed to update"
        return verdict("fail", f"{count}, {tolerated}: {why} ({limit.format(min(failure_e, 1e15))})")
    missing = _missing(wave, outcomes, gate, now, audited if promised_harm is not None else gate.min_audited)
    if missing:
        return verdict("hold", "; ".join(missing), _wake_at(wave, outcomes, gate, now))
    committed = own.devices - own.failed
    return verdict("pass", f"{_devices(committed)} committed, {own.failed} failed; {audit}")


def _missing(wave: Wave, outcomes: Mapping[str, Outcome], gate: Gate, now: datetime, audited: int) -> list[str]:
    """What the wave still has to show before it may pass, one phrase each."""
    missing = []
    pending = [d for d in wave.observations if outcomes.get(d.device_id) == "pending"]
    if pending:
        named = ", ".join(f"{d.device_id} ({_doing(d)})" for d in pending[:_MAX_NAMED])
        more = f" and {len(pending) - _MAX_NAMED} more" if len(pending) > _MAX_NAMED else ""
        missing.append(f"waiting for {named}{more}")
    if outcomes and not any(outcome == "committed" for outcome in outcomes.values()) and not pending:
        missing.append(f"no device of this wave has committed: {_failures_text(wave, outcomes, gate)}")
    left_s = gate.bake_s - (now - wave.released_at).total_seconds()
    if left_s > 0:
        missing.append(f"baking for another {left_s:.0f} s")
    # a wave of which the operator accepted every failure has nobody left to audit
    if outcomes and audited < gate.min_audited:
        missing.append(f"{audited} of {gate.min_audited} audited rows")
    return missing


def _wake_at(wave: Wave, outcomes: Mapping[str, Outcome], gate: Gate, now: datetime) -> datetime | None:
    """The next moment at which the verdict can change without any news."""
    moments = [wave.released_at + timedelta(seconds=s) for s in (gate.bake_s, gate.max_silence_s, gate.max_wave_s)]
    moments += [
        now + timedelta(seconds=gate.max_silence_s - device.silent_s)
        for device in wave.observations
        if device.silent_s <= gate.max_silence_s and device.device_id in outcomes
    ]
    # strictly later than the limit: "silent for longer than" is not "silent for"
    return min((m + timedelta(milliseconds=1) for m in moments if m >= now), default=None)


def _outcomes(wave: Wave, target: str, gate: Gate, now: datetime) -> dict[str, Outcome]:
    """Outcomes that count: an acknowledged device counts again once it has recovered."""
    found = {d.device_id: outcome_of(d, target, gate, wave.released_at, now) for d in wave.observations}
    return {name: outcome for name, outcome in found.items() if outcome == "committed" or name not in wave.acknowledged}


def _doing(device: Observation) -> str:
    if device.error:
        return device.error[:120]
    # at rest with another artifact: it has not heard of this one yet
    return device.phase if device.phase in ("fetching", "proving", "probation", "failed") else "not begun"


def _failures_text(wave: Wave, outcomes: Mapping[str, Outcome], gate: Gate) -> str:
    failed = [device for device in wave.observations if outcomes.get(device.device_id) == "failed"]
    named = [f"{device.device_id} {_failure(device, gate)}" for device in failed[:_MAX_NAMED]]
    if len(failed) > _MAX_NAMED:
        named.append(f"{len(failed) - _MAX_NAMED} more")
    return ", ".join(named) or "failures of earlier waves"


def _failure(device: Observation, gate: Gate) -> str:
    if device.silent_s > gate.max_silence_s:
        return f"silent for {device.silent_s:.0f} s"
    if device.is_cloud_only:
        return "went cloud-only: its own audit found harm above the promise"
    what = "reverted" if device.phase == "reverted" else "failed"
    return f"{what}: {device.error[:120]}" if device.error else what


def _audit_text(harm: int, audited: int, promised: float | None) -> str:
    if promised is None:
        return "no certificate, so nothing is kept on the device and nothing audited"
    share = f" ({harm / audited:.1%})" if audited else ""
    return f"{harm} of {audited} audited rows harmful{share}, promised at most {promised:.1%}"


def _devices(count: int) -> str:
    return f"{count} device" if count == 1 else f"{count} devices"


def outcomes_of(waves: Sequence[Wave], target: str, gate: Gate, now: datetime) -> dict[str, Outcome]:
    """Outcome of every device of the given waves, acknowledged or not."""
    return {
        device.device_id: outcome_of(device, target, gate, wave.released_at, now)
        for wave in waves
        for device in wave.observations
    }
