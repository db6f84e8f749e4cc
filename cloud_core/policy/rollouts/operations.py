"""Decides what an operator may do to a rollout when, and what it leads to.

Plain functions from a rollout to the rollout that it becomes; each event says who gave the command and why. The course
that a rollout takes by itself is ``rollout``.

========  =======================================  ===========================================================
action    allowed in                               leads to
========  =======================================  ===========================================================
apply     planned                                  running, first wave released
pause     running                                  paused; the gates go on watching
resume    paused                                   running; refused while failures that nobody accepted hold it
abort     running, paused                          aborted; devices go back, or each stays where it is
undo      running, paused, succeeded, aborted      undone; every device back to its base; refused where an abort
                                                   sent them back already
delete    planned                                  gone
========  =======================================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Literal

from cloud_core.policy.rollouts.assignments import FleetRelease
from cloud_core.policy.rollouts.observations import Observation, Outcome, all_outcomes_of
from cloud_core.policy.rollouts.rollout import (
    NOBODY,
    Operator,
    Rollout,
    State,
    note,
    release_next,
    released_waves,
    verdicts_on,
)
from cloud_core.policy.rollouts.verdicts import GateVerdict
from penstock.errors import Conflict

Action = Literal["apply", "pause", "resume", "abort", "undo", "delete"]

_ALLOWED: Mapping[Action, frozenset[State]] = {
    "apply": frozenset({"planned"}),
    "pause": frozenset({"running"}),
    "resume": frozenset({"paused"}),
    "abort": frozenset({"running", "paused"}),
    "undo": frozenset({"running", "paused", "succeeded", "aborted"}),
    "delete": frozenset({"planned"}),
}
_IN_WORDS: Mapping[State, str] = {
    "planned": "planned",
    "running": "running",
    "paused": "paused",
    "succeeded": "succeeded",
    "aborted": "aborted with --keep",
}
"""States that allow something, in the order of a rollout's life, as an operator is told."""

_MAX_NAMED = 10


def allows(action: Action, rollout: Rollout) -> bool:
    """Say whether an action applies in the rollout's state."""
    return rollout.state in _ALLOWED[action] and not (action == "undo" and _was_sent_back(rollout))


def check_allowed(action: Action, rollout: Rollout) -> None:
    """Check that an action applies in the rollout's state.

    Raises:
        Conflict: it does not; the message says in which it would, and what a plan that never ran is for.
    """
    name = rollout.plan.rollout_id
    # undone once more, devices would be sent to bases that a later rollout may have moved on from
    if action == "undo" and _was_sent_back(rollout):
        raise Conflict(f"rollout {name} was aborted, and its devices are back already")
    if rollout.state in _ALLOWED[action]:
        return
    if rollout.state == "planned":
        raise Conflict(
            f"cannot {action} rollout {name}: it is a plan that was not applied; "
            f"'penstock fleet delete {name}' deletes it"
        )
    *others, last = (words for state, words in _IN_WORDS.items() if state in _ALLOWED[action])
    allowed = f"{', '.join(others)} or {last}" if others else last
    raise Conflict(
        f"cannot {action} rollout {name}: it is {rollout.state.replace('_', ' ')}; {action} needs one that is {allowed}"
    )


def applied(
    rollout: Rollout,
    *,
    default_digest: str,
    now: datetime,
    release: FleetRelease | None = None,
    by: Operator = NOBODY,
) -> Rollout:
    """Start a rollout that was planned.

    Raises:
        Conflict: it was applied or aborted before.
    """
    check_allowed("apply", rollout)
    # the default is kept: undo of a rollout that moved it has to know where it was, whatever the registry says by then
    running = replace(
        rollout, state="running", started_at=now, previous_default=default_digest, previous_release=release
    )
    return release_next(running, now, by=by)


def paused(rollout: Rollout, *, now: datetime, by: Operator = NOBODY) -> Rollout:
    """Pause a rollout: it releases no further wave.

    Raises:
        Conflict: it is not running.
    """
    check_allowed("pause", rollout)
    return note(replace(rollout, state="paused"), "paused by the operator", now, by=by)


def resumed(
    rollout: Rollout,
    observations: Mapping[str, Observation],
    *,
    now: datetime,
    accept: frozenset[str] | None = frozenset(),
    by: Operator = NOBODY,
) -> Rollout:
    """Continue; the wave's clock starts again. What failed goes on counting, but for the devices in ``accept``.

    Args:
        accept: devices without which the operator goes on: failures count no more, and who was not reached is not
            waited for (one that comes back counts again). None for all there are.

    Raises:
        Conflict: it is not paused, failures that nobody accepted would hold it, or one was accepted that is none.
    """
    check_allowed("resume", rollout)
    outcomes: dict[str, Outcome] = {}
    for wave in released_waves(rollout, observations):
        outcomes |= all_outcomes_of(wave, rollout.plan.artifact_digest, rollout.plan.gate.max_silence_s, now)
    failed = {device_id for device_id, outcome in outcomes.items() if outcome == "failed"}
    unreached = {device_id for device_id, outcome in outcomes.items() if outcome == "unreached"}
    accepted = failed | unreached if accept is None else accept
    if not accepted <= failed | unreached | set(rollout.acknowledged):
        raise Conflict(
            f"{_listed(accepted - failed - unreached)}: not failed, and not waited for; there is nothing to accept. "
            f"Failed: {_listed(failed) or 'none'}; not reached: {_listed(unreached) or 'none'}"
        )
    # those accepted before stay accepted: one that recovered and fails again must not stop the rollout now
    acknowledged = (failed & accepted).union(rollout.acknowledged)
    # the clock starts again, or a wave that was paused for taking too long would be paused again by the next look
    last = replace(rollout.waves[-1], released_at=now)
    again = replace(
        rollout,
        state="running",
        waves=(*rollout.waves[:-1], last),
        acknowledged=tuple(sorted(acknowledged)),
        not_awaited=tuple(sorted((unreached & accepted).union(rollout.not_awaited))),
    )
    _check_not_held(again, observations, failed - acknowledged, now)
    named = {"accepted failures": failed & accepted, "not waited for": unreached & accepted}
    texts = [f"{what}: {_listed(devices)}" for what, devices in named.items() if devices]
    return note(again, "; ".join(["resumed by the operator", *texts]), now, by=by)


def aborted(
    rollout: Rollout,
    observations: Mapping[str, Observation],
    *,
    keep: bool,
    now: datetime,
    by: Operator = NOBODY,
) -> Rollout:
    """End a rollout without its gates. With ``keep``, every device stays where it is: on the new version if it runs
    that, on its base otherwise, also when it was told of the new one and comes back later.

    Raises:
        Conflict: it is over already.
    """
    check_allowed("abort", rollout)
    over = replace(rollout, state="aborted", finished_at=now)
    if not keep:
        return note(over, "aborted by the operator, devices go back", now, by=by)
    plan = rollout.plan
    moved = sorted(name for name, device in observations.items() if device.active_digest == plan.artifact_digest)
    what = "without the model" if plan.is_removal else f"on {plan.version}"
    where = f"{len(moved)} of {len(plan.devices)} devices stay {what}, {len(plan.devices) - len(moved)} where they were"
    text = f"aborted by the operator, nothing moves any more: {where}"
    return note(replace(over, is_kept=True, kept=tuple(moved)), text, now, by=by)


def undone(rollout: Rollout, *, now: datetime, by: Operator = NOBODY) -> Rollout:
    """Send every device back to its base, without gates.

    Raises:
        Conflict: its devices are back already.
    """
    check_allowed("undo", rollout)
    over = replace(rollout, state="undone", finished_at=now)
    return note(over, "undone by the operator, devices go back", now, by=by)


def default_after(before: Rollout, after: Rollout) -> str:
    """Return what the core serves by default from now on; "" where it stays as it is."""
    plan = after.plan
    if plan.is_removal or not plan.covers_fleet:
        return ""  # the core goes on serving what devices drop
    if after.state == "succeeded":
        return plan.artifact_digest
    return before.previous_default if (before.state, after.state) == ("succeeded", "undone") else ""


def _was_sent_back(rollout: Rollout) -> bool:
    return rollout.state == "aborted" and not rollout.is_kept


def _check_not_held(again: Rollout, observations: Mapping[str, Observation], failed: set[str], now: datetime) -> None:
    """Refuse to resume what would only hold again: whoever resumes has to know of these devices.

    Raises:
        Conflict: a wave is held by failures that nobody accepted.
    """
    held = [why for verdict in verdicts_on(again, observations, now) if (why := _failures_that_hold(verdict))]
    if not failed or not held:
        return
    name = again.plan.rollout_id
    flags = " ".join(f"--accept {device_id}" for device_id in sorted(failed)[:_MAX_NAMED])
    flags = flags if len(failed) <= _MAX_NAMED else "--accept-all"
    raise Conflict(
        f"cannot resume rollout {name}: {held[0]}. To go on without what failed, say so: 'penstock fleet resume "
        f"{name} {flags}'; 'penstock fleet abort {name}' sends devices back"
    )


def _failures_that_hold(verdict: GateVerdict) -> str:
    """Say why a wave holds because devices failed; "" where it does not."""
    found = [verdict.test(name) for name in ("tolerated", "committed", "reverted")]
    failures = verdict.test("failures")
    holding = [test.reason for test in found if test is not None and test.verdict == "hold"]
    return holding[0] if holding and failures is not None and failures.measured > 0 else ""


def _listed(devices: frozenset[str] | set[str]) -> str:
    more = f" and {len(devices) - _MAX_NAMED} more" if len(devices) > _MAX_NAMED else ""
    return ", ".join(sorted(devices)[:_MAX_NAMED]) + more
