"""Which version the death of a process counts against, where there are several models."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edge_agent.policy import model_state
from edge_agent.policy.blame import judge
from edge_agent.policy.model_state import ModelState, Release
from tests.edge_agent.simulated_device import slot_of


def on_trial(model: str, *, deaths: int = 0, is_committed: bool = False, boot_id: str = "b") -> ModelState:
    release = Release(version="v1", artifact_digest=f"sha256:{model}")
    state = model_state.activate(ModelState(model=model, desired=release), slot_of(release))
    state = replace(state, is_committed=is_committed)
    for _ in range(deaths):
        state = model_state.begin_boot(model_state.begin_trial(state, release.key, "b"), "b")
    return model_state.begin_trial(state, release.key, boot_id)


def deaths_of(state: ModelState) -> int:
    assert state.active is not None
    return state.starts_of(state.active.key)


def quiet(model: str, **options: bool) -> ModelState:
    return replace(on_trial(model, **options), trials=())


def test_a_death_with_one_trial_open_counts_and_the_next_process_takes_turns() -> None:
    judged = judge([on_trial("a"), quiet("b"), quiet("c", is_committed=True)], "b")
    assert [deaths_of(state) for state in judged.states] == [1, 0, 0]
    assert judged.order == ("c", "a", "b")


def test_a_death_with_several_trials_open_counts_against_nobody() -> None:
    judged = judge([on_trial("a", deaths=1), on_trial("b", deaths=2), on_trial("c", is_committed=True)], "b")
    assert [deaths_of(state) for state in judged.states] == [1, 2, 0], "what was counted before stands"
    assert judged.order == ("c", "b", "a")


@pytest.mark.parametrize("boot_id", ["another", ""])
def test_the_end_of_the_machine_counts_against_nobody_and_nobody_takes_turns(boot_id: str) -> None:
    judged = judge([on_trial("a"), on_trial("b", deaths=1)], boot_id)
    assert [deaths_of(state) for state in judged.states] == [0, 1]
    assert judged.order == ()


def test_two_versions_of_one_model_are_both_counted() -> None:
    state = on_trial("a")
    candidate = Release(version="v2", artifact_digest="sha256:v2")
    state = model_state.begin_trial(model_state.desire(state, candidate), candidate.key, "b")
    (judged,) = judge([state], "b").states
    assert (deaths_of(judged), judged.starts_of(candidate.key)) == (1, 1)
