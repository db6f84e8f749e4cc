"""Decides the course of a rollout: which device should run what, and the next step.

A state machine of values. Decides from a rollout, observations and ``now``; stores nothing, sends nothing, reads no
clock. The wave's gate is ``gates``; who is in which wave was frozen by ``planning``; what an operator may do when is
``operations``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from cloud_core.policy.rollouts import gates
from cloud_core.policy.rollouts.assignments import Assignment, FleetRelease, Plan, PlannedDevice
from cloud_core.policy.rollouts.observations import Observation, Tally, Wave, all_outcomes_of, outcomes_of, tally
from cloud_core.policy.rollouts.verdicts import GateVerdict

State = Literal["planned", "running", "paused", "succeeded", "stopped_by_gate", "aborted", "undone"]

ACTIVE: frozenset[State] = frozenset({"running", "paused"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Says who gives a command, by their own account and with the tenant of their credential, and why."""

    who: str = ""
    reason: str = ""


NOBODY = Operator()
"""Who takes the steps that the gates decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Records what happened to a rollout, for people.

    Attributes:
        who: the operator, where one did it; "" for a step that the gates took.
        reason: why, in the operator's words.
    """

    at: datetime
    text: str
    who: str = ""
    reason: str = ""


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
        is_kept: aborted, and devices stay where they were then.
        kept: the devices that ran the new version when it was aborted in that way; all others stay on their base.
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
    kept: tuple[str, ...] = ()
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
    return _desired(rollout, device, frozenset(rollout.kept))


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
    kept = frozenset(rollout.kept)
    return {device.device_id: _desired(rollout, device, kept) for device in rollout.plan.devices}


def next_step(rollout: Rollout, observations: Mapping[str, Observation], now: datetime) -> Decision:
    """Decide what to do now. Asking again without acting gives the same answer.

    Args:
        observations: by device id, for every device of a released wave.
    """
    if rollout.state not in ACTIVE:
        return Decision(step=Hold(reason=rollout.status, wake_at=None), verdicts=())
    # every released wave is judged, not only the last: harm needs time to show, and the first wave has had the most.
    # Also of a paused rollout: a person who is asked to look must not have to be quick.
    verdicts = verdicts_on(rollout, observations, now)
    for number, verdict in enumerate(verdicts):
        if verdict.verdict == "fail":
            return Decision(step=Stop(reason=f"wave {number + 1}: {verdict.reason}"), verdicts=verdicts)
    step = _onward(rollout, verdicts[-1], now)
    if isinstance(step, Succeed):
        step = Succeed(reason=f"{_all_in_all(rollout, observations, now)}; last wave: {step.reason}")
    return Decision(step=step, verdicts=verdicts)


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
            return note(replace(seen, state="paused"), f"paused: {reason}", now)
        case Stop(reason=reason):
            text = f"stopped by its gate, devices go back: {reason}"
            return note(replace(seen, state="stopped_by_gate", finished_at=now), text, now)
        case Succeed(reason=reason):
            return note(replace(seen, state="succeeded", finished_at=now), f"succeeded: {reason}", now)
        case Release(reason=reason):
            return release_next(seen, now, f"wave {len(waves)} passed: {reason}; ")


def shown(rollouts: Iterable[Rollout]) -> Rollout | None:
    """Return the rollout that is meant where none is named, of rollouts oldest first: the newest that is under way,
    else the newest that ever was. A plan that was not applied hides neither.
    """
    known = list(rollouts)
    active = [rollout for rollout in known if rollout.state in ACTIVE]
    started = [rollout for rollout in known if rollout.started_at is not None]
    return next((some[-1] for some in (active, started, known) if some), None)


def _desired(rollout: Rollout, device: PlannedDevice, kept: frozenset[str]) -> Assignment:
    target = Assignment(artifact_digest=rollout.plan.artifact_digest, certificate_digest=device.certificate_digest)
    base = Assignment(artifact_digest=device.base_digest, certificate_digest=device.base_certificate)
    released = target if device.wave < len(rollout.waves) else base
    match rollout.state:
        case "running" | "paused":
            return released
        case "succeeded":
            return target
        # with keep, a device of a released wave that had not moved must not move when it comes back
        case "aborted":
            return target if device.device_id in kept else base
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


def verdicts_on(rollout: Rollout, observations: Mapping[str, Observation], now: datetime) -> tuple[GateVerdict, ...]:
    """Judge every released wave."""
    plan = rollout.plan
    verdicts, earlier = [], Tally(failed=0, devices=0)
    for wave in released_waves(rollout, observations):
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


def released_waves(rollout: Rollout, observations: Mapping[str, Observation]) -> list[Wave]:
    """Put what is known of the devices of each released wave together."""
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


def _all_in_all(rollout: Rollout, observations: Mapping[str, Observation], now: datetime) -> str:
    """Say how many devices of the whole rollout are where it brought them, and what became of the others."""
    plan = rollout.plan
    found = [
        outcome
        for wave in released_waves(rollout, observations)
        for outcome in all_outcomes_of(wave, plan.artifact_digest, plan.gate.max_silence_s, now).values()
    ]
    is_one = len(found) == 1
    verb = ("is" if is_one else "are") if plan.is_removal else ("runs" if is_one else "run")
    what = f"without {plan.model}" if plan.is_removal else plan.version
    others = {"failed": "failed", "unreached": "not reached", "pending": "still on their way"}
    parts = [f"{found.count('committed')} of {len(found)} device{'' if is_one else 's'} {verb} {what}"]
    parts += [f"{found.count(name)} {words}" for name, words in others.items() if name in found]
    return ", ".join(parts)


def release_next(rollout: Rollout, now: datetime, why: str = "", *, by: Operator = NOBODY) -> Rollout:
    """Release the next wave.

    Args:
        by: the operator whose command it follows from.
    """
    number = len(rollout.waves)
    count = sum(device.wave == number for device in rollout.plan.devices)
    grown = replace(rollout, waves=(*rollout.waves, ReleasedWave(released_at=now)))
    devices = "1 device" if count == 1 else f"{count} devices"
    return note(grown, f"{why}wave {number + 1} of {rollout.plan.wave_count} released to {devices}", now, by=by)


def _where(rollout: Rollout, reason: str) -> str:
    if rollout.state == "paused":
        # the event says why it was paused; the gate's reason says how things are now
        why = rollout.events[-1].text if rollout.events else "paused"
        now = "" if reason in why else f" (now: {reason})"
        return f"{why}{now}; resume or abort it"
    return f"wave {len(rollout.waves)} of {rollout.plan.wave_count}: {reason}"


def note(rollout: Rollout, text: str, now: datetime, *, by: Operator = NOBODY) -> Rollout:
    """Say what happened, as the rollout's status and as one of its events."""
    event = Event(at=now, text=text, who=by.who, reason=by.reason)
    return replace(rollout, status=text, events=(*rollout.events, event))
