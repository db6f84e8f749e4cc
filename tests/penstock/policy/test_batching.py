"""The batch planner: what goes together, what expires, who goes first, and that nothing is lost or starves.

Each rule is checked on the line that queues use, which never looks at what does not go; that it does what a plain
function of the whole list does is checked last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.policy.batch_line import BatchLine
from penstock.policy.batching import DEFAULT_LEVEL, LOWEST_LEVEL, BatchLimits, Queued, Room
from tests.penstock.policy.plain_planner import BatchPlan
from tests.penstock.policy.plain_planner import plan_batch as plain_plan

NOW = 100.0


def plan_batch(queue: Sequence[Queued], limits: BatchLimits, now: float, *, service_time_s: float = 0.0) -> BatchPlan:
    """Plan once, with a line of its own, by indices."""
    line: BatchLine[Queued] = BatchLine(limits, Room(10**6))
    queue = [dataclasses.replace(item) for item in queue]
    for item in queue:
        line.add(item)
    index = {id(item): i for i, item in enumerate(queue)}
    plan = line.take(limits, now, service_s=service_time_s)
    assert len(line) == len(queue) - len(plan.dispatch) - len(plan.expire)
    return BatchPlan(
        dispatch=tuple(index[id(item)] for item in plan.dispatch),
        expire=tuple(index[id(item)] for item in plan.expire),
        wake_at=plan.wake_at,
    )


def chunk(
    rows: int = 1, *, at: float = NOW, deadline: float | None = None, priority: int = 0, key: str = "a"
) -> Queued:
    return Queued(rows=rows, arrived_at=at, deadline=deadline, priority=priority, shape_key=key)


@st.composite
def queues(draw: st.DrawFn) -> list[Queued]:
    """Up to 12 chunks in order of arrival, all at or before NOW; deadlines on both sides of NOW."""
    arrivals = sorted(draw(st.lists(st.floats(NOW - 3, NOW), max_size=12)))
    return [
        chunk(
            draw(st.integers(1, 9)),
            at=at,
            deadline=draw(st.none() | st.floats(NOW - 1, NOW + 3)),
            priority=draw(st.integers(0, 3)),
            key=draw(st.sampled_from("ab")),
        )
        for at in arrivals
    ]


limits = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 12),
    max_delay_s=st.sampled_from([0.0, 0.5, 2.0]),
    ageing_s=st.sampled_from([0.0, 0.1, 1.0, 1e6]),
)
service_times = st.sampled_from([0.0, 0.3])


def level(item: Queued) -> int:
    return DEFAULT_LEVEL if item.priority == 0 else item.priority


@given(queues(), limits, service_times)
def test_what_is_dispatched_is_alive_fits_and_has_one_shape(
    queue: list[Queued], limits: BatchLimits, service_time_s: float
) -> None:
    plan = plan_batch(queue, limits, NOW, service_time_s=service_time_s)
    late = [i for i, q in enumerate(queue) if q.deadline is not None and q.deadline - service_time_s <= NOW]
    assert list(plan.expire) == late
    assert not set(plan.dispatch) & set(late)
    assert len(set(plan.dispatch)) == len(plan.dispatch)
    batch = [queue[i] for i in plan.dispatch]
    assert len({q.shape_key for q in batch}) <= 1
    assert len(batch) <= 1 or sum(q.rows for q in batch) <= limits.max_rows


@given(queues(), limits)
def test_nothing_jumps_over_an_earlier_chunk_of_its_priority_and_shape(
    queue: list[Queued], limits: BatchLimits
) -> None:
    plan = plan_batch(queue, limits, NOW)
    staying = set(range(len(queue))) - set(plan.dispatch) - set(plan.expire)
    for taken in plan.dispatch:
        for left in staying:
            same = queue[left].shape_key == queue[taken].shape_key and level(queue[left]) == level(queue[taken])
            assert not (same and left < taken)


@given(queues(), limits)
def test_a_batch_takes_everything_that_fits_and_an_idle_device_never_waits_without_a_delay(
    queue: list[Queued], limits: BatchLimits
) -> None:
    limits = dataclasses.replace(limits, max_delay_s=0.0)
    plan = plan_batch(queue, limits, NOW)
    alive = set(range(len(queue))) - set(plan.expire)
    assert bool(plan.dispatch) == bool(alive)
    if not plan.dispatch:
        return
    key = queue[plan.dispatch[0]].shape_key
    rows = sum(queue[i].rows for i in plan.dispatch)
    left = [i for i in alive - set(plan.dispatch) if queue[i].shape_key == key]
    if left:  # then the first of them, in the documented order, would not have fitted
        first = min(left, key=lambda i: (queue[i].arrived_at + level(queue[i]) * limits.ageing_s, i))
        if len({q.priority for q in queue}) == 1:
            first = min(left)
        assert rows + queue[first].rows > limits.max_rows


@given(queues(), limits, service_times)
def test_a_plan_that_dispatches_nothing_says_when_the_next_one_will_do_something(
    queue: list[Queued], limits: BatchLimits, service_time_s: float
) -> None:
    plan = plan_batch(queue, limits, NOW, service_time_s=service_time_s)
    alive = [q for i, q in enumerate(queue) if i not in plan.expire]
    if plan.dispatch or not alive:
        return
    assert plan.wake_at is not None
    assert plan.wake_at > NOW
    later = plan_batch(alive, limits, plan.wake_at, service_time_s=service_time_s)
    assert later.dispatch or later.expire


@given(queues(), limits)
def test_draining_a_queue_answers_or_expires_every_chunk_exactly_once(queue: list[Queued], limits: BatchLimits) -> None:
    left, now, seen = list(range(len(queue))), NOW, []
    for _ in range(3 * len(queue) + 1):
        plan = plan_batch([queue[i] for i in left], limits, now)
        gone = {left[i] for i in (*plan.dispatch, *plan.expire)}
        seen += sorted(gone)
        left = [i for i in left if i not in gone]
        if not plan.dispatch and plan.wake_at is not None:
            now = plan.wake_at
    assert sorted(seen) == list(range(len(queue)))


@given(queues(), limits)
def test_planning_twice_gives_the_same_plan(queue: list[Queued], limits: BatchLimits) -> None:
    assert plan_batch(queue, limits, NOW) == plan_batch(tuple(queue), limits, NOW)


def test_an_empty_queue_needs_nothing() -> None:
    assert plan_batch([], BatchLimits(max_rows=8), NOW) == BatchPlan(dispatch=(), expire=(), wake_at=None)


def test_what_queued_up_while_the_device_was_busy_goes_at_once_up_to_max_rows() -> None:
    queue = [chunk() for _ in range(100)]
    plan = plan_batch(queue, BatchLimits(max_rows=64), NOW)
    assert plan == BatchPlan(dispatch=tuple(range(64)), expire=(), wake_at=None)


def test_a_chunk_larger_than_max_rows_goes_alone_and_is_not_split() -> None:
    assert plan_batch([chunk(100), chunk(1)], BatchLimits(max_rows=8), NOW).dispatch == (0,)
    assert plan_batch([chunk(1), chunk(100), chunk(1)], BatchLimits(max_rows=8), NOW).dispatch == (0,)


def test_only_equal_shapes_are_merged() -> None:
    queue = [chunk(key="a"), chunk(key="b"), chunk(key="a")]
    assert plan_batch(queue, BatchLimits(max_rows=8), NOW).dispatch == (0, 2)


def test_priority_1_goes_first_then_default_and_2_alike_then_3() -> None:
    queue = [chunk(priority=p) for p in (3, 2, 0, 1, 2)]
    assert plan_batch(queue, BatchLimits(max_rows=8), NOW).dispatch == (3, 1, 2, 4, 0)


def test_priorities_below_the_lowest_level_count_as_that_level() -> None:
    queue = [chunk(priority=2**31), chunk(priority=LOWEST_LEVEL)]
    assert plan_batch(queue, BatchLimits(max_rows=8), NOW).dispatch == (0, 1)


def test_a_stream_of_urgent_chunks_cannot_starve_a_low_one_beyond_the_stated_bound() -> None:
    limits = BatchLimits(max_rows=1, ageing_s=1.0)
    low, queue, overtaken_at = chunk(at=0.0, priority=3), [], []
    queue.append(low)
    for step in range(1, 100):
        now = step * 0.25
        queue.append(chunk(at=now, priority=1))  # one more urgent chunk for each one served
        (served,) = plan_batch(queue, limits, now).dispatch
        item = queue.pop(served)
        if item is low:
            break
        overtaken_at.append(item.arrived_at)
    else:
        pytest.fail("starved")
    assert overtaken_at  # priority does count
    assert max(overtaken_at) <= low.arrived_at + (3 - 1) * limits.ageing_s


@pytest.mark.parametrize(
    ("deadline", "service_time_s", "expires"),
    [(NOW, 0.0, True), (NOW - 1, 0.0, True), (NOW + 1, 0.0, False), (NOW + 1, 0.5, False), (NOW + 1, 2.0, True)],
)
def test_a_chunk_that_is_late_or_cannot_be_in_time_expires_and_is_never_executed(
    deadline: float, service_time_s: float, expires: bool
) -> None:
    plan = plan_batch([chunk(deadline=deadline)], BatchLimits(max_rows=8), NOW, service_time_s=service_time_s)
    assert (plan.dispatch, plan.expire) == (((), (0,)) if expires else ((0,), ()))


def test_an_expired_chunk_does_not_block_or_choose_for_those_behind_it() -> None:
    plan = plan_batch([chunk(deadline=NOW - 1, key="a"), chunk(key="b")], BatchLimits(max_rows=8), NOW)
    assert plan == BatchPlan(dispatch=(1,), expire=(0,), wake_at=None)


def test_a_delay_waits_for_a_fuller_batch_and_wakes_at_its_end() -> None:
    limits = BatchLimits(max_rows=8, max_delay_s=0.5)
    queue = [chunk(3, at=NOW - 0.25), chunk(3, at=NOW)]
    assert plan_batch(queue, limits, NOW) == BatchPlan(dispatch=(), expire=(), wake_at=NOW + 0.25)
    assert plan_batch(queue, limits, NOW + 0.25).dispatch == (0, 1)


def test_a_full_batch_does_not_wait_out_the_delay() -> None:
    limits = BatchLimits(max_rows=8, max_delay_s=0.5)
    assert plan_batch([chunk(4), chunk(4)], limits, NOW).dispatch == (0, 1)


def test_a_full_batch_of_another_shape_does_not_wait_behind_one_that_is_still_filling() -> None:
    limits = BatchLimits(max_rows=2, max_delay_s=0.5)
    assert plan_batch([chunk(key="a"), chunk(key="b"), chunk(key="b")], limits, NOW).dispatch == (1, 2)


def test_a_delay_that_would_cost_a_deadline_is_not_waited_out() -> None:
    limits = BatchLimits(max_rows=8, max_delay_s=0.5)
    assert plan_batch([chunk(deadline=NOW + 0.4)], limits, NOW).dispatch == (0,)
    assert plan_batch([chunk(deadline=NOW + 0.6)], limits, NOW).dispatch == ()
    assert plan_batch([chunk(deadline=NOW + 0.6)], limits, NOW, service_time_s=0.2).dispatch == (0,)


def test_what_stays_behind_wakes_the_caller_when_it_becomes_too_late() -> None:
    limits = BatchLimits(max_rows=8, max_delay_s=2.0)
    queue = [chunk(deadline=NOW + 5), chunk(deadline=NOW + 2.25)]
    assert plan_batch(queue, limits, NOW) == BatchPlan(dispatch=(), expire=(), wake_at=NOW + 2.0)
    queue = [chunk(key="a"), chunk(key="b", at=NOW - 1, deadline=NOW + 1.5)]
    assert plan_batch(queue, dataclasses.replace(limits, max_delay_s=1.25), NOW).wake_at == NOW + 0.25


@given(queues(), limits, service_times)
def test_a_line_does_what_the_plain_planner_does(
    queue: list[Queued], limits: BatchLimits, service_time_s: float
) -> None:
    found = plan_batch(queue, limits, NOW, service_time_s=service_time_s)
    plain = plain_plan(queue, limits, NOW, service_time_s=service_time_s)
    assert (found.dispatch, found.expire) == (plain.dispatch, plain.expire)
    if not plain.dispatch:
        assert found.wake_at == plain.wake_at


@given(st.data(), limits, service_times)
def test_a_line_that_lives_on_does_what_the_plain_planner_does(
    data: st.DataObject, limits: BatchLimits, service_time_s: float
) -> None:
    """Chunks come, are withdrawn, expire and go, and the line still agrees with the list of those that wait."""
    room = Room(10**6)
    line: BatchLine[Queued] = BatchLine(limits, room)
    waiting: list[Queued] = []
    now = NOW
    steps = st.sampled_from(["come", "come", "go", "expire", "withdraw", "later"])
    for step in data.draw(st.lists(steps, max_size=40)):
        if step == "come":
            deadline = data.draw(st.none() | st.floats(0.0, 3.0))
            new = chunk(
                data.draw(st.integers(1, 9)),
                at=now,
                deadline=None if deadline is None else now + deadline,
                priority=data.draw(st.integers(0, 3)),
                key=data.draw(st.sampled_from("ab")),
            )
            line.add(new)
            waiting.append(new)
        elif step == "withdraw" and waiting:
            gone = data.draw(st.sampled_from(waiting))
            line.remove([gone])
            line.remove([gone])
            waiting.remove(gone)
        elif step == "later":
            now += data.draw(st.floats(0.0, 1.5))
        elif step == "expire":
            late = line.overdue(now)
            assert {id(item) for item in late} == {
                id(item) for item in waiting if item.deadline is not None and item.deadline <= now
            }
            waiting = [item for item in waiting if item not in late]
        else:
            plain = plain_plan(waiting, limits, now, service_time_s=service_time_s)
            plan = line.take(limits, now, service_s=service_time_s)
            assert plan.dispatch == [waiting[i] for i in plain.dispatch]
            assert plan.expire == [waiting[i] for i in plain.expire]
            if not plan.dispatch:
                assert plan.wake_at == plain.wake_at
            waiting = [item for item in waiting if item not in (*plan.dispatch, *plan.expire)]
        deadlines = [item.deadline for item in waiting if item.deadline is not None]
        assert line.next_deadline() == min(deadlines, default=None)
        assert sorted(map(id, line)) == sorted(map(id, waiting))
        assert (len(line), room.rows) == (len(waiting), sum(item.rows for item in waiting))


@pytest.mark.parametrize("priorities", [(0,), (0, 1, 3)])
@pytest.mark.parametrize("n_keys", [1, 16])
def test_a_batch_looks_at_no_more_of_a_long_line_than_of_a_short_one(priorities: tuple[int, ...], n_keys: int) -> None:
    looked = 0

    class Looked(Queued):
        def __getattribute__(self, name: str) -> object:
            nonlocal looked
            looked += 1
            return super().__getattribute__(name)

    def looks(n: int) -> float:
        nonlocal looked
        limits = BatchLimits(max_rows=16)
        line: BatchLine[Queued] = BatchLine(limits, Room(10**6))
        for i in range(n):
            priority, key = priorities[i % len(priorities)], i // 3 % n_keys
            at, deadline = NOW + i * 1e-3, NOW + 9e3 - i
            line.add(Looked(rows=1, arrived_at=at, deadline=deadline, priority=priority, shape_key=key))
        looked = 0
        for _ in range(8):
            assert line.take(limits, NOW).dispatch
        return looked / 8

    assert looks(4096) <= 1.5 * looks(512)


def test_requests_that_come_and_are_withdrawn_leave_nothing_behind() -> None:
    limits = BatchLimits(max_rows=4)
    line: BatchLine[Queued] = BatchLine(limits, Room(10**6))
    line.add(chunk(deadline=NOW + 1))
    for i in range(5000):
        gone = chunk(at=NOW, deadline=NOW + 5 + i, key=f"key {i}", priority=1 + i % 7)
        line.add(gone)
        line.remove([gone])
    assert len(line._kinds) < 200
    assert len(line._deadlines._heap) < 200
    assert len(line.take(limits, NOW).dispatch) == 1


@pytest.mark.parametrize("bad", [{"max_rows": 0}, {"max_queue_rows": 0}, {"max_delay_s": -1.0}, {"ageing_s": -1.0}])
def test_limits_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        BatchLimits(**{"max_rows": 8, **bad})  # type: ignore[arg-type]
