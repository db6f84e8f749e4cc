from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.traffic import Arm, Shadow, Split, Traffic, VersionPolicy, check_split, check_versions, pick
from penstock.errors import InvalidInput

KEYS = [f"user-{number}" for number in range(4000)]


def split(*percents: float, **values: Any) -> Split:
    arms = tuple(Arm(name=f"v{i}", digest=f"d{i}", percent=p) for i, p in enumerate(percents, 2))
    return Split(arms=arms, **values)


def names(divided: Split) -> list[str]:
    return [arm.name if (arm := pick(divided, key, 0.0)) else "base" for key in KEYS]


def test_callers_are_divided_by_the_weights_and_each_stays_where_it_is() -> None:
    divided = names(split(10, 30, salt="s"))
    assert {name: round(divided.count(name) / len(KEYS), 1) for name in set(divided)} == {
        "v2": 0.1, "v3": 0.3, "base": 0.6,
    }  # fmt: skip
    assert names(split(10, 30, salt="s")) == divided


def test_an_arm_that_grows_keeps_the_callers_that_it_had() -> None:
    before, after = names(split(5)), names(split(25))
    assert all(now == "v2" for was, now in zip(before, after, strict=True) if was == "v2")
    assert names(split(100)) == ["v2"] * len(KEYS)


def test_two_splits_divide_callers_in_different_ways() -> None:
    one, other = names(split(50, salt="a")), names(split(50, salt="b"))
    assert 0.4 < sum(x == y for x, y in zip(one, other, strict=True)) / len(KEYS) < 0.6


@given(st.floats(0, 1, exclude_max=True), st.lists(st.floats(0.01, 30), min_size=1, max_size=3))
def test_what_has_no_key_goes_where_its_draw_falls(draw: float, percents: list[float]) -> None:
    arm = pick(split(*percents), "", draw)
    ends = [sum(percents[: i + 1]) / 100 for i in range(len(percents))]
    expected = next((f"v{i}" for i, end in enumerate(ends, 2) if draw < end), "base")
    near = any(abs(draw - end) < 2e-4 for end in ends)  # the last hundredth of a percent is rounded
    assert near or (arm.name if arm else "base") == expected


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (split(), "arms"),
        (split(60, 60), "arms"),
        (split(0), "arms"),
        (replace(split(1, 1), arms=split(1).arms * 2), "arms"),
        (split(5, sticky="cookie"), "sticky"),
        (split(5, sticky="parameter:"), "sticky"),
        (split(5, 5, steps=(5.0, 100.0)), "steps"),
        (split(5, steps=(50.0, 25.0)), "steps"),
        (split(5, steps=(50.0, 101.0)), "steps"),
        (split(5, gate=replace(Split(arms=()).gate, alpha=0.0)), "gate.alpha"),
        (split(5, gate=replace(Split(arms=()).gate, bake_s=-1.0)), "gate.bake_s"),
        (split(5, gate=replace(Split(arms=()).gate, min_requests=-1)), "gate.min_requests"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused_by_its_field(wrong: Split, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_split(wrong)
    assert caught.value.field == field


def test_what_traffic_needs_in_memory_is_what_it_names() -> None:
    shadow = Shadow(name="v9", digest="d9", share=0.1)
    assert Traffic(split=split(5, 5), shadow=shadow, pins=("d1",)).needed == {"d1", "d2", "d3", "d9"}
    assert Traffic().needed == frozenset()


def test_a_version_policy_allows_the_newest_or_those_that_it_names() -> None:
    tags = ["v1", "v2", "v3"]
    assert VersionPolicy().allowed(tags) == {"v1", "v2", "v3"}
    assert VersionPolicy(kind="latest", latest=2).allowed(tags) == {"v2", "v3"}
    assert VersionPolicy(kind="given", given=("v1", "v8")).allowed(tags) == {"v1"}
    with pytest.raises(InvalidInput):
        check_versions(VersionPolicy(kind="latest", latest=0))
    with pytest.raises(InvalidInput):
        check_versions(VersionPolicy(kind="given"))
