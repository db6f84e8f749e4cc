"""Who is in which wave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.rollouts import planning
from cloud_core.policy.rollouts.planning import Candidate, Selection
from penstock.errors import InvalidInput

EVERYONE = Selection(labels={})


def candidate(name: str, **changes: object) -> Candidate:
    values: dict[str, object] = {
        "device_id": name,
        "labels": {"site": "hamburg"},
        "target": "any",
        "is_subscribed": True,
        "is_runnable": True,
        "silent_s": 0.0,
        "desired_digest": "old",
    }
    return Candidate(**{**values, **changes})  # type: ignore[arg-type]


def test_each_device_left_out_says_why() -> None:
    candidates = [
        candidate("ok"),
        candidate("there", desired_digest="new"),
        candidate("dead", silent_s=99.0),
        candidate("arm", is_runnable=False, target="arm64"),
        candidate("other", is_subscribed=False),
    ]
    chosen, skipped = planning.choose(candidates, EVERYONE, target="new", max_silence_s=30)
    assert [c.device_id for c in chosen] == ["ok"]
    assert skipped == [
        "arm: no edge variant for its target 'arm64'",
        "dead: silent for 99 s",
        "there: already on it",
    ]


def test_named_devices_and_labels_select() -> None:
    candidates = [candidate("a"), candidate("b", labels={"site": "kiel"}), candidate("c", is_subscribed=False)]
    named = Selection(device_ids=("b", "c", "ghost"), labels={})
    chosen, skipped = planning.choose(candidates, named, target="new", max_silence_s=30)
    assert [c.device_id for c in chosen] == ["b"]
    assert skipped == ["ghost: unknown device", "c: does not subscribe to this model"]
    labelled, _ = planning.choose(candidates, Selection(labels={"site": "kiel"}), target="new", max_silence_s=30)
    assert [c.device_id for c in labelled] == ["b"]


def test_waves_follow_cumulative_shares() -> None:
    planned = planning.assign_waves([candidate(f"d{i}") for i in range(30)], (0.1, 0.5, 1.0), seed=1)
    assert [sum(d.wave == wave for d in planned) for wave in range(3)] == [3, 12, 15]


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    fleet = [candidate(f"d{i}") for i in range(20)]
    planned = planning.assign_waves(fleet, (0.5, 1.0), seed=7)
    assert planned == planning.assign_waves(fleet[::-1], (0.5, 1.0), seed=7)
    assert planned != planning.assign_waves(fleet, (0.5, 1.0), seed=8)


@given(
    st.integers(1, 200),
    st.lists(st.floats(0.001, 0.999), unique=True, max_size=10).map(lambda shares: (*sorted(shares), 1.0)),
    st.integers(0, 2**64 - 1),
)
def test_every_device_is_in_exactly_one_wave_and_no_wave_is_empty(
    count: int, shares: tuple[float, ...], seed: int
) -> None:
    fleet = [candidate(f"d{i}") for i in range(count)]
    planned = planning.assign_waves(fleet, planning.check_shares(shares), seed)
    assert sorted(d.device_id for d in planned) == sorted(c.device_id for c in fleet)
    waves = [d.wave for d in planned]
    assert waves == sorted(waves)
    assert set(waves) == set(range(max(waves) + 1))
    assert max(waves) < len(shares)
    assert all(d.base_digest == "old" for d in planned)


@pytest.mark.parametrize(
    "shares", [(0.5,), (0.5, 0.2, 1.0), (0.0, 1.0), (0.5, 2.0), (float("nan"), 1.0), (0.5, 0.5, 1.0)]
)
def test_shares_that_are_not_cumulative_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="must increase and end with 1"):
        planning.check_shares(shares)


def test_no_shares_means_the_default_and_one_wave_where_nothing_runs_yet() -> None:
    assert planning.check_shares(()) == ()
    assert planning.default_shares([candidate("a"), candidate("b", desired_digest="")]) == (0.1, 0.5, 1.0)
    assert planning.default_shares([candidate("a", desired_digest="")]) == (1.0,)


def test_another_certificate_for_the_same_version_is_something_to_roll_out() -> None:
    candidates = [
        candidate("old", desired_digest="new", desired_certificate="c1", certificate_digest="c2"),
        candidate("there", desired_digest="new", desired_certificate="c2", certificate_digest="c2"),
    ]
    chosen, skipped = planning.choose(candidates, EVERYONE, target="new", max_silence_s=30)
    assert [c.device_id for c in chosen] == ["old"]
    assert skipped == ["there: already on it"]
    (planned,) = planning.assign_waves(chosen, (1.0,), seed=1)
    assert (planned.certificate_digest, planned.base_certificate) == ("c2", "c1")


def test_a_removal_is_for_devices_that_have_the_model_also_those_that_could_not_run_a_new_one() -> None:
    candidates = [candidate("has", is_runnable=False), candidate("empty", desired_digest="")]
    chosen, skipped = planning.choose(candidates, EVERYONE, target="", max_silence_s=30)
    assert [c.device_id for c in chosen] == ["has"]
    assert skipped == ["empty: does not have it"]
