"""Transitions of what a device remembers about a model."""

from __future__ import annotations

from edge_agent.policy import model_state
from edge_agent.policy.model_state import ModelState, Release, Slot


def release(name: str, certificate: str = "c") -> Release:
    return Release(version=name, artifact_digest=f"sha256:{name}", certificate_digest=certificate)


def slot(name: str, certificate: str = "c") -> Slot:
    return Slot(release=release(name, certificate), variant_digest=f"edge-{name}")


def running(name: str, previous: str = "") -> ModelState:
    return ModelState(
        model="m", active=slot(name), previous=slot(previous) if previous else None, is_committed=True,
        desired=release(name),
    )  # fmt: skip


def test_activating_keeps_the_committed_slot_as_previous() -> None:
    state = model_state.activate(running("v1"), slot("v2"))
    assert state.active == slot("v2")
    assert state.previous == slot("v1")
    assert not state.is_committed


def test_a_slot_that_never_committed_does_not_become_the_way_back() -> None:
    state = model_state.activate(model_state.activate(running("v1"), slot("v2")), slot("v3"))
    assert state.active == slot("v3")
    assert state.previous == slot("v1")


def test_going_back_to_the_previous_slot_needs_no_second_probation() -> None:
    state = model_state.activate(running("v2", previous="v1"), slot("v1"))
    assert state.is_committed
    assert state.previous == slot("v2")


def test_going_back_from_a_slot_on_probation_forgets_it() -> None:
    state = model_state.activate(model_state.activate(running("v1"), slot("v2")), slot("v1"))
    assert (state.active, state.previous, state.is_committed) == (slot("v1"), None, True)


def test_reverting_returns_to_the_previous_slot_and_blocks_the_failed_release() -> None:
    state = model_state.revert(model_state.activate(running("v1"), slot("v2")), "crashed", limit=4)
    assert state.active == slot("v1")
    assert state.is_committed
    failure = state.failure_of(release("v2"))
    assert failure is not None
    assert (failure.kind, failure.reason, failure.is_blocked) == ("reverted", "crashed", True)


def test_reverting_a_damaged_slot_blames_nobody() -> None:
    state = model_state.revert(running("v2", previous="v1"), "rotten", limit=4, should_block=False)
    assert state.active == slot("v1")
    assert state.failures == ()


def test_a_failed_release_is_unblocked_only_when_another_one_was_asked_for() -> None:
    state = model_state.fail(
        model_state.desire(running("v1"), release("v2")), release("v2"), "reverted", "bad", limit=4
    )
    assert model_state.desire(state, release("v2")) == state
    state = model_state.desire(model_state.desire(state, release("v1")), release("v2"))
    failure = state.failure_of(release("v2"))
    assert failure is not None
    assert not failure.is_blocked


def test_repeated_failures_are_counted_and_their_number_is_bounded() -> None:
    state = running("v1")
    for index in range(10):
        state = model_state.fail(state, release(f"bad{index}"), "failed", "404", limit=3)
    state = model_state.fail(state, release("bad9"), "failed", "404", limit=3)
    assert [failure.release.version for failure in state.failures] == ["bad7", "bad8", "bad9"]
    assert state.failures[-1].count == 2


def test_another_certificate_for_the_same_artifact_is_another_release() -> None:
    state = model_state.fail(running("v1"), release("v2", "c1"), "reverted", "bad", limit=4)
    assert state.failure_of(release("v2", "c2")) is None


def test_a_moved_tag_renames_what_runs() -> None:
    renamed = Release(version="stable", artifact_digest="sha256:v1", certificate_digest="c")
    state = model_state.desire(running("v1"), renamed)
    assert state.active is not None
    assert state.active.release.version == "stable"
    assert state.is_settled


def test_starts_of_two_releases_are_counted_apart() -> None:
    state = model_state.desire(running("v1"), release("v2"))
    for key in (release("v1").key, release("v2").key, release("v2").key):
        state = model_state.begin_trial(model_state.begin_boot(state, "b"), key, "b")
    assert state.starts_of(release("v1").key) == 1
    assert state.starts_of(release("v2").key) == 2
    state = model_state.end_trial(state, release("v2").key)
    assert state.starts_of(release("v2").key) == 1
    assert model_state.commit(state).starts_of(release("v1").key) == 0


def test_trials_of_releases_that_are_not_wanted_any_more_are_forgotten() -> None:
    state = model_state.begin_trial(model_state.desire(running("v1"), release("v2")), release("v2").key)
    assert model_state.desire(state, release("v3")).trials == ()


def test_a_certificate_that_comes_later_does_not_cost_the_way_back() -> None:
    state = model_state.activate(running("v2", previous="v1"), slot("v2", certificate="c2"))
    assert state.active == slot("v2", certificate="c2")
    assert state.previous == slot("v1")


def test_a_slot_that_is_replaced_did_not_crash() -> None:
    state = model_state.begin_trial(model_state.desire(running("v1"), release("v2")), release("v1").key)
    state = model_state.activate(model_state.begin_trial(state, release("v2").key), slot("v2"))
    assert state.starts_of(release("v1").key) == 0
    assert state.starts_of(release("v2").key) == 1


def test_committing_forgets_that_the_release_ever_failed() -> None:
    state = model_state.fail(running("v1"), release("v2"), "reverted", "bad", limit=4)
    assert model_state.commit(model_state.activate(state, slot("v2"))).failures == ()
