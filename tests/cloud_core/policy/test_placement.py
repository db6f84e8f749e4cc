from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.placement import Candidate, LoadingPlan, plan_loading


def candidate(digest: str, **values: Any) -> Candidate:
    return Candidate(digest=digest, **{"is_default": False, "pushed_at": 0.0, **values})


def plan(*candidates: Candidate, max_loaded: int = 2, now: float = 100.0, loaded: tuple[str, ...] = ()) -> LoadingPlan:
    loaded = loaded or tuple(c.digest for c in candidates if c.is_loaded)
    return plan_loading(candidates, loaded, max_loaded=max_loaded, now=now)


def test_defaults_come_first_then_the_newest_push() -> None:
    old, new = candidate("old", pushed_at=1.0), candidate("new", pushed_at=2.0)
    default = candidate("default", is_default=True)
    assert plan(old, new, default).load == "default"
    assert plan(old, new).load == "new"


def test_what_somebody_waits_for_comes_before_everything() -> None:
    assert plan(candidate("default", is_default=True), candidate("asked", asked_at=5.0)).load == "asked"
    assert plan(candidate("later", asked_at=6.0), candidate("first", asked_at=5.0)).load == "first"


def test_what_the_registry_no_longer_knows_is_unloaded() -> None:
    assert plan(candidate("a", is_loaded=True), loaded=("a", "gone")).unload == ("gone",)


def test_an_asked_version_pushes_out_the_least_recently_used_that_is_not_pinned() -> None:
    pinned = candidate("pinned", is_default=True, is_loaded=True, last_used_at=1.0)
    cold = candidate("cold", is_loaded=True, last_used_at=2.0)
    hot = candidate("hot", is_loaded=True, last_used_at=3.0)
    step = plan(pinned, hot, cold, candidate("asked", asked_at=9.0), max_loaded=3)
    assert (step.unload, step.load) == (("cold",), "asked")


def test_what_answers_somebody_goes_after_all_that_are_idle() -> None:
    busy = candidate("busy", is_loaded=True, last_used_at=1.0, is_busy=True)
    idle = candidate("idle", is_loaded=True, last_used_at=3.0)
    assert plan(busy, idle, candidate("asked", asked_at=9.0)).unload == ("idle",)
    assert plan(busy, candidate("asked", asked_at=9.0), max_loaded=1).unload == ("busy",)


def test_a_default_that_is_pushed_later_takes_the_place_of_one_that_is_not() -> None:
    step = plan(candidate("other", is_loaded=True), candidate("default", is_default=True), max_loaded=1)
    assert (step.unload, step.load) == (("other",), "default")


def test_nothing_that_only_fills_a_slot_pushes_anything_out() -> None:
    assert plan(candidate("a", is_loaded=True), candidate("b", pushed_at=9.0), max_loaded=1) == LoadingPlan()


def test_pinned_slots_refuse_other_versions_and_say_so() -> None:
    step = plan(candidate("d", is_default=True, is_loaded=True), candidate("x", asked_at=1.0), max_loaded=1)
    assert step == LoadingPlan(refused=("x",))


def test_more_defaults_than_slots_take_turns_when_they_are_asked_for() -> None:
    one = candidate("one", is_default=True, is_loaded=True)
    two = candidate("two", is_default=True)
    assert plan(one, two, max_loaded=1) == LoadingPlan()
    assert plan(one, replace(two, asked_at=1.0), max_loaded=1) == LoadingPlan(load="two", unload=("one",))


def test_a_failed_one_waits_for_its_time() -> None:
    failed = candidate("bad", is_default=True, retry_at=150.0)
    assert plan(failed) == LoadingPlan(wake_at=150.0)
    assert plan(failed, now=150.0).load == "bad"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Candidate], int]:
    moments = st.floats(0, 100)
    drawn = [
        candidate(
            str(index),
            is_default=draw(st.booleans()),
            pushed_at=draw(moments),
            is_loaded=draw(st.booleans()),
            last_used_at=draw(moments),
            asked_at=draw(st.none() | moments),
            retry_at=draw(st.none() | st.floats(50, 200)),
        )
        for index in range(draw(st.integers(0, 8)))
    ]
    drawn = [replace(c, asked_at=None) if c.is_loaded else c for c in drawn]
    return drawn, draw(st.integers(1, 6))


@given(worlds())
def test_carrying_plans_out_ends_within_the_limit_and_changes_nothing_more(world: tuple[list[Candidate], int]) -> None:
    drawn, max_loaded = world
    surplus = [c.digest for c in drawn if c.is_loaded][max_loaded:]
    known = {c.digest: replace(c, is_loaded=c.is_loaded and c.digest not in surplus) for c in drawn}
    pinned = {c.digest for c in known.values() if c.is_loaded and c.is_default}
    steps = 0
    while True:
        step = plan(*known.values(), max_loaded=max_loaded)
        for digest in step.refused:
            known[digest] = replace(known[digest], asked_at=None)
        for digest in step.unload:
            if digest in pinned:
                assert step.load is not None
                assert known[step.load].is_default
            known[digest] = replace(known[digest], is_loaded=False)
        if step.load is None:
            break
        known[step.load] = replace(known[step.load], is_loaded=True, asked_at=None, last_used_at=100.0)
        assert sum(c.is_loaded for c in known.values()) <= max_loaded
        steps += 1
        assert steps <= 2 * len(drawn) + 1, "plans chase each other"
    again = plan(*known.values(), max_loaded=max_loaded)
    assert (again.load, again.unload) == (None, ())


def test_a_pinned_version_is_held_and_one_that_a_policy_leaves_out_is_not_loaded_by_itself() -> None:
    pinned = candidate("pinned", is_pinned=True, is_loaded=True, last_used_at=1.0)
    other = candidate("other", is_loaded=True, last_used_at=9.0)
    assert plan(pinned, other, candidate("asked", asked_at=5.0)).unload == ("other",)
    assert plan(candidate("left out", fills=False)) == LoadingPlan()
    assert plan(candidate("left out", fills=False, asked_at=1.0)).load == "left out"
    assert plan(candidate("left out", fills=False, is_pinned=True)).load == "left out"


def test_a_default_is_loaded_before_the_one_that_it_replaces_goes() -> None:
    old = candidate("old", is_pinned=True, is_loaded=True)
    new = candidate("new", is_default=True, replaces=frozenset({"old"}))
    assert plan(old, new, max_loaded=1) == LoadingPlan(load="new")
    done = plan(replace(old, is_pinned=False), replace(new, is_loaded=True, replaces=frozenset()), max_loaded=1)
    assert done == LoadingPlan(unload=("old",))


def test_bytes_are_a_limit_beside_slots_and_several_go_for_a_large_one() -> None:
    held = candidate("held", is_default=True, is_loaded=True, size_bytes=50)
    small = [candidate(f"s{i}", is_loaded=True, size_bytes=20, last_used_at=float(i)) for i in (1, 2)]

    def planned(*more: Candidate, max_bytes: int = 100) -> LoadingPlan:
        known = (held, *small, *more)
        loaded = [c.digest for c in known if c.is_loaded]
        return plan_loading(known, loaded, max_loaded=9, max_bytes=max_bytes, now=0.0)

    assert planned(candidate("fits", size_bytes=10)).load == "fits"
    assert planned(candidate("filler", size_bytes=11)) == LoadingPlan()
    wanted = candidate("wanted", size_bytes=45, asked_at=1.0)
    assert planned(wanted) == LoadingPlan(load="wanted", unload=("s1", "s2"))
    assert planned(candidate("too large", size_bytes=60, asked_at=1.0)) == LoadingPlan(refused=("too large",))
    assert planned(candidate("huge", size_bytes=101, asked_at=1.0, is_default=True)) == LoadingPlan(refused=("huge",))


def test_what_proved_larger_than_it_said_pushes_out_the_least_used_that_is_not_held() -> None:
    held = candidate("held", is_default=True, is_loaded=True, size_bytes=90)
    cold = candidate("cold", is_loaded=True, size_bytes=20, last_used_at=1.0)
    hot = candidate("hot", is_loaded=True, size_bytes=5, last_used_at=2.0)
    step = plan_loading((held, cold, hot), ("held", "cold", "hot"), max_loaded=9, max_bytes=100, now=0.0)
    assert step == LoadingPlan(unload=("cold",))
