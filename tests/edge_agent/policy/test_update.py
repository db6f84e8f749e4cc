"""The next step of an update, and a simulation of whole lives of a device under crashes and changes of mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.policy import model_state, update
from edge_agent.policy.model_state import ModelState, Release
from edge_agent.policy.update import LoadFailure, Progress, UpdateLimits
from tests.edge_agent.simulated_device import Nature, SimulatedDevice, slot_of

LIMITS = UpdateLimits(probation_s=30.0, probation_requests=100, max_crashes=3, patience=3)
V1 = Release(version="v1", artifact_digest="sha256:v1", certificate_digest="c1")
V2 = Release(version="v2", artifact_digest="sha256:v2", certificate_digest="c2")


COMMITTED = ModelState(model="m", active=slot_of(V1), is_committed=True, desired=V1)
SERVING = Progress(loaded=V1.key, should_collect=False)


def plan(state: ModelState, progress: Progress = SERVING, now: float = 0.0) -> update.Action:
    return update.plan(state, progress, LIMITS, now)


def test_nothing_wanted_and_nothing_here_is_nothing_to_do() -> None:
    assert plan(ModelState(model="m"), Progress(should_collect=False)) == update.Nothing(reason="")


def test_at_start_the_active_slot_is_loaded_before_anything_else() -> None:
    assert plan(structs.replace(COMMITTED, desired=V2), Progress()) == update.Load(slot=slot_of(V1))


def test_steps_towards_a_new_release_in_order() -> None:
    state = model_state.desire(COMMITTED, V2)
    assert plan(state) == update.Fetch(release=V2)
    assert plan(state, replace(SERVING, fetching=V2.key)) == update.Nothing(reason="fetching")
    assert plan(state, replace(SERVING, fetched=slot_of(V2))) == update.Prove(slot=slot_of(V2))
    assert plan(state, replace(SERVING, fetched=slot_of(V2), prepared=V2.key)) == update.Activate(slot=slot_of(V2))
    on_probation = model_state.activate(state, slot_of(V2))
    serving_v2 = replace(SERVING, loaded=V2.key, clean_since=10.0)
    assert plan(on_probation, serving_v2, now=39.9) == update.Nothing(reason="on probation", wake_at=40.0)
    assert isinstance(plan(on_probation, serving_v2, now=40.0), update.Commit)


def test_enough_rows_end_a_probation_early() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot_of(V2))
    assert isinstance(plan(state, replace(SERVING, loaded=V2.key, clean_requests=100)), update.Commit)


def test_failures_on_probation_revert() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot_of(V2))
    action = plan(state, replace(SERVING, loaded=V2.key, failures=3))
    assert action == update.Revert(reason="3 failures on probation", should_block=True)


def test_a_failing_first_version_stays_because_there_is_nothing_better_and_says_so() -> None:
    state = model_state.activate(model_state.desire(ModelState(model="m"), V1), slot_of(V1))
    failing = replace(SERVING, failures=3)
    assert isinstance(plan(state, failing), update.Nothing)
    phase, error = update.phase(state, failing, LIMITS)
    assert phase == "failed"
    assert "no earlier version" in error


def test_failures_after_the_commit_do_not_revert() -> None:
    assert plan(COMMITTED, replace(SERVING, failures=99)) == update.Nothing(reason="")


def test_starts_that_did_not_survive_revert_before_loading_again() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot_of(V2))
    for _ in range(3):
        assert isinstance(plan(state, Progress()), update.Load)
        state = model_state.begin_boot(model_state.begin_trial(state, V2.key, "b"), "b")
    action = plan(state, Progress())
    assert isinstance(action, update.Revert)
    assert action.should_block


def test_a_candidate_that_kills_the_process_while_it_is_proven_is_refused() -> None:
    state = model_state.desire(COMMITTED, V2)
    for _ in range(3):
        state = model_state.begin_trial(state, V2.key, "b")
        state = model_state.begin_boot(state, "b")
        state = model_state.begin_trial(state, V1.key, "b")  # the next start loads what runs: no reset of the count
        state = model_state.survive(state, V1.key)
    action = plan(state, replace(SERVING, fetched=slot_of(V2)))
    assert isinstance(action, update.Refuse)
    assert action.release == V2


def test_an_end_of_the_machine_is_no_crash_and_one_of_the_process_is() -> None:
    state = model_state.begin_trial(model_state.desire(COMMITTED, V2), V2.key, "boot 1")
    assert model_state.begin_boot(state, "boot 2").starts_of(V2.key) == 0
    assert model_state.begin_boot(state, "boot 1").starts_of(V2.key) == 1
    assert model_state.begin_boot(model_state.end_trial(state, V2.key), "boot 1").starts_of(V2.key) == 0


def test_a_committed_slot_with_nothing_before_it_is_never_given_up() -> None:
    state = structs.replace(COMMITTED, trials=(model_state.Trial(key=V1.key, starts=4, boot_id="b"),))
    action = plan(state, Progress(should_collect=False), now=1.0)
    assert isinstance(action, update.Nothing)
    assert action.wake_at == 16.0  # later each time, so that the other models get their turn
    assert isinstance(plan(state, Progress(), now=16.0), update.Load)
    assert update.phase(state, Progress(), LIMITS)[0] == "failed"
    assert model_state.revert(state, "x", limit=4).active == state.active
    damaged = Progress(load_failure=LoadFailure(reason="rotten", is_damaged=True), load_retry_at=9.0)
    assert plan(COMMITTED, damaged, now=1.0) == update.Fetch(release=V1), "its bytes are brought once more"


def test_what_runs_without_what_is_damaged_of_it_stays_and_is_mended() -> None:
    damaged = replace(SERVING, damaged="golden vectors")
    assert plan(COMMITTED, damaged) == update.Fetch(release=V1)
    assert update.phase(COMMITTED, damaged, LIMITS) == ("committed", "golden vectors")
    assert plan(COMMITTED, replace(damaged, fetched=slot_of(V1))) == update.Prove(slot=slot_of(V1))
    mended = model_state.activate(structs.replace(COMMITTED, previous=slot_of(V2)), slot_of(V1))
    assert mended.is_committed
    assert mended.previous == slot_of(V2), "the way back is what it was"
    assert plan(structs.replace(COMMITTED, desired=V2), damaged) == update.Fetch(release=V2)


def test_a_block_ends_by_the_time_that_passed_and_by_a_word() -> None:
    state = model_state.fail(model_state.desire(COMMITTED, V2), V2, "reverted", "crashed", limit=4)
    assert not state.failures[0].blocked_s
    aged = model_state.age_blocks(state, 100.0, block_s=150.0)
    assert model_state.block_left_s(aged.failures[0], 150.0) == 50.0
    assert model_state.age_blocks(aged, -1e9, block_s=150.0) == aged  # a clock that went back prolongs nothing
    assert isinstance(plan(model_state.age_blocks(aged, 50.0, block_s=150.0)), update.Fetch)
    assert isinstance(plan(model_state.unblock(state)), update.Fetch)
    twice = model_state.fail(model_state.age_blocks(aged, 50.0, block_s=150.0), V2, "reverted", "x", limit=4)
    assert model_state.block_left_s(twice.failures[0], 150.0) == 300.0


def test_a_blocked_release_is_left_alone() -> None:
    state = model_state.fail(model_state.desire(COMMITTED, V2), V2, "reverted", "golden output is off", limit=4)
    assert isinstance(plan(state), update.Nothing)
    assert update.phase(state, SERVING, LIMITS) == ("reverted", "golden output is off")


def test_back_off_says_when_to_look_again() -> None:
    state = model_state.desire(COMMITTED, V2)
    waiting = replace(SERVING, retry_at=5.0, error="out of reach", failed_attempts=1)
    assert plan(state, waiting, now=4.0) == update.Nothing(reason="trying again: out of reach", wake_at=5.0)
    assert plan(state, waiting, now=5.0) == update.Fetch(release=V2)


def test_a_damaged_slot_goes_back_without_blame_and_a_broken_one_with_it() -> None:
    state = structs.replace(COMMITTED, previous=slot_of(V2))
    damaged = Progress(load_failure=LoadFailure(reason="rotten", is_damaged=True))
    assert plan(state, damaged) == update.Revert(reason="rotten", should_block=False)
    broken = Progress(load_failure=LoadFailure(reason="engine", is_damaged=False))
    assert plan(state, broken) == update.Revert(reason="engine", should_block=True)


def test_a_broken_only_slot_is_tried_again_and_does_not_stand_in_the_way_of_its_successor() -> None:
    broken = Progress(load_failure=LoadFailure(reason="engine", is_damaged=False), load_retry_at=9.0)
    waiting = plan(COMMITTED, replace(broken, should_collect=False), now=1.0)
    assert waiting == update.Nothing(reason="engine", wake_at=9.0)
    assert plan(COMMITTED, broken, now=9.0) == update.Load(slot=slot_of(V1))
    assert plan(model_state.desire(COMMITTED, V2), broken, now=1.0) == update.Fetch(release=V2)


def test_garbage_is_collected_only_when_nothing_is_on_its_way() -> None:
    dirty = replace(SERVING, should_collect=True)
    assert plan(COMMITTED, dirty) == update.Collect()
    state = model_state.desire(COMMITTED, V2)
    assert isinstance(plan(state, replace(dirty, fetching=V2.key)), update.Nothing)


@pytest.mark.parametrize(
    ("code", "severity"),
    [
        ("unavailable", "wait"),
        ("deadline-exceeded", "wait"),
        ("quota-exceeded", "wait"),
        ("storage", "failed"),
        ("digest-mismatch", "failed"),
        ("internal", "failed"),
        ("not-found", "failed"),
        ("artifact", "failed"),
        ("too-large", "failed"),
    ],
)
def test_severity_of_errors(code: str, severity: str) -> None:
    assert update.severity(code, is_fixed=False) == severity
    assert update.severity(code, is_fixed=True) == "final"


@pytest.mark.parametrize(
    ("progress", "phase"),
    [
        (SERVING, "fetching"),
        (replace(SERVING, failed_attempts=2, error="out of reach"), "fetching"),
        (replace(SERVING, failed_attempts=3, error="out of reach"), "failed"),
        (replace(SERVING, failed_attempts=1, error="disk full", is_hard=True), "failed"),
        (replace(SERVING, fetched=slot_of(V2)), "proving"),
    ],
)
def test_phases_on_the_way(progress: Progress, phase: str) -> None:
    assert update.phase(model_state.desire(COMMITTED, V2), progress, LIMITS)[0] == phase


def test_phases_at_rest() -> None:
    assert update.phase(ModelState(model="m"), Progress(), LIMITS)[0] == "idle"
    assert update.phase(COMMITTED, SERVING, LIMITS)[0] == "committed"
    assert update.phase(structs.replace(COMMITTED, is_committed=False), SERVING, LIMITS)[0] == "probation"


RELEASES = [Release(version=f"v{i}", artifact_digest=f"sha256:{i}", certificate_digest="") for i in range(4)]


class Life(SimulatedDevice):
    """A device that is stepped one second at a time."""

    def __init__(self, natures: Sequence[Nature]) -> None:
        nature = {release.artifact_digest: nature for release, nature in zip(RELEASES, natures, strict=False)}
        super().__init__(limits=LIMITS, nature=nature)
        self.has_committed = False

    def step(self) -> update.Action:
        self.now += 1.0
        action = super().step()
        self.has_committed |= self.state.is_committed and self.state.active is not None
        assert self.state.active or not self.has_committed, "a device with a committed model never ends with none"
        return action

    def cut_power(self) -> None:
        """The machine goes down and comes up again, whatever was going on."""
        self.boot_id += "+"
        self.restart()

    def settle(self) -> None:
        """Until there is nothing to do but wait, also after waiting."""
        for _ in range(200):
            action = self.step()
            if isinstance(action, update.Nothing):
                if action.wake_at is None or action.wake_at > self.now + LIMITS.retry_max_s:  # the end of a block
                    return
                self.now = action.wake_at
        raise AssertionError(f"does not settle: {self.state} {self.progress}")


NATURES = st.sampled_from(get_args(Nature))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("desire"), st.sampled_from(RELEASES)),
        st.tuples(st.just("steps"), st.integers(1, 8)),
        st.tuples(st.just("kill"), st.just(0)),
        st.tuples(st.just("cut"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(natures=st.lists(NATURES, min_size=4, max_size=4), events=EVENTS, last=st.sampled_from(RELEASES))
def test_every_life_ends_with_a_good_version_serving(natures: list[Nature], events: list[tuple[str, object]],
                                                     last: Release) -> None:  # fmt: skip
    """Whatever happened before: what was desired last runs if it is good, else the last good one; nothing spins.

    Fewer kills from outside than ``max_crashes``: that many look like a release that kills the process. Power cuts look
    like nothing of the kind, and there may be any number.
    """
    kills = 0
    life = Life(natures)
    for event, value in events:
        if event == "desire":
            assert isinstance(value, Release)
            life.desire(value)
        elif event == "cut":
            life.cut_power()
        elif event == "kill":
            kills += 1
            if kills < LIMITS.max_crashes:
                life.restart()
        else:
            assert isinstance(value, int)
            for _ in range(value):
                life.step()
    life.desire(last)
    life.settle()
    active = life.state.active
    if life.nature[last.artifact_digest] == "good":
        assert active is not None
        assert active.release == last
        assert life.state.is_committed
    elif active is not None:
        assert life.nature[active.release.artifact_digest] == "good"
    if active is not None:
        assert life.progress.loaded == active.key


@given(nature=st.sampled_from(["kills_on_load", "kills_in_service"]))
def test_a_release_that_kills_the_process_is_loaded_three_times_and_never_again(nature: Nature) -> None:
    life = Life(["good", nature])
    life.desire(RELEASES[0])
    life.settle()
    life.desire(RELEASES[1])
    life.settle()
    life.restart()
    life.settle()
    assert life.loads[RELEASES[1].artifact_digest] == LIMITS.max_crashes
    assert life.state.active == slot_of(RELEASES[0])
    assert update.phase(life.state, life.progress, LIMITS)[0] == "reverted"
