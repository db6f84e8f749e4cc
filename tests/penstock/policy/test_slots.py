"""Who gets a slot of an engine: order, memory, deadlines, and that neither long nor short ones starve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError, InvalidInput, QueueFull
from penstock.policy.slots import Runs, SlotLimits, SlotPlan, Waits, plan_slots

NOW = 100.0


def waits(
    id: str, *, tokens: int = 10, kv: int = 10, at: float = NOW, deadline: float = NOW + 60, priority: int = 0
) -> Waits:
    return Waits(id=id, prompt_tokens=tokens, kv_bytes=kv, arrived_at=at, deadline=deadline, priority=priority)


def runs(id: str, *, tokens: int = 10, kv: int = 10, deadline: float = NOW + 60, has_begun: bool = True) -> Runs:
    return Runs(id=id, prompt_tokens=tokens, kv_bytes=kv, deadline=deadline, has_begun=has_begun)


def limits(slots: int = 2, kv: int = 100, **more: float) -> SlotLimits:
    return SlotLimits(slots=slots, max_kv_bytes=kv, **more)  # type: ignore[arg-type]


def admitted(plan: SlotPlan) -> str:
    return "".join(plan.admit)


def test_first_come_first_served_while_slots_are_there() -> None:
    line = [waits("a", at=NOW - 2), waits("b", at=NOW - 1), waits("c")]
    assert admitted(plan_slots(line, [], limits(slots=2), NOW)) == "ab"
    assert admitted(plan_slots(line, [runs("x")], limits(slots=2), NOW)) == "a"
    assert admitted(plan_slots(line, [runs("x"), runs("y")], limits(slots=2), NOW)) == ""


def test_priority_goes_first_and_waiting_is_worth_levels() -> None:
    line = [waits("a", at=NOW - 0.5), waits("b", at=NOW, priority=1)]
    assert admitted(plan_slots(line, [], limits(slots=1), NOW)) == "b"
    line = [waits("a", at=NOW - 1.5), waits("b", at=NOW, priority=1)]
    assert admitted(plan_slots(line, [], limits(slots=1), NOW)) == "a"


def test_what_is_too_late_never_runs_and_what_runs_is_cut() -> None:
    line = [waits("a", deadline=NOW), waits("b")]
    plan = plan_slots(line, [runs("x", deadline=NOW - 1), runs("y")], limits(slots=2), NOW)
    assert plan == SlotPlan(admit=("b",), expire=("a",), cut=("x",))


def test_who_does_not_fit_is_passed_for_a_while_and_then_gets_what_others_leave() -> None:
    running = [runs("x", kv=50)]
    line = [waits("big", kv=80, at=NOW - 1), waits("small", kv=10, at=NOW - 0.5)]
    assert admitted(plan_slots(line, running, limits(slots=4, overtaken_s=2.0), NOW)) == "small"
    assert admitted(plan_slots(line, running, limits(slots=4, overtaken_s=2.0), NOW + 1)) == ""
    assert admitted(plan_slots(line, [], limits(slots=4, overtaken_s=2.0), NOW + 1)) == "bigsmall"


def test_long_prompts_leave_a_slot_to_short_ones_while_they_are_computed() -> None:
    line = [waits("l", tokens=1000, at=NOW - 3), waits("m", tokens=1000, at=NOW - 2), waits("s", at=NOW - 1)]
    assert admitted(plan_slots(line, [], limits(slots=2), NOW)) == "ls"
    assert admitted(plan_slots(line[1:], [runs("l", tokens=1000, has_begun=False)], limits(slots=2), NOW)) == "s"
    assert admitted(plan_slots(line[1:2], [runs("l", tokens=1000)], limits(slots=2), NOW)) == "m"
    assert admitted(plan_slots(line[:1], [], limits(slots=1), NOW)) == "l"


@st.composite
def lines(draw: st.DrawFn) -> list[Waits]:
    """Up to 12 generations, each of which fits into an engine of 100 bytes."""
    return [
        waits(
            str(number),
            tokens=draw(st.sampled_from([1, 512, 513, 5000])),
            kv=draw(st.integers(1, 100)),
            at=NOW - draw(st.floats(0, 5)),
            deadline=NOW + draw(st.floats(-1, 5)),
            priority=draw(st.integers(0, 3)),
        )
        for number in range(draw(st.integers(0, 12)))
    ]


@given(lines(), lines(), st.integers(1, 5), st.sampled_from([0.0, 2.0]))
def test_slots_and_memory_are_never_passed_and_nobody_is_in_two_places(
    line: list[Waits], before: list[Waits], slots: int, overtaken_s: float
) -> None:
    allowed = limits(slots=slots, overtaken_s=overtaken_s)
    started = plan_slots(before, [], allowed, NOW).admit
    by_id = {wait.id: wait for wait in before}
    running = [runs(f"r{id}", tokens=by_id[id].prompt_tokens, kv=by_id[id].kv_bytes) for id in started]
    plan = plan_slots(line, running, allowed, NOW)
    chosen = {wait.id: wait for wait in line if wait.id in plan.admit}
    assert len(chosen) == len(plan.admit)
    assert len(running) + len(chosen) <= slots
    assert sum(run.kv_bytes for run in running) + sum(wait.kv_bytes for wait in chosen.values()) <= 100
    assert set(plan.expire) == {wait.id for wait in line if wait.deadline <= NOW}
    assert not set(plan.admit) & set(plan.expire)


@given(lines(), st.integers(1, 5), st.sampled_from([0.0, 2.0]))
def test_an_idle_engine_always_takes_somebody(line: list[Waits], slots: int, overtaken_s: float) -> None:
    plan = plan_slots(line, [], limits(slots=slots, overtaken_s=overtaken_s), NOW)
    assert bool(plan.admit) == any(wait.deadline > NOW for wait in line)


def test_what_can_never_run_is_refused_at_once() -> None:
    refused = limits(kv=100).refusal(101, running=0, waiting=0, waiting_kv_bytes=0)
    assert isinstance(refused, InvalidInput)
    assert "101" in refused.message
    assert "100" in refused.message


def test_the_line_is_bounded_by_number_and_by_memory() -> None:
    allowed = limits(slots=2, max_waiting=3, max_waiting_kv_bytes=100)
    assert allowed.refusal(50, running=2, waiting=2, waiting_kv_bytes=50) is None
    for refused in (
        allowed.refusal(10, running=2, waiting=3, waiting_kv_bytes=30),
        allowed.refusal(51, running=2, waiting=2, waiting_kv_bytes=50),
    ):
        assert isinstance(refused, QueueFull)
        assert refused.retry_after_s == 1.0
    assert allowed.refusal(90, running=2, waiting=0, waiting_kv_bytes=0) is None, "one alone may always wait"


def test_an_engine_without_a_line_takes_what_it_has_slots_for() -> None:
    allowed = limits(slots=2, max_waiting=0)
    assert allowed.refusal(10, running=1, waiting=0, waiting_kv_bytes=0) is None
    assert isinstance(allowed.refusal(10, running=2, waiting=0, waiting_kv_bytes=0), QueueFull)
    assert isinstance(allowed.refusal(10, running=1, waiting=1, waiting_kv_bytes=10), QueueFull)
    assert allowed.refusal(10, running=0, waiting=1, waiting_kv_bytes=10) is None, "two came before the next step"


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"kv": -1}, {"max_waiting": -1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        limits(**wrong)
