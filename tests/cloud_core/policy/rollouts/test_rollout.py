"""The life of a rollout, first by example, then by whatever hypothesis does to it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_core.policy.rollouts import operations
from cloud_core.policy.rollouts import rollout as policy
from cloud_core.policy.rollouts.assignments import Assignment, Plan, PlannedDevice
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.observations import Observation
from cloud_core.policy.rollouts.rollout import Hold, Pause, Release, Rollout, Stop, Succeed
from penstock.errors import Conflict

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "sha256:" + "1" * 64, "sha256:" + "0" * 64
ON_NEW, ON_OLD = (Assignment(artifact_digest=digest, certificate_digest=None) for digest in (NEW, OLD))
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=50, bake_s=10.0, max_silence_s=30.0, max_wave_s=100.0)


def make_rollout(*waves: int) -> Rollout:
    devices = tuple(
        PlannedDevice(device_id=f"d{wave}-{i}", wave=wave, base_digest=OLD)
        for wave, count in enumerate(waves)
        for i in range(count)
    )
    plan = Plan(
        rollout_id="digits-v2-1",
        model="digits",
        version="v2",
        artifact_digest=NEW,
        certificate_digest="",
        devices=devices,
        wave_count=len(waves),
        seed=0,
        gate=GATE,
        promised_harm=0.03,
        covers_fleet=True,
        skipped=(),
    )
    return Rollout(plan=plan, state="planned", created_at=T0)


def seen(rollout: Rollout, **changes: object) -> dict[str, Observation]:
    values: dict[str, object] = {
        "phase": "committed",
        "active_digest": NEW,
        "failed_digest": "",
        "silent_s": 0.0,
        "audited": 100,
        "audit_harm": 0,
    }
    return {
        d.device_id: Observation(device_id=d.device_id, **{**values, **changes})  # type: ignore[arg-type]
        for d in rollout.plan.devices
    }


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def started(*waves: int) -> Rollout:
    return operations.applied(make_rollout(*waves), default_digest=OLD, now=T0)


def step(rollout: Rollout, observations: dict[str, Observation], seconds: float) -> tuple[policy.Step, Rollout]:
    decision = policy.next_step(rollout, observations, at(seconds))
    return decision.step, policy.apply_step(rollout, decision, at(seconds))


def test_a_healthy_rollout_goes_wave_by_wave() -> None:
    rollout = started(1, 2)
    assert policy.desired_all(rollout) == {"d0-0": ON_NEW, "d1-0": ON_OLD, "d1-1": ON_OLD}
    held, rollout = step(rollout, seen(rollout), 5)
    assert isinstance(held, Hold)
    assert rollout.status == "wave 1 of 2: baking for another 5 s"
    assert held.wake_at is not None
    assert at(10) < held.wake_at < at(10.1)
    released, rollout = step(rollout, seen(rollout), 11)
    assert isinstance(released, Release)
    assert policy.desired(rollout, "d1-1") == ON_NEW
    again, rollout = step(rollout, seen(rollout), 11)
    assert isinstance(again, Hold)
    done, rollout = step(rollout, seen(rollout), 22)
    assert isinstance(done, Succeed)
    assert (rollout.state, rollout.finished_at) == ("succeeded", at(22))
    assert set(policy.desired_all(rollout).values()) == {ON_NEW}
    assert [event.text.split(":")[0] for event in rollout.events] == [
        "wave 1 of 2 released to 1 device", "wave 1 passed", "succeeded",
    ]  # fmt: skip


def test_harm_stops_the_rollout_and_everything_goes_back_at_once() -> None:
    rollout = started(2, 2)
    stopped, rollout = step(rollout, seen(rollout, audit_harm=20), 3)
    assert isinstance(stopped, Stop)
    assert rollout.state == "stopped_by_gate"
    assert set(policy.desired_all(rollout).values()) == {ON_OLD}
    assert "40 of 200 audited rows harmful (20.0%), promised at most 3.00%" in rollout.status
    verdict = rollout.waves[0].verdict
    assert verdict is not None
    assert verdict.verdict == "fail"


def test_harm_that_shows_late_in_an_earlier_wave_stops_too() -> None:
    rollout = started(1, 1)
    _, rollout = step(rollout, seen(rollout), 11)
    late = seen(rollout) | {"d0-0": seen(rollout, audit_harm=30)["d0-0"]}
    stopped, rollout = step(rollout, late, 12)
    assert isinstance(stopped, Stop)
    assert stopped.reason.startswith("wave 1:")


def test_a_wave_that_takes_too_long_pauses_and_a_failure_is_accepted_by_name() -> None:
    rollout = started(1, 1)
    dead = seen(rollout, silent_s=50.0, audited=0)
    paused, rollout = step(rollout, dead, 100)
    assert isinstance(paused, Pause)
    assert rollout.state == "paused"
    assert "did not pass within 100 s" in rollout.status
    held, rollout = step(rollout, dead, 101)
    assert isinstance(held, Hold)
    assert rollout.status.endswith("resume or abort it")
    with pytest.raises(Conflict, match=r"1 of 1 device of this wave failed .*--accept d0-0'.*fleet abort digits-v2-1"):
        operations.resumed(rollout, dead, now=at(102))
    with pytest.raises(Conflict, match="d1-0: not failed, and not waited for.*Failed: d0-0; not reached: none"):
        operations.resumed(rollout, dead, now=at(102), accept=frozenset({"d1-0"}))
    rollout = operations.resumed(rollout, dead, now=at(102), accept=frozenset({"d0-0"}))
    assert rollout.acknowledged == ("d0-0",)
    assert "accepted failures: d0-0" in rollout.status
    released, rollout = step(rollout, dead, 113)
    assert isinstance(released, Release)
    assert "0 devices committed, 0 failed, 1 passed over by the operator" in released.reason


def test_a_pause_and_a_resume_release_nothing_that_nobody_has_seen_to_work() -> None:
    """Two commands within the first seconds used to pass a canary that was not even told: 0 committed."""
    plan = replace(make_rollout(1, 1).plan, gate=replace(GATE, bake_s=0.0, min_audited=0))
    rollout = operations.applied(replace(make_rollout(1, 1), plan=plan), default_digest=OLD, now=T0)
    untold = seen(rollout, active_digest=OLD, is_handed=False, audited=0)
    rollout = operations.resumed(operations.paused(rollout, now=at(1)), untold, now=at(2))
    held, rollout = step(rollout, untold, 3)
    assert isinstance(held, Hold)
    assert len(rollout.waves) == 1
    ready = operations.paused(rollout, now=at(4))
    rollout = operations.resumed(ready, untold, now=at(5), accept=frozenset({"d0-0"}))
    assert rollout.not_awaited == ("d0-0",)
    assert operations.resumed(ready, untold, now=at(5), accept=None).not_awaited == ("d0-0",)


def test_failures_within_tolerance_go_on_counting_and_hold_nobody_up() -> None:
    rollout = operations.paused(started(40, 40), now=at(1))
    one_failed = seen(rollout) | {"d0-7": seen(rollout, phase="reverted", failed_digest=NEW, active_digest=OLD)["d0-7"]}
    rollout = operations.resumed(rollout, one_failed, now=at(2))
    assert rollout.acknowledged == ()
    released, rollout = step(rollout, one_failed, 20)
    assert isinstance(released, Release)
    assert "39 devices committed, 1 failed" in released.reason


@pytest.mark.parametrize("stops", [True, False])
def test_a_canary_that_reverted_stops_its_wave_when_it_is_the_only_one(stops: bool) -> None:
    made = make_rollout(1, 3)
    made = replace(made, plan=replace(made.plan, gate=replace(GATE, stops_when_all_revert=stops)))
    rollout = operations.applied(made, default_digest=OLD, now=T0)
    back = seen(
        rollout, phase="reverted", failed_digest=NEW, active_digest=OLD, error="golden output 3 differs", audited=0
    )
    taken, rollout = step(rollout, back, 5)
    text = "the only device of this wave went back: d0-0 reverted: golden output 3 differs"
    assert text in taken.reason
    assert isinstance(taken, Stop if stops else Hold)
    assert set(policy.desired_all(rollout).values()) == ({ON_OLD} if stops else {ON_OLD, ON_NEW})


def test_a_rollout_that_succeeded_counts_all_devices_and_not_those_of_the_last_wave() -> None:
    rollout = started(1, 3)
    _, rollout = step(rollout, seen(rollout), 11)
    done, rollout = step(rollout, seen(rollout), 30)
    assert isinstance(done, Succeed)
    assert rollout.status.startswith("succeeded: 4 of 4 devices run v2; last wave: 3 devices committed")


def test_a_plan_that_was_not_applied_hides_no_rollout() -> None:
    running, plan = started(1), make_rollout(1)
    over = operations.aborted(started(1), {}, keep=False, now=at(1))
    assert policy.shown([over, running, plan]) is running
    assert policy.shown([running, over, plan]) is running
    assert policy.shown([over, plan]) is over
    assert policy.shown([plan]) is plan
    assert policy.shown([]) is None


def test_events_say_who_gave_the_command_and_why() -> None:
    by = policy.Operator(who="alice", reason="a customer called")
    rollout = operations.paused(started(1), now=at(1), by=by)
    event = rollout.events[-1]
    assert (event.at, event.text, event.who, event.reason) == (at(1), "paused by the operator", *("alice", by.reason))
    assert rollout.events[0].who == ""


def test_a_paused_rollout_releases_nothing_but_still_stops_on_harm() -> None:
    rollout = operations.paused(started(1, 1), now=at(1))
    held, rollout = step(rollout, seen(rollout), 50)
    assert isinstance(held, Hold)
    assert len(rollout.waves) == 1
    stopped, rollout = step(rollout, seen(rollout, audit_harm=50), 51)
    assert isinstance(stopped, Stop)


def test_abort_with_keep_moves_nothing_any_more() -> None:
    """A device of a released wave that had not begun stays on its base, also when it comes back later."""
    rollout = started(3, 1)
    world = seen(rollout) | {
        "d0-1": seen(rollout, phase="fetching", active_digest=OLD)["d0-1"],
        "d0-2": seen(rollout, active_digest=OLD, is_handed=False, silent_s=900.0)["d0-2"],
    }
    del world["d1-0"]
    kept = operations.aborted(rollout, world, keep=True, now=at(1))
    assert policy.desired_all(kept) == {"d0-0": ON_NEW, "d0-1": ON_OLD, "d0-2": ON_OLD, "d1-0": ON_OLD}
    assert policy.desired(kept, "d0-2") == ON_OLD
    assert kept.status == (
        "aborted by the operator, nothing moves any more: 1 of 4 devices stay on v2, 3 where they were"
    )


def test_abort_reverts_or_keeps() -> None:
    rollout = started(1, 1)
    back = operations.aborted(rollout, seen(rollout), keep=False, now=at(1))
    assert set(policy.desired_all(back).values()) == {ON_OLD}
    of_released = {"d0-0": seen(rollout)["d0-0"]}
    kept = operations.aborted(rollout, of_released, keep=True, now=at(1))
    assert policy.desired_all(kept) == {"d0-0": ON_NEW, "d1-0": ON_OLD}
    assert set(policy.desired_all(operations.undone(kept, now=at(2))).values()) == {ON_OLD}
    with pytest.raises(Conflict, match="its devices are back already"):
        operations.undone(back, now=at(2))


def test_a_plan_that_was_never_applied_says_nothing_about_any_device() -> None:
    plan = make_rollout(2)
    assert policy.desired(plan, "d0-0") is None
    with pytest.raises(Conflict, match="it is a plan that was not applied"):
        operations.aborted(plan, {}, keep=True, now=T0)
    with pytest.raises(Conflict, match="it is a plan that was not applied"):
        operations.undone(plan, now=T0)
    for as_an_older_core_left_it in (replace(plan, state="aborted"), replace(plan, state="undone")):
        assert policy.desired_all(as_an_older_core_left_it) == {}


def test_devices_outside_of_the_plan_are_nobodys_business() -> None:
    assert policy.desired(started(1), "stranger") is None


def test_what_is_over_is_over() -> None:
    stopped = step(started(1), seen(started(1), audit_harm=90), 1)[1]
    for action in (
        lambda: operations.applied(stopped, default_digest=OLD, now=T0),
        lambda: operations.paused(stopped, now=T0),
        lambda: operations.resumed(stopped, {}, now=T0),
        lambda: operations.aborted(stopped, {}, keep=False, now=T0),
        lambda: operations.undone(stopped, now=T0),
    ):
        with pytest.raises(Conflict, match="stopped by gate"):
            action()
    decision = policy.next_step(stopped, {}, at(5))
    assert isinstance(decision.step, Hold)


class AnyRollout(RuleBasedStateMachine):
    """Devices and operators do anything at any time; the invariants hold after each step."""

    @initialize(waves=st.lists(st.integers(1, 3), min_size=1, max_size=4))
    def begin(self, waves: list[int]) -> None:
        self.now = T0
        self.rollout = operations.applied(make_rollout(*waves), default_digest=OLD, now=T0)
        self.world = seen(self.rollout, phase="fetching", active_digest=OLD, audited=0)
        self.passed: set[int] = set()

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(data=st.data(), healthy=st.booleans())
    def a_device_does_something(self, data: st.DataObject, healthy: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.world)))
        good = Observation(device_id=name, phase="committed", active_digest=NEW, failed_digest="", silent_s=0.0,
                           audited=100, audit_harm=0)  # fmt: skip
        strange = st.builds(
            Observation,
            device_id=st.just(name),
            phase=st.sampled_from(["idle", "fetching", "probation", "committed", "reverted", "failed"]),
            active_digest=st.sampled_from([NEW, OLD]),
            failed_digest=st.sampled_from([NEW, ""]),
            silent_s=st.floats(0, 60),
            audited=st.integers(0, 200),
            audit_harm=st.integers(0, 50),
            is_cloud_only=st.booleans(),
        )
        self.world[name] = good if healthy else data.draw(strange)

    @rule()
    def reconcile(self) -> None:
        before = self.rollout
        decision = policy.next_step(before, self.world, self.now)
        assert policy.next_step(before, self.world, self.now) == decision, "asking twice gives the same answer"
        after = policy.apply_step(before, decision, self.now)
        if len(after.waves) > len(before.waves):
            last = decision.verdicts[-1]
            assert last.verdict == "pass"
            self.passed.add(len(before.waves) - 1)
        if isinstance(decision.step, Hold):
            assert policy.apply_step(after, policy.next_step(after, self.world, self.now), self.now) == after
        self.rollout = after

    @precondition(lambda self: self.rollout.state == "running")
    @rule()
    def pause(self) -> None:
        self.rollout = operations.paused(self.rollout, now=self.now)

    @precondition(lambda self: self.rollout.state == "paused")
    @rule(accepts_all=st.booleans())
    def resume(self, accepts_all: bool) -> None:
        accept = None if accepts_all else frozenset[str]()
        with contextlib.suppress(Conflict):  # failures that nobody accepted
            self.rollout = operations.resumed(self.rollout, self.world, now=self.now, accept=accept)

    @invariant()
    def a_wave_is_released_only_after_the_one_before_passed(self) -> None:
        assert all(number in self.passed for number in range(len(self.rollout.waves) - 1))

    @invariant()
    def every_device_is_told_base_or_target(self) -> None:
        wanted = policy.desired_all(self.rollout)
        assert set(wanted) == set(self.world)
        assert set(wanted.values()) <= {ON_OLD, ON_NEW}
        for name, digest in wanted.items():
            assert policy.desired(self.rollout, name) == digest

    @invariant()
    def after_a_stop_everything_is_base(self) -> None:
        if self.rollout.state == "stopped_by_gate":
            assert set(policy.desired_all(self.rollout).values()) == {ON_OLD}

    @invariant()
    def abort_and_undo_are_always_possible_until_it_is_over(self) -> None:
        if self.rollout.state in policy.ACTIVE:
            for over in (
                operations.aborted(self.rollout, self.world, keep=False, now=self.now),
                operations.undone(self.rollout, now=self.now),
            ):
                assert over.state not in policy.ACTIVE
                assert set(policy.desired_all(over).values()) == {ON_OLD}


TestAnyRollout = AnyRollout.TestCase
TestAnyRollout.settings = settings(max_examples=40, stateful_step_count=25)
