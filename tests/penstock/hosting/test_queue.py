"""The queue shell: what leaves when, who is answered when, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, QueueFull, Unavailable
from penstock.hosting.queue import LOOK_EVERY, BatchQueue, Behaviour, is_invalid
from penstock.policy.batch_line import BatchLine
from penstock.policy.batching import BatchLimits, Room
from penstock.policy.run_times import Place
from tests.penstock.hosting.rig import outcome, run_virtual, until

STOPPED = Unavailable("stopped")


class Server:
    """Runs batches of numbers, when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0

    async def run(self, items: Sequence[int], rows: Sequence[int], deadline: float | None) -> list[int]:
        self.batches.append(list(items))
        if not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return [10 * item for item in items]


def make(
    server: Server, *, max_rows: int = 8, room: Room | None = None, max_queue_rows: int = 100, **how: Any
) -> BatchQueue[int, int]:
    limits = BatchLimits(max_rows=max_rows, max_queue_rows=max_queue_rows)
    return BatchQueue(server.run, limits, Behaviour(may_be_one=is_invalid, **how), room=room)


def ask(queue: BatchQueue[int, int], item: int, *, after_s: float | None = None, **more: Any) -> asyncio.Task[int]:
    deadline = None if after_s is None else asyncio.get_running_loop().time() + after_s
    return asyncio.create_task(queue.ask(item, rows=more.pop("rows", 1), deadline=deadline, **more))


async def turn(times: int = 4) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def test_what_comes_in_one_turn_leaves_together_and_no_more_batches_than_may_be_under_way() -> None:
    async def test() -> None:
        server = Server()
        server.gate.clear()
        queue = make(server, max_rows=2, max_in_flight=2)
        tasks = [ask(queue, item) for item in range(7)]
        await turn()
        assert server.batches == [[0, 1], [2, 3]]
        assert (queue.room.rows, queue.running_rows) == (3, 4)
        server.gate.set()
        assert await asyncio.gather(*tasks) == [10 * item for item in range(7)]
        assert server.batches[2:] == [[4, 5], [6]]
        assert queue.is_idle

    run_virtual(test)


def test_a_long_queue_is_worked_off_in_order_though_only_its_front_is_looked_at() -> None:
    async def test() -> None:
        server = Server()
        queue = make(server, max_rows=3, max_queue_rows=1000)
        assert await asyncio.gather(*(ask(queue, 100 + n) for n in range(50))) == [10 * (100 + n) for n in range(50)]
        assert [len(batch) for batch in server.batches] == [3] * 16 + [2]
        assert [item for batch in server.batches for item in batch] == list(range(100, 150))

    run_virtual(test)


def test_one_urgent_request_in_a_long_queue_is_seen() -> None:
    async def test() -> None:
        server = Server()
        server.gate.clear()
        queue = make(server, max_rows=2)
        first = ask(queue, 0)
        await turn()
        tasks = [ask(queue, item) for item in range(1, 20)]
        tasks.append(ask(queue, 99, priority=1))
        await turn()
        server.gate.set()
        await asyncio.gather(first, *tasks)
        assert server.batches[1][0] == 99

    run_virtual(test)


@pytest.mark.parametrize("stops_unwanted", [True, False])
def test_a_batch_that_nobody_waits_for_is_stopped_where_it_can_be(stops_unwanted: bool) -> None:
    async def test() -> None:
        server = Server()
        server.gate.clear()
        queue = make(server, stops_unwanted=stops_unwanted)
        tasks = [ask(queue, item) for item in range(3)]
        await until(lambda: server.batches)
        for task in tasks[:2]:
            task.cancel()
        await turn()
        assert not queue.is_idle
        tasks[2].cancel()
        await turn()
        assert queue.is_idle is stops_unwanted
        assert server.cancelled == int(stops_unwanted)
        server.gate.set()
        await queue.close(STOPPED)

    run_virtual(test)


def test_a_running_batch_goes_on_after_a_members_deadline() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        server = Server()
        server.gate.clear()
        queue = make(server, stops_unwanted=True)
        begun_at = loop.time()
        hurried, hasty = ask(queue, 1, after_s=1.0), ask(queue, 2, after_s=2.0)
        for task, at in ((hurried, 1.0), (hasty, 2.0)):
            late = await outcome(task)
            assert isinstance(late, DeadlineExceeded)
            assert "before the answer came" in late.message
            assert loop.time() - begun_at == pytest.approx(at)
        assert server.cancelled == 0  # it has a deadline of its own, and what it took is worth knowing
        server.gate.set()
        await queue.close(STOPPED)

    run_virtual(test)


def test_room_may_be_shared_and_a_request_larger_than_all_of_it_may_come_when_nobody_else_waits() -> None:
    async def test() -> None:
        server = Server()
        server.gate.clear()
        room = Room(4, "the_setting")
        one, other = make(server, room=room), make(server, room=room)
        tasks = [ask(one, 1)]
        await turn()  # under way: it waits no more
        tasks += [ask(one, 2, rows=2), ask(other, 3)]
        await turn()
        tasks.append(ask(other, 4, rows=2))
        await turn()
        refused = await outcome(ask(one, 5))
        assert isinstance(refused, QueueFull)
        assert "the limit is 4 (the_setting)" in refused.message
        server.gate.set()
        await asyncio.gather(*tasks)
        assert room.rows == 0
        assert await ask(one, 6, rows=9) == 60

    run_virtual(test)


def test_a_lone_caller_does_not_wait_for_a_turn_of_the_loop() -> None:
    async def test() -> None:
        queue = make(Server(), place=lambda items: Place.ON_LOOP)
        for item in range(3 * LOOK_EVERY):
            with pytest.raises(StopIteration):
                queue.ask(item, rows=1).send(None)
            await asyncio.sleep(0)

    run_virtual(test)


def test_a_crowd_is_seen_and_shares_batches_until_it_has_gone() -> None:
    async def test() -> None:
        server = Server()
        queue = make(server, place=lambda items: Place.ON_LOOP)
        for _ in range(LOOK_EVERY):
            await asyncio.gather(*(ask(queue, item) for item in range(4)))
        assert server.batches[-1] == [0, 1, 2, 3]
        await ask(queue, 1)  # the first alone waits for the turn once more
        with pytest.raises(StopIteration):
            queue.ask(2, rows=1).send(None)

    run_virtual(test)


def test_what_costs_less_than_queueing_never_waits_for_company() -> None:
    async def test() -> None:
        server = Server()
        queue = make(server, place=lambda items: Place.AT_ONCE)
        for _ in range(LOOK_EVERY):
            await asyncio.gather(*(ask(queue, item) for item in range(4)))
        assert {len(batch) for batch in server.batches} == {1}

    run_virtual(test)


def test_a_queue_learns_how_many_rows_are_taken() -> None:
    class Narrow(Server):
        async def run(self, items: Sequence[int], rows: Sequence[int], deadline: float | None) -> list[int]:
            if len(items) > 3:
                raise InvalidInput("too many rows")
            return await super().run(items, rows, deadline)

    async def test() -> None:
        server = Narrow()
        queue = make(server)
        await asyncio.gather(*(ask(queue, item) for item in range(8)))
        assert queue.limits.max_rows == 2
        await asyncio.gather(*(ask(queue, item) for item in range(8)))
        assert [len(batch) for batch in server.batches[-4:]] == [2, 2, 2, 2]

    run_virtual(test)


def test_closing_refuses_what_waits_and_stops_or_finishes_what_runs() -> None:
    async def test() -> None:
        for stops, expected in ((True, Unavailable), (False, int)):
            server = Server()
            server.gate.clear()
            queue = make(server, max_rows=1, stops_unwanted=stops)
            running, waiting = ask(queue, 1), ask(queue, 2)
            await until(lambda server=server: server.batches)
            closing = asyncio.create_task(queue.close(STOPPED))
            assert isinstance(await outcome(waiting), Unavailable)
            server.gate.set()
            await closing
            assert isinstance(await outcome(running), expected)
            assert isinstance(await outcome(ask(queue, 3)), Unavailable)
            assert server.batches == [[1]]
            assert queue.is_idle

    run_virtual(test)


def test_a_task_that_is_cancelled_before_its_first_step_leaves_the_queue_usable() -> None:
    async def test() -> None:
        server = Server()
        queue = make(server, stops_unwanted=True)
        gone = ask(queue, 1)
        await turn(2)  # dispatched in the second turn, begun in the third
        assert queue.running_rows == 1
        assert server.batches == []
        gone.cancel()
        assert await ask(queue, 2) == 20
        assert isinstance(await outcome(gone), asyncio.CancelledError | Cancelled)

    run_virtual(test)


def test_a_defect_in_planning_leaves_nobody_waiting_and_liveness_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise KeyError("a defect of ours")

    async def test() -> None:
        queue = make(Server())
        assert queue.is_alive
        monkeypatch.setattr(BatchLine, "take", broken)
        assert isinstance(await outcome(ask(queue, 1)), Internal)
        assert not queue.is_alive
        assert isinstance(await outcome(ask(queue, 2)), Internal)
        assert queue.is_idle
        assert "dead" in repr(queue)

    run_virtual(test)


def test_what_runs_a_batch_and_answers_too_few_fails_it_and_not_the_queue() -> None:
    class Forgetful(Server):
        async def run(self, items: Sequence[int], rows: Sequence[int], deadline: float | None) -> list[int]:
            return (await super().run(items, rows, deadline))[:1]

    async def test() -> None:
        queue = make(Forgetful())
        results = await asyncio.gather(ask(queue, 1), ask(queue, 2), return_exceptions=True)
        assert any(isinstance(result, Internal) for result in results)
        assert await ask(queue, 3) == 30
        assert queue.is_alive

    run_virtual(test)


def test_a_short_batch_that_suspends_after_all_fails_its_callers_and_leaves_none_waiting() -> None:
    async def test() -> None:
        server = Server()
        queue = make(server, place=lambda items: Place.ON_LOOP)
        for _ in range(LOOK_EVERY):  # a crowd, so that the next ones are queued
            await asyncio.gather(*(ask(queue, item) for item in range(4)))
        server.gate.clear()  # against the promise of its place
        refused = await asyncio.gather(*(outcome(ask(queue, item)) for item in range(4)))
        assert [type(error) for error in refused] == [Internal] * 4
        server.gate.set()
        assert queue.is_alive
        assert await ask(queue, 5) == 50

    run_virtual(test)
