"""The next step of an update, and a simulation of whole lives of a device under crashes and changes of mind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_agent.policy import model_state, update
from edge_agent.policy.model_state import ModelState, Release, Slot
from edge_agent.policy.update import LoadFailure, Progress, UpdateLimits

LIMITS = UpdateLimits(probation_s=30.0, probation_requests=100, max_crashes=3, patience=3)
V1 = Release(version="v1", artifact_digest="sha256:v1", certificate_digest="c1")
V2 = Release(version="v2", artifact_digest="sha256:v2", certificate_digest="c2")


def slot(release: Release) -> Slot:
    return Slot(release=release, variant_digest="edge-" + release.version)


COMMITTED = ModelState(model="m", active=slot(V1), is_committed=True, desired=V1)
SERVING = Progress(loaded=V1.key, should_collect=False)


def plan(state: ModelState, progress: Progress = SERVING, now: float = 0.0) -> update.Action:
    return update.plan(state, progress, LIMITS, now)


def test_nothing_wanted_and_nothing_here_is_nothing_to_do() -> None:
    assert plan(ModelState(model="m"), Progress(should_collect=False)) == update.Nothing(reason="")


def test_at_start_the_active_slot_is_loaded_before_anything_else() -> None:
    assert plan(structs.replace(COMMITTED, desired=V2), Progress()) == update.Load(slot=slot(V1))


def test_steps_towards_a_new_release_in_order() -> None:
    state = model_state.desire(COMMITTED, V2)
    assert plan(state) == update.Fetch(release=V2)
    assert plan(state, replace(SERVING, fetching=V2.key)) == update.Nothing(reason="fetching")
    assert plan(state, replace(SERVING, fetched=slot(V2))) == update.Prove(slot=slot(V2))
    assert plan(state, replace(SERVING, fetched=slot(V2), prepared=V2.key)) == update.Activate(slot=slot(V2))
    on_probation = model_state.activate(state, slot(V2))
    serving_v2 = replace(SERVING, loaded=V2.key, clean_since=10.0)
    assert plan(on_probation, serving_v2, now=39.9) == update.Nothing(reason="on probation", wake_at=40.0)
    assert isinstance(plan(on_probation, serving_v2, now=40.0), update.Commit)


def test_enough_rows_end_a_probation_early() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot(V2))
    assert isinstance(plan(state, replace(SERVING, loaded=V2.key, clean_requests=100)), update.Commit)


def test_failures_on_probation_revert() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot(V2))
    action = plan(state, replace(SERVING, loaded=V2.key, failures=3))
    assert action == update.Revert(reason="3 failures on probation", should_block=True)


def test_a_failing_first_version_stays_because_there_is_nothing_better_and_says_so() -> None:
    state = model_state.activate(model_state.desire(ModelState(model="m"), V1), slot(V1))
    failing = replace(SERVING, failures=3)
    assert isinstance(plan(state, failing), update.Nothing)
    phase, error = update.phase(state, failing, LIMITS)
    assert phase == "failed"
    assert "no earlier version" in error


def test_failures_after_the_commit_do_not_revert() -> None:
    assert plan(COMMITTED, replace(SERVING, failures=99)) == update.Nothing(reason="")


def test_starts_that_did_not_survive_revert_before_loading_again() -> None:
    state = model_state.activate(model_state.desire(COMMITTED, V2), slot(V2))
    for _ in range(3):
        assert isinstance(plan(state, Progress()), update.Load)
        state = model_state.begin_trial(state, V2.key)
    action = plan(state, Progress())
    assert isinstance(action, update.Revert)
    assert action.should_block


def test_a_candidate_that_kills_the_process_while_it_is_proven_is_refused() -> None:
    state = model_state.desire(COMMITTED, V2)
    for _ in range(3):
        state = model_state.begin_trial(state, V2.key)
        state = model_state.begin_trial(state, V1.key)  # the next start loads what runs, which must not reset the count
    action = plan(state, replace(SERVING, fetched=slot(V2)))
    assert isinstance(action, update.Refuse)
    assert action.release == V2


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
    state = structs.replace(COMMITTED, previous=slot(V2))
    damaged = Progress(load_failure=LoadFailure(reason="rotten", is_damaged=True))
    assert plan(state, damaged) == update.Revert(reason="rotten", should_block=False)
    broken = Progress(load_failure=LoadFailure(reason="engine", is_damaged=False))
    assert plan(state, broken) == update.Revert(reason="engine", should_block=True)


def test_a_broken_only_slot_is_tried_again_and_does_not_stand_in_the_way_of_its_successor() -> None:
    broken = Progress(load_failure=LoadFailure(reason="engine", is_damaged=False), load_retry_at=9.0)
    waiting = plan(COMMITTED, replace(broken, should_collect=False), now=1.0)
    assert waiting == update.Nothing(reason="engine", wake_at=9.0)
    assert plan(COMMITTED, broken, now=9.0) == update.Load(slot=slot(V1))
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
        ("not-found", "final"),
        ("artifact", "final"),
        ("too-large", "final"),
    ],
)
def test_severity_of_errors(code: str, severity: str) -> None:
    assert update.severity(code) == severity


@pytest.mark.parametrize(
    ("progress", "phase"),
    [
        (SERVING, "fetching"),
        (replace(SERVING, failed_attempts=2, error="out of reach"), "fetching"),
        (replace(SERVING, failed_attempts=3, error="out of reach"), "failed"),
        (replace(SERVING, failed_attempts=1, error="disk full", is_hard=True), "failed"),
        (replace(SERVING, fetched=slot(V2)), "proving"),
    ],
)
def test_phases_on_the_way(progress: Progress, phase: str) -> None:
    assert update.phase(model_state.desire(COMMITTED, V2), progress, LIMITS)[0] == phase


def test_phases_at_rest() -> None:
    assert update.phase(ModelState(model="m"), Progress(), LIMITS)[0] == "idle"
    assert update.phase(COMMITTED, SERVING, LIMITS)[0] == "committed"
    assert update.phase(structs.replace(COMMITTED, is_committed=False), SERVING, LIMITS)[0] == "probation"


RELEASES = [Release(version=f"v{i}", artifact_digest=f"sha256:{i}", certificate_digest="") for i in range(4)]


@dataclass
class Life:
    """A device whose process may be killed at every step. Acts as the updater does: durable state first."""

    nature: dict[str, str]  # version -> good | lies | kills_on_load | kills_in_service | missing
    state: ModelState = field(default_factory=lambda: ModelState(model="m"))
    progress: Progress = field(default_factory=Progress)
    now: float = 0.0
    loads: dict[str, int] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)

    def restart(self) -> None:
        self.progress = Progress(clean_since=self.now)

    def step(self) -> update.Action:
        """One action; a release that kills the process is one that restarts it."""
        self.now += 1.0
        action = update.plan(self.state, self.progress, LIMITS, self.now)
        match action:
            case update.Load(slot=found) | update.Prove(slot=found):
                self._load(found, answers=isinstance(action, update.Load))
            case update.Fetch(release=release):
                if self.nature[release.version] == "missing":
                    self.state = model_state.fail(self.state, release, "failed", "404", limit=8)
                else:
                    self.progress = replace(self.progress, fetched=slot(release))
            case update.Activate(slot=found):
                assert found.release.version in self.proven, "only what proved itself may answer"
                self.state = model_state.activate(self.state, found)
                self.progress = Progress(loaded=found.key, clean_since=self.now)
                self._serve()
            case update.Commit():
                self.state = model_state.commit(self.state)
            case update.Revert(reason=reason, should_block=should_block):
                self.state = model_state.revert(self.state, reason, limit=8, should_block=should_block)
                self.progress = replace(self.progress, load_failure=None)
            case update.Refuse(release=release, reason=reason):
                self.state = model_state.fail(self.state, release, "reverted", reason, limit=8)
            case update.Collect():
                self.progress = replace(self.progress, should_collect=False)
            case update.Nothing():
                pass
        return action

    def _load(self, found: Slot, *, answers: bool) -> None:
        version = found.release.version
        self.state = model_state.begin_trial(self.state, found.key)
        self.loads[version] = self.loads.get(version, 0) + 1
        match self.nature[version]:
            case "kills_on_load":
                self.restart()
            case "lies":
                self.state = model_state.end_trial(self.state, found.key)
                self.state = model_state.fail(self.state, found.release, "reverted", "golden", limit=8)
            case _ if answers:
                self.progress = replace(self.progress, loaded=found.key, clean_since=self.now)
                self._serve()
            case _:
                self.proven.add(version)
                self.progress = replace(self.progress, prepared=found.key)

    def _serve(self) -> None:
        assert self.state.active is not None
        if self.nature[self.state.active.release.version] == "kills_in_service":
            self.restart()

    def desire(self, release: Release) -> None:
        self.state = model_state.desire(self.state, release)
        self.progress = replace(self.progress, fetched=None, prepared=None)

    def settle(self) -> None:
        """Until there is nothing to do but wait, also after waiting."""
        for _ in range(200):
            action = self.step()
            if isinstance(action, update.Nothing):
                if action.wake_at is None:
                    return
                self.now = action.wake_at
        raise AssertionError(f"does not settle: {self.state} {self.progress}")


NATURES = st.sampled_from(["good", "lies", "kills_on_load", "kills_in_service", "missing"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("desire"), st.sampled_from(RELEASES)),
        st.tuples(st.just("steps"), st.integers(1, 8)),
        st.tuples(st.just("kill"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(natures=st.lists(NATURES, min_size=4, max_size=4), events=EVENTS, last=st.sampled_from(RELEASES))
def test_every_life_ends_with_a_good_version_serving(natures: list[str], events: list[tuple[str, object]],
                                                     last: Release) -> None:  # fmt: skip
    """Whatever happened before: what was desired last runs if it is good, else the last good one; nothing spins.

    Fewer kills from outside than ``max_crashes``: that many look like a release that kills the process.
    """
    kills = 0
    life = Life(nature={release.version: nature for release, nature in zip(RELEASES, natures, strict=True)})
    for event, value in events:
        if event == "desire":
            assert isinstance(value, Release)
            life.desire(value)
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
    if life.nature[last.version] == "good":
        assert active is not None
        assert active.release == last
        assert life.state.is_committed
    elif active is not None:
        assert life.nature[active.release.version] == "good"
    if active is not None:
        assert life.progress.loaded == active.key


@given(nature=st.sampled_from(["kills_on_load", "kills_in_service"]))
def test_a_release_that_kills_the_process_is_loaded_three_times_and_never_again(nature: str) -> None:
    life = Life(nature={"v0": "good", "v1": nature})
    life.desire(RELEASES[0])
    life.settle()
    life.desire(RELEASES[1])
    life.settle()
    life.restart()
    life.settle()
    assert life.loads["v1"] == LIMITS.max_crashes
    assert life.state.active == slot(RELEASES[0])
    assert update.phase(life.state, life.progress, LIMITS)[0] == "reverted"
