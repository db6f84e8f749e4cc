"""Decides the course of a rollout: which device should run what, the next step, and what an operator may do when.

A state machine of values. Decides from a rollout, observations and ``now``; stores nothing, sends nothing, reads no
clock. The wave's gate is ``gates``; who is in which wave was frozen by ``planning``.

========  =======================================  ===========================================================
action    allowed in                               leads to
========  =======================================  ===========================================================
apply     planned                                  running, first wave released
pause     running                                  paused; the gates go on watching
resume    paused                                   running; failures seen so far are acknowledged
abort     planned, running, paused                 aborted; every device back to its base, or kept where it is
undo      all but stopped, undone, aborted-revert  undone; every device back to its base
========  =======================================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from cloud_core.policy import gates
from cloud_core.policy.assignments import Assignment, FleetRelease, Plan, PlannedDevice
from cloud_core.policy.observations import Observation, Outcome, Tally, Wave, all_outcomes_of, outcomes_of, tally
from cloud_core.policy.verdicts import GateVerdict
from penstock.errors import Conflict

State = Literal["planned", "running", "paused", "succeeded", "stopped_by_gate", "aborted", "undone"]
Action = Literal["apply", "pause", "resume", "abort", "undo"]

ACTIVE: frozenset[State] = frozenset({"running", "paused"})
_ALLOWED: Mapping[Action, frozenset[State]] = {
    "apply": frozenset({"planned"}),
    "pause": frozenset({"running"}),
    "resume": frozenset({"paused"}),
    "abort": frozenset({"planned", "running", "paused"}),
    "undo": frozenset({"planned", "running", "paused", "succeeded", "aborted"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Records what happened to a rollout, for people."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedWave:
    """Tells how a released wave stands.

    Attributes:
        released_at: when the wave was released; when it was resumed, if that was later.
        verdict: what its gate said last; None before the first look.
    """

    released_at: datetime
    verdict: GateVerdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Holds a plan and how far it is.

    Attributes:
        waves: the released ones.
        is_kept: aborted, and updated devices stay on the new version.
        acknowledged: devices whose failure an operator accepted by resuming.
        not_awaited: devices that were not reached when an operator resumed; waves pass without them.
        previous_default: the model's default version when the rollout was applied.
        previous_release: what the fleet ran then; None for nothing.
    """

    plan: Plan
    state: State
    created_at: datetime
    waves: tuple[ReleasedWave, ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None
    is_kept: bool = False
    acknowledged: tuple[str, ...] = ()
    not_awaited: tuple[str, ...] = ()
    previous_default: str = ""
    previous_release: FleetRelease | None = None
    status: str = ""
    events: tuple[Event, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Release the next wave."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeed:
    """Succeed: the last wave passed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop because a gate failed: every device goes back."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Pause because a wave took too long; a person should look."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Do nothing until a report brings news, or until ``wake_at``."""

    reason: str
    wake_at: datetime | None


Step = Release | Succeed | Stop | Pause | Hold


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Holds a step, and the verdicts on all released waves that led to it."""

    step: Step
    verdicts: tuple[GateVerdict, ...]


def desired(rollout: Rollout, device_id: str) -> Assignment | None:
    """Return what a device should run according to this rollout; None when it says nothing about the device."""
    device = next((d for d in rollout.plan.devices if d.device_id == device_id), None)
    if device is None or rollout.started_at is None:
        return None
    return _desired(rollout, device)


def bases(plan: Plan) -> dict[str, Assignment]:
    """Return what every device of a plan goes back to."""
    return {
        device.device_id: Assignment(artifact_digest=device.base_digest, certificate_digest=device.base_certificate)
        for device in plan.devices
    }


def desired_all(rollout: Rollout) -> dict[str, Assignment]:
    """Return :func:`desired` for every device that it says something about."""
    if rollout.started_at is None:
        return {}  # also of a plan that was aborted: its bases may be out of date by then
    return {device.device_id: _desired(rollout, device) for device in rollout.plan.devices}


def next_step(rollout: Rollout, observations: Mapping[str, Observation], now: datetime) -> Decision:
    """Decide what to do now. Asking again without acting gives the same answer.

    Args:
        observations: by device id, for every device of a released wave.
    """
    if rollout.state not in ACTIVE:
        return Decision(step=Hold(reason=rollout.status, wake_at=None), verdicts=())
    # every released wave is judged, not only the last: harm needs time to show, and the first wave has had the most.
    # Also of a paused rollout: a person who is asked to look must not have to be quick.
    verdicts = _verdicts(rollout, observations, now)
    for number, verdict in enumerate(verdicts):
        if verdict.verdict == "fail":
            return Decision(step=Stop(reason=f"wave {number + 1}: {verdict.reason}"), verdicts=verdicts)
    return Decision(step=_onward(rollout, verdicts[-1], now), verdicts=verdicts)


def apply_step(rollout: Rollout, decision: Decision, now: datetime) -> Rollout:
    """Return the rollout after a step. :class:`Hold` changes only what is shown, and nothing of a rollout that is
    over."""
    if rollout.state not in ACTIVE:
        return rollout
    waves = tuple(
        replace(wave, verdict=verdict) for wave, verdict in zip(rollout.waves, decision.verdicts, strict=True)
    )
    seen = replace(rollout, waves=waves)
    match decision.step:
        case Hold(reason=reason):
            return replace(seen, status=_where(rollout, reason))
        case Pause(reason=reason):
            return _note(replace(seen, state="paused"), f"paused: {reason}", now)
        case Stop(reason=reason):
            text = f"stopped by its gate, devices go back: {reason}"
            return _note(replace(seen, state="stopped_by_gate", finished_at=now), text, now)
        case Succeed(reason=reason):
            return _note(replace(seen, state="succeeded", finished_at=now), f"succeeded: {reason}", now)
        case Release(reason=reason):
            return _release(seen, now, f"wave {len(waves)} passed: {reason}; ")


def applied(rollout: Rollout, *, default_digest: str, now: datetime, release: FleetRelease | None = None) -> Rollout:
    """Start a rollout that was planned.

    Raises:
        Conflict: it was applied or aborted before.
    """
    _check("apply", rollout)
    # the default is kept: undo of a rollout that moved it has to know where it was, whatever the registry says by then
    running = replace(
        rollout, state="running", started_at=now, previous_default=default_digest, previous_release=release
    )
    return _release(running, now)


def paused(rollout: Rollout, *, now: datetime) -> Rollout:
    """Pause a rollout: it releases no further wave.

    Raises:
        Conflict: it is not running.
    """
    _check("pause", rollout)
    return _note(replace(rollout, state="paused"), "paused by the operator", now)


def resumed(rollout: Rollout, observations: Mapping[str, Observation], *, now: datetime) -> Rollout:
    """Continue; the wave's clock starts again, and failures seen so far are acknowledged: they count no more.

    Devices that were not reached are no longer waited for. One that comes back counts again.

    Raises:
        Conflict: it is not paused.
    """
    _check("resume", rollout)
    target, max_silence_s = rollout.plan.artifact_digest, rollout.plan.gate.max_silence_s
    outcomes: dict[str, Outcome] = {}
    for wave in _waves(rollout, observations):
        outcomes |= all_outcomes_of(wave, target, max_silence_s, now)
    failed = {device_id for device_id, outcome in outcomes.items() if outcome == "failed"}
    # those accepted before stay accepted: one that recovered and fails again must not stop the rollout now
    acknowledged = tuple(sorted(failed.union(rollout.acknowledged)))
    unreached = tuple(sorted(device_id for device_id, outcome in outcomes.items() if outcome == "unreached"))
    # the clock starts again, or a wave that was paused for taking too long would be paused again by the next look
    last = replace(rollout.waves[-1], released_at=now)
    again = replace(
        rollout,
        state="running",
        waves=(*rollout.waves[:-1], last),
        acknowledged=acknowledged,
        not_awaited=unreached,
    )
    accepted = {"accepted failures": acknowledged, "not waited for": unreached}
    texts = [f"{what}: {', '.join(devices[:10])}" for what, devices in accepted.items() if devices]
    return _note(again, "; ".join(["resumed by the operator", *texts]), now)


def aborted(rollout: Rollout, *, keep: bool, now: datetime) -> Rollout:
    """End a rollout without its gates. With ``keep``, devices of released waves stay on the new version.

    Raises:
        Conflict: it is over already.
    """
    _check("abort", rollout)
    # of a plan that never ran there is nothing to keep: no device was updated
    kept = keep and bool(rollout.waves)
    text = "aborted by the operator, updated devices stay" if kept else "aborted by the operator, devices go back"
    return _note(replace(rollout, state="aborted", is_kept=kept, finished_at=now), text, now)


def undone(rollout: Rollout, *, now: datetime) -> Rollout:
    """Send every device back to its base, without gates.

    Raises:
        Conflict: its devices are back already.
    """
    _check("undo", rollout)
    # undone once more, devices would be sent to bases that a later rollout may have moved on from
    if rollout.state == "aborted" and not rollout.is_kept:
        raise Conflict(f"rollout {rollout.plan.rollout_id} was aborted, and its devices are back already")
    return _note(replace(rollout, state="undone", finished_at=now), "undone by the operator, devices go back", now)


def allows(action: Action, rollout: Rollout) -> bool:
    """Say whether an action applies in the rollout's state."""
    is_back = rollout.state == "aborted" and not rollout.is_kept
    return rollout.state in _ALLOWED[action] and not (action == "undo" and is_back)


def _desired(rollout: Rollout, device: PlannedDevice) -> Assignment:
    target = Assignment(artifact_digest=rollout.plan.artifact_digest, certificate_digest=device.certificate_digest)
    base = Assignment(artifact_digest=device.base_digest, certificate_digest=device.base_certificate)
    released = target if device.wave < len(rollout.waves) else base
    match rollout.state:
        case "running" | "paused":
            return released
        case "succeeded":
            return target
        # with keep, devices of waves that were not released stay where they are: released says so
        case "aborted":
            return released if rollout.is_kept else base
        case "stopped_by_gate" | "undone" | "planned":
            return base


def _onward(rollout: Rollout, verdict: GateVerdict, now: datetime) -> Step:
    """Decide what follows when no wave failed; ``verdict`` is the last released wave's."""
    plan, wave = rollout.plan, rollout.waves[-1]
    # a paused wave that passes releases nothing: whoever paused it decides
    if rollout.state == "paused":
        return Hold(reason=verdict.reason, wake_at=verdict.wake_at)
    if verdict.verdict == "pass":
        is_last = len(rollout.waves) == plan.wave_count
        return Succeed(reason=verdict.reason) if is_last else Release(reason=verdict.reason)
    over_at = wave.released_at + timedelta(seconds=plan.gate.max_wave_s)
    if now >= over_at:
        number = len(rollout.waves)
        return Pause(reason=f"wave {number} did not pass within {plan.gate.max_wave_s:g} s: {verdict.reason}")
    return Hold(reason=verdict.reason, wake_at=min(verdict.wake_at or over_at, over_at))


def _verdicts(rollout: Rollout, observations: Mapping[str, Observation], now: datetime) -> tuple[GateVerdict, ...]:
    plan = rollout.plan
    verdicts, earlier = [], Tally(failed=0, devices=0)
    for wave in _waves(rollout, observations):
        verdict = gates.judge(
            wave,
            earlier,
            plan.artifact_digest,
            plan.gate,
            promised_harm=plan.promised_harm,
            wave_count=plan.wave_count,
            now=now,
        )
        verdicts.append(verdict)
        # only waves before a wave count against it: a failing second wave must not make the first one look bad
        earlier += tally(outcomes_of(wave, plan.artifact_digest, plan.gate.max_silence_s, now).values())
    return tuple(verdicts)


def _waves(rollout: Rollout, observations: Mapping[str, Observation]) -> list[Wave]:
    members: list[list[Observation]] = [[] for _ in rollout.waves]
    for device in rollout.plan.devices:
        if device.wave < len(members):
            members[device.wave].append(observations[device.device_id])
    return [
        Wave(
            released_at=wave.released_at,
            observations=tuple(devices),
            acknowledged=frozenset(rollout.acknowledged),
            not_awaited=frozenset(rollout.not_awaited),
        )
        for wave, devices in zip(rollout.waves, members, strict=True)
    ]


def with_event(rollout: Rollout, text: str, now: datetime) -> Rollout:
    """Tell something about a rollout that does not change where it stands."""
    return replace(rollout, events=(*rollout.events, Event(at=now, text=text)))


def _release(rollout: Rollout, now: datetime, why: str = "") -> Rollout:
    number = len(rollout.waves)
    count = sum(device.wave == number for device in rollout.plan.devices)
    grown = replace(rollout, waves=(*rollout.waves, ReleasedWave(released_at=now)))
    devices = "1 device" if count == 1 else f"{count} devices"
    return _note(grown, f"{why}wave {number + 1} of {rollout.plan.wave_count} released to {devices}", now)


def _where(rollout: Rollout, reason: str) -> str:
    if rollout.state == "paused":
        # the event says why it was paused; the gate's reason says how things are now
        why = rollout.events[-1].text if rollout.events else "paused"
        return f"{why} (now: {reason}); resume or abort it"
    return f"wave {len(rollout.waves)} of {rollout.plan.wave_count}: {reason}"


def _note(rollout: Rollout, text: str, now: datetime) -> Rollout:
    return replace(rollout, status=text, events=(*rollout.events, Event(at=now, text=text)))


def _check(action: Action, rollout: Rollout) -> None:
    if rollout.state not in _ALLOWED[action]:
        allowed = ", ".join(sorted(_ALLOWED[action]))
        raise Conflict(
            f"cannot {action} rollout {rollout.plan.rollout_id}: it is {rollout.state.replace('_', ' ')} "
            f"({rollout.status}); {action} needs one that is {allowed}"
        )
