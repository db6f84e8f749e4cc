from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.canary import Abort, Advance, Evidence, Hold, Promote, decide, judge, next_step, slow_limit
from cloud_core.policy.traffic import Arm, CanaryGate, Split
from penstock.process.histogram import SECONDS, Histogram

GATE = CanaryGate(min_requests=100, bake_s=10.0, slow_s=0.1)
NOW = 1000.0


def split(*names: str, **values: Any) -> Split:
    arms = tuple(Arm(name=name, digest=name, percent=5.0) for name in names or ("v2",))
    return Split(**{"arms": arms, "gate": GATE, "since": 0.0, **values})


def outcome(one: Split, now: float = NOW, **seen: Any) -> Any:
    verdicts = judge(one, {"v2": Evidence(**seen)}, now)
    return decide(one, verdicts, now=now)


def test_a_good_arm_goes_on_step_by_step_and_then_becomes_the_default() -> None:
    stepped = split(steps=(5.0, 25.0, 100.0))
    after = outcome(stepped, requests=200, failed=0)
    assert isinstance(after, Advance)
    assert (after.split.arms[0].percent, after.split.step, after.split.since) == (25.0, 1, NOW)
    promoted = outcome(after.split, now=2 * NOW, requests=200, failed=0)
    assert isinstance(promoted, Promote)
    assert promoted.arm.name == "v2"


def test_the_last_step_below_a_hundred_stays_and_a_split_without_steps_too() -> None:
    assert isinstance(outcome(split(steps=(5.0,)), requests=200), Hold)
    assert isinstance(outcome(split(), requests=200), Hold)
    assert isinstance(next_step(split(), "", now=NOW), Hold)


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ({"requests": 200, "failed": 20}, "requests failed"),
        ({"requests": 200, "slow": 90}, "took longer than 0.1 s"),
        ({"requests": 200, "compared": 200, "disagreed": 90}, "shadowed rows differ"),
    ],
)
def test_evidence_against_an_arm_ends_the_split_and_says_why(seen: dict[str, int], word: str) -> None:
    ended = outcome(split(steps=(5.0, 100.0)), **seen)
    assert isinstance(ended, Abort)
    assert word in ended.reason
    assert "evidence" in ended.reason


@pytest.mark.parametrize(
    ("seen", "now", "word"),
    [
        ({"requests": 99}, NOW, "99 of 100 requests"),
        ({"requests": 200}, 9.5, "baking for another 1 s"),
        ({"requests": 200, "slow": None}, NOW, "not known yet"),
        ({"requests": 200, "failed": 3}, NOW, "3 of 200 requests failed"),
    ],
)
def test_what_was_not_shown_to_be_good_holds(seen: dict[str, Any], now: float, word: str) -> None:
    held = outcome(split(steps=(5.0, 100.0)), now=now, **seen)
    assert isinstance(held, Hold)
    assert word in held.reason


def test_one_bad_arm_of_several_ends_the_split() -> None:
    both = split("v2", "v3")
    verdicts = judge(both, {"v2": Evidence(requests=200), "v3": Evidence(requests=200, failed=50)}, NOW)
    assert (verdicts["v2"].verdict, verdicts["v3"].verdict) == ("pass", "fail")
    ended = decide(both, verdicts, now=NOW)
    assert isinstance(ended, Abort)
    assert ended.reason.startswith("v3: ")


def test_an_arm_at_its_limit_is_stopped_in_at_most_alpha_of_the_splits() -> None:
    draws = random.Random(7)
    gate = replace(GATE, max_error_rate=0.05, alpha=0.2)
    stopped = 0
    for _ in range(150):
        failed = 0
        for requests in range(5, 301, 5):
            failed += sum(draws.random() < 0.05 for _ in range(5))
            if isinstance(outcome(split(gate=gate), requests=requests, failed=failed), Abort):
                stopped += 1
                break
    assert stopped / 150 <= 0.2 / 3 + 0.04  # a third of the budget is the errors' own


@given(st.lists(st.floats(0.0001, 40.0), max_size=300))
def test_what_is_slow_is_a_bound_twice_above_all_but_a_twentieth(durations: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for one in durations:
        histogram.observe(one)
    limit = slow_limit(histogram.bounds, histogram.counts)
    if len(durations) < 100:
        assert limit == 0.0
        return
    assert limit in SECONDS
    usual = sorted(durations)[int(len(durations) * 0.95) - 1]
    assert limit == SECONDS[-1] or limit >= usual
