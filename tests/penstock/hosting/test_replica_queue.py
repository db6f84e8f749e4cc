from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DeadlineExceeded, Internal, QueueFull, Unavailable
from penstock.hosting.replica import Chunk, EngineReplica, Health, clock_of
from penstock.hosting.replica_queue import PROBE_AFTER_S, ReplicaQueue
from penstock.hosting.rows import Tensors
from penstock.policy.fair_shares import FairShares
from penstock.policy.run_times import Place
from penstock.policy.service_time import ServiceTime, Timing
from penstock.wire.tensors import Array
from tests.penstock.hosting.rig import FakeEngine, LoopExecutor, outcome, replica_of, rows, run_virtual, until

UNLOADED = Unavailable("the model is being unloaded", retry_after_s=1.0)


def make(
    engine: FakeEngine, *, is_short: bool = False, max_delay_s: float = 0.0, max_queue_rows: int = 1024, **timing: Any
) -> ReplicaQueue[Tensors]:
    replica = replica_of(engine, is_short=is_short, **timing)
    return ReplicaQueue(replica, max_queue_rows=max_queue_rows, max_delay_s=max_delay_s)


def infer(
    queue: ReplicaQueue[Tensors], x: Array, *, after_s: float | None = None, **more: Any
) -> asyncio.Task[Tensors]:
    deadline = None if after_s is None else asyncio.get_running_loop().time() + after_s
    return asyncio.create_task(queue.infer(Chunk(inputs={"x": x}, rows=len(x)), deadline=deadline, **more))


def thread(queue: ReplicaQueue[Tensors]) -> LoopExecutor:
    assert isinstance(queue.replica, EngineReplica)
    assert isinstance(queue.replica.thread, LoopExecutor)
    return queue.replica.thread


def on_thread_that_takes(
    took_s: float, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, **timing: Any
) -> ReplicaQueue[Tensors]:
    """A queue whose batches take that long, by the loop's clock and by the one that durations are taken from."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(time, "perf_counter", loop.time)
    queue = make(engine, **timing)
    monkeypatch.setattr(thread(queue), "_loop", _Later(loop, took_s))
    return queue


class _Later:
    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float) -> None:
        self._loop, self._after_s = loop, after_s

    def call_soon(self, job: Any) -> None:
        self._loop.call_later(self._after_s, job)


async def close(queue: ReplicaQueue[Tensors], engine: FakeEngine) -> None:
    assert await queue.finish(UNLOADED, 5.0)
    assert engine.is_closed


@pytest.mark.parametrize("is_short", [True, False])
def test_chunks_that_wait_together_run_together_and_get_their_own_rows(is_short: bool) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, is_short=is_short)
        answers = await asyncio.gather(*(infer(queue, x) for x in (rows(1), rows(2, 3), rows(4))))
        assert [answer["y"][:, 0].tolist() for answer in answers] == [[2], [4, 6], [8]]
        # on the loop the first one of a turn is taken for a lone caller's
        assert engine.batches == ([1, 3] if is_short else [4])
        await close(queue, engine)

    run_virtual(test)


@pytest.mark.parametrize("is_short", [True, False])
def test_an_idle_replica_starts_at_once(is_short: bool) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, is_short=is_short)
        start = asyncio.get_running_loop().time()
        await infer(queue, rows(1))
        assert asyncio.get_running_loop().time() == start
        await close(queue, engine)

    run_virtual(test)


def test_a_batch_grows_while_the_replica_is_busy() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, max_batch=8)
        thread(queue).close()
        first = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        later = [infer(queue, rows(i)) for i in range(1, 6)]
        await until(lambda: queue.queue_rows == 5)
        thread(queue).open()
        await asyncio.gather(first, *later)
        assert engine.batches == [1, 5]
        await close(queue, engine)

    run_virtual(test)


def test_a_chunk_larger_than_a_batch_goes_alone() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, max_batch=2)
        answer = await infer(queue, rows(1, 2, 3))
        assert answer["y"][:, 0].tolist() == [2, 4, 6]
        assert engine.batches == [3]
        await close(queue, engine)

    run_virtual(test)


def test_different_shape_keys_are_not_merged() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        await asyncio.gather(*(infer(queue, rows(i), shape_key=i % 2) for i in range(4)))
        assert engine.batches == [2, 2]
        await close(queue, engine)

    run_virtual(test)


def test_one_poisoned_request_fails_alone() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        good, bad, fine = (infer(queue, x) for x in (rows(1), rows(float("nan")), rows(3)))
        assert isinstance(await outcome(bad), Internal)
        assert (await good)["y"][0, 0] == 2
        assert (await fine)["y"][0, 0] == 6
        assert engine.batches == [3, 1, 2, 1, 1]
        await close(queue, engine)

    run_virtual(test)


def test_an_engine_that_raises_anything_fails_its_request_and_not_the_queue() -> None:
    class Wild(FakeEngine):
        def run(self, inputs: Any, outputs: Any = None) -> dict[str, Array]:
            if inputs["x"][0, 0] < 0:
                raise ZeroDivisionError("of a library")
            return super().run(inputs, outputs)

    async def test() -> None:
        engine = Wild()
        queue = make(engine)
        assert isinstance(await outcome(infer(queue, rows(-1))), Internal)
        assert (await infer(queue, rows(1)))["y"][0, 0] == 2
        await close(queue, engine)

    run_virtual(test)


def test_a_full_queue_refuses_before_any_work_and_says_when_to_come_back() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, service_s=0.25, max_queue_rows=3)
        thread(queue).close()
        running = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        waiting = infer(queue, rows(1, 2, 3))
        await until(lambda: queue.queue_rows == 3)
        refused = await outcome(infer(queue, rows(9)))
        assert isinstance(refused, QueueFull)
        assert refused.reason == "rejected-saturated"
        assert refused.retry_after_s == pytest.approx(0.5)  # the batch that runs, and the one that waits
        thread(queue).open()
        await asyncio.gather(running, waiting)
        assert 9 not in engine.seen
        await close(queue, engine)

    run_virtual(test)


def test_what_expires_while_the_replica_is_busy_is_answered_on_time_and_never_run() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        thread(queue).close()
        running = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        start = asyncio.get_running_loop().time()
        late = infer(queue, rows(7), after_s=2.0)
        patient = infer(queue, rows(8), after_s=50.0)
        assert isinstance(await outcome(late), DeadlineExceeded)
        assert asyncio.get_running_loop().time() == pytest.approx(start + 2.0, abs=0.1)
        thread(queue).open()
        await asyncio.gather(running, patient)
        assert engine.seen == [0, 8]
        await close(queue, engine)

    run_virtual(test)


def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused_at_once() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, service_s=1.0)
        for after_s in (-1.0, 0.0, 0.5):
            assert isinstance(await outcome(infer(queue, rows(1), after_s=after_s)), DeadlineExceeded)
        assert engine.batches == []
        await infer(queue, rows(1), after_s=1.5)
        await close(queue, engine)

    run_virtual(test)


def test_the_work_ahead_counts_against_a_deadline_unless_it_may_be_overtaken() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, service_s=1.0, max_batch=1)
        thread(queue).close()
        running = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        waiting = [infer(queue, rows(i)) for i in (1, 2, 3)]
        await until(lambda: queue.queue_rows == 3)
        assert isinstance(await outcome(infer(queue, rows(9), after_s=3.5)), DeadlineExceeded)
        urgent = infer(queue, rows(5), after_s=3.5, priority=1)
        await until(lambda: queue.queue_rows == 4)
        thread(queue).open()
        await asyncio.gather(running, urgent, *waiting)
        assert engine.seen == [0, 5, 1, 2, 3]
        await close(queue, engine)

    run_virtual(test)


def test_an_estimate_that_was_too_high_does_not_refuse_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = on_thread_that_takes(0.01, engine, monkeypatch, service_s=100.0)
        assert isinstance(await outcome(infer(queue, rows(0), after_s=1.0)), DeadlineExceeded)
        await asyncio.sleep(PROBE_AFTER_S)
        assert not isinstance(await outcome(infer(queue, rows(1), after_s=1.0)), DeadlineExceeded)
        assert not isinstance(await outcome(infer(queue, rows(2), after_s=1.0)), DeadlineExceeded)
        assert engine.batches == [1, 1]
        assert queue.service.of(1) == pytest.approx(0.01)
        await close(queue, engine)

    run_virtual(test)


def test_a_run_that_fails_does_not_change_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = on_thread_that_takes(0.001, engine, monkeypatch, service_s=10.0)
        for is_probe in (False, True):
            await asyncio.sleep(PROBE_AFTER_S if is_probe else 0.0)
            failed = await outcome(infer(queue, rows(np.nan), after_s=1.0 if is_probe else 100.0))
            assert isinstance(failed, Internal)
            assert queue.service.of(1) == pytest.approx(10.0)
        await queue.close(UNLOADED)

    run_virtual(test)


def test_refusals_do_not_lower_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = on_thread_that_takes(10.0, engine, monkeypatch, service_s=10.0)
        for _ in range(500):
            assert isinstance(await outcome(infer(queue, rows(1), after_s=0.001)), DeadlineExceeded)
        assert engine.batches == []
        assert queue.service.of(1) == pytest.approx(10.0)
        await queue.close(UNLOADED)

    run_virtual(test)


@pytest.mark.parametrize("estimate_s", [0.0, 0.01, 1.0])
def test_under_five_times_the_load_what_is_refused_did_not_wait_and_what_runs_is_wanted(
    estimate_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    took_s, max_batch, after_s = 0.01, 4, 0.05
    capacity = max_batch / took_s

    async def test() -> None:
        engine, now = FakeEngine(), asyncio.get_running_loop().time
        queue = on_thread_that_takes(took_s, engine, monkeypatch, service_s=estimate_s, max_batch=max_batch)
        waited_s: list[float] = []
        answered: list[float] = []
        late: list[float] = []

        async def ask(number: int) -> None:
            arrived_at = now()
            if isinstance(await outcome(infer(queue, rows(number), after_s=after_s)), DeadlineExceeded):
                waited_s.append(now() - arrived_at)
            else:
                answered.append(number)
                late.extend([number] if now() - arrived_at > after_s + 1e-9 else [])

        tasks = []
        for number in range(int(5 * capacity * 4)):  # four seconds
            tasks.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(1 / (5 * capacity))
        await asyncio.gather(*tasks)
        settled = waited_s[len(waited_s) // 4 :]  # the first second may learn what a batch takes
        assert sum(waited == 0.0 for waited in settled) >= 0.95 * len(settled)
        assert not late
        for_nobody = len(engine.seen) - len(answered)
        assert for_nobody <= 0.02 * len(engine.seen)
        assert len(answered) >= 0.9 * capacity * 4 - 2 * max_batch - capacity * (estimate_s == 1.0)
        await close(queue, engine)

    run_virtual(test)


def test_a_cancelled_caller_leaves_the_queue_and_its_rows_are_not_run() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        thread(queue).close()
        running = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        gone, stays = infer(queue, rows(7)), infer(queue, rows(8))
        await until(lambda: queue.queue_rows == 2)
        gone.cancel()
        await until(gone.done)
        assert queue.queue_rows == 1
        thread(queue).open()
        await asyncio.gather(running, stays)
        assert engine.seen == [0, 8]
        await close(queue, engine)

    run_virtual(test)


def test_a_caller_cancelled_while_its_batch_runs_does_not_disturb_the_others() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        thread(queue).close()
        gone, stays = infer(queue, rows(1)), infer(queue, rows(2))
        await until(lambda: queue.running_rows == 2)
        gone.cancel()
        thread(queue).open()
        assert (await stays)["y"][0, 0] == 4
        assert isinstance(await outcome(gone), asyncio.CancelledError)
        await close(queue, engine)

    run_virtual(test)


def test_closing_finishes_what_is_queued_and_takes_in_nothing_more() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, max_batch=1)
        thread(queue).close()
        admitted = [infer(queue, rows(i)) for i in range(3)]
        await until(lambda: queue.outstanding_rows == 3)
        closing = asyncio.create_task(queue.finish(UNLOADED, 5.0))
        await asyncio.sleep(0)
        assert isinstance(await outcome(infer(queue, rows(9))), Unavailable)
        thread(queue).open()
        await asyncio.gather(closing, *admitted)
        assert engine.seen == [0, 1, 2]

    run_virtual(test)


def test_closing_does_not_wait_longer_than_it_is_told() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, max_batch=1)
        thread(queue).close()
        stuck, waiting = infer(queue, rows(0)), infer(queue, rows(1))
        await until(lambda: queue.outstanding_rows == 2)
        await queue.finish(UNLOADED, 3.0)
        assert queue.running_since is not None
        assert isinstance(await outcome(waiting), Unavailable)
        thread(queue).open()
        assert (await stuck)["y"][0, 0] == 0

    run_virtual(test)


def test_a_delay_waits_for_company_but_not_past_its_end() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, max_delay_s=0.5)
        start = asyncio.get_running_loop().time()
        first = infer(queue, rows(1))
        await asyncio.sleep(0.2)
        await asyncio.gather(first, infer(queue, rows(2)))
        assert engine.batches == [2]
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.5, abs=0.01)
        await asyncio.gather(*(infer(queue, rows(i)) for i in range(4)))
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.5, abs=0.01)
        await close(queue, engine)

    run_virtual(test)


def test_a_batch_that_does_not_keep_its_rows_falls_back_to_single_requests() -> None:
    class Summing(FakeEngine):
        def run(self, inputs: Any, outputs: Any = None) -> dict[str, Array]:
            return {"y": super().run(inputs, outputs)["y"].sum(axis=0, keepdims=True)}

    async def test() -> None:
        engine = Summing()
        queue = make(engine)
        answers = await asyncio.gather(infer(queue, rows(1)), infer(queue, rows(2)))
        assert [answer["y"][0, 0] for answer in answers] == [2, 4]
        await close(queue, engine)

    run_virtual(test)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 5), st.floats(0, 0.2), st.sampled_from(["stay", "cancel", "short"]), st.integers(0, 3)
        ),
        min_size=1,
        max_size=30,
    ),
    st.booleans(),
)
def test_every_request_gets_exactly_its_own_answer_or_an_error_and_nothing_is_left(
    arrivals: list[tuple[int, float, str, int]], is_short: bool
) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine, is_short=is_short, max_batch=4, max_queue_rows=20)
        tasks = []
        for number, (count, pause_s, kind, priority) in enumerate(arrivals):
            x = rows(*[number + 1] * count)
            tasks.append(infer(queue, x, after_s=1e-9 if kind == "short" else 10.0, priority=priority))
            if kind == "cancel":
                await asyncio.sleep(0)
                tasks[-1].cancel()
            await asyncio.sleep(pause_s if number % 3 == 0 else 0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, ((count, _, kind, _), result) in enumerate(zip(arrivals, results, strict=True)):
            if isinstance(result, dict):
                assert np.array_equal(result["y"], rows(*[2.0 * (number + 1)] * count))
            else:
                allowed = {"stay": QueueFull, "cancel": asyncio.CancelledError, "short": DeadlineExceeded}
                assert isinstance(result, (allowed[kind], QueueFull))
        await queue.finish(UNLOADED, 5.0)  # a cancelled one may still be running
        assert queue.outstanding_rows == 0
        await close(queue, engine)

    run_virtual(test)


class Far:
    """A replica on a way so long that a full batch is sent on it while one runs. A test lets each run end."""

    max_batch, ahead, disturbed, is_isolated = 4, 1, 0, True
    timing = Timing(service=ServiceTime(), is_batchable=True, one_row_s=0.0, full_batch_s=0.0)

    def __init__(self) -> None:
        self.runs: list[tuple[int, asyncio.Event]] = []

    def place(self, chunks: Sequence[Chunk]) -> Place:
        return Place.ELSEWHERE

    def health(self) -> Health:
        return Health(False, "its worker is being started again", is_brief=True)

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        self.runs.append((len(chunks), asyncio.Event()))
        await self.runs[-1][1].wait()
        return [chunk.inputs for chunk in chunks]

    async def close(self) -> None:
        pass


def test_only_a_full_batch_goes_ahead_and_its_time_begins_when_it_is_its_turn() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        replica = Far()
        queue = ReplicaQueue(replica, max_queue_rows=100)
        first = infer(queue, rows(0))
        await until(lambda: queue.running_rows == 1)
        others = [infer(queue, rows(n)) for n in range(3)]
        await asyncio.sleep(1.0)
        assert [size for size, _ in replica.runs] == [1], "three rows may still become four"
        others += [infer(queue, rows(n)) for n in range(6)]
        await until(lambda: len(replica.runs) == 2)
        await asyncio.sleep(1.0)
        assert [size for size, _ in replica.runs] == [1, 4], "one batch is ahead, and no more"
        assert queue.queue_rows == 5
        assert queue.is_alive, "whatever its worker does"
        began_at = queue.running_since
        replica.runs[0][1].set()
        await first
        assert began_at is not None
        assert queue.running_since == loop.time() > began_at
        for _, may_end in (replica.runs[1], replica.runs[1]):
            may_end.set()
        while not all(one.done() for one in others):
            await asyncio.sleep(0.1)
            for _, may_end in replica.runs:
                may_end.set()
        assert sum(size for size, _ in replica.runs) == 10
        await queue.close(Internal("stopped"))

    run_virtual(test)


class Quick:
    """A replica whose runs cost less than queueing, however busy the machine is."""

    ahead, disturbed, is_isolated = 0, 0, False

    def __init__(self, engine: FakeEngine) -> None:
        self._replica = replica_of(engine)
        self.max_batch, self.timing = self._replica.max_batch, self._replica.timing
        self.run, self.health, self.close = self._replica.run, self._replica.health, self._replica.close

    def place(self, chunks: Sequence[Chunk]) -> Place:
        return Place.AT_ONCE


def test_a_model_that_costs_less_than_queueing_runs_as_the_request_arrives() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = ReplicaQueue(Quick(engine), max_queue_rows=100)
        answers = await asyncio.gather(*(infer(queue, rows(i)) for i in (1, 2)))
        assert [answer["y"][0, 0] for answer in answers] == [2, 4]
        assert engine.batches == [1, 1]
        assert isinstance(await outcome(infer(queue, rows(float("nan")))), Internal)
        assert isinstance(await outcome(infer(queue, rows(1), after_s=-1.0)), DeadlineExceeded)
        assert engine.batches == [1, 1, 1]
        await close(queue, engine)

    run_virtual(test)


def test_a_caller_is_answered_at_its_deadline_though_its_batch_still_runs() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        thread(queue).close()
        hurried, patient = infer(queue, rows(1), after_s=2.0), infer(queue, rows(2))
        start = asyncio.get_running_loop().time()
        assert isinstance(await outcome(hurried), DeadlineExceeded)
        assert asyncio.get_running_loop().time() == pytest.approx(start + 2.0, abs=0.1)
        thread(queue).open()
        assert (await patient)["y"][0, 0] == 4
        await close(queue, engine)

    run_virtual(test)


def test_what_is_late_when_the_run_begins_is_left_out_of_it() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = make(engine)
        thread(queue).close()  # the way to the thread takes longer than anybody thought
        hurried, patient = infer(queue, rows(1, 2), after_s=1.0), infer(queue, rows(3), after_s=9.0)
        await asyncio.sleep(2.0)
        thread(queue).open()
        assert isinstance(await outcome(hurried), DeadlineExceeded)
        assert (await patient)["y"][0, 0] == 6
        assert engine.seen == [3]
        await close(queue, engine)

    run_virtual(test)


def test_a_batch_that_is_late_as_a_whole_is_not_run_and_teaches_nothing() -> None:
    async def test() -> None:
        engine, measured = FakeEngine(), Measured()
        queue = ReplicaQueue(replica_of(engine, is_short=False, service_s=0.5), max_queue_rows=9, measures=measured)
        before = queue.service
        thread(queue).close()
        late = [infer(queue, rows(number), after_s=1.0) for number in (1, 2)]
        await asyncio.sleep(2.0)
        thread(queue).open()
        for answer in late:
            assert isinstance(await outcome(answer), DeadlineExceeded)
        await until(lambda: queue.outstanding_rows == 0)
        assert (engine.batches, measured.rows, queue.service) == ([], [], before)
        await close(queue, engine)

    run_virtual(test)


def test_what_gets_late_while_others_fail_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue = on_thread_that_takes(1.0, engine, monkeypatch)
        poisoned = infer(queue, rows(float("nan")))
        hurried, patient = infer(queue, rows(1), after_s=2.5), infer(queue, rows(2))
        assert isinstance(await outcome(poisoned), Internal)
        assert isinstance(await outcome(hurried), DeadlineExceeded)
        assert (await patient)["y"][0, 0] == 4
        assert engine.seen == [2]  # the batch took until 1.0, the poisoned one alone until 2.0, this one until 3.0
        await close(queue, engine)

    run_virtual(test)


class Measured:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def waited(self, seconds: float) -> None: ...

    def ran(self, rows: int, seconds: float, requests: int) -> None:
        self.rows.append(rows)


def test_the_clock_of_a_loop_goes_on_while_a_callback_runs() -> None:
    import uvloop

    async def test() -> None:
        now, before = clock_of(asyncio.get_running_loop()), asyncio.get_running_loop().time()
        time.sleep(0.02)  # noqa: ASYNC251, a callback that takes long is what this is about
        assert now() >= before + 0.02
        await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() <= now()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())


class Timed:
    """A replica whose runs take time on the virtual clock: a fixed part, and one for each row."""

    max_batch, ahead, disturbed, is_isolated = 16, 0, 0, True
    timing = Timing(
        service=ServiceTime(fixed_s=0.1, per_row_s=0.01), is_batchable=True, one_row_s=0.11, full_batch_s=0.26
    )

    def place(self, chunks: Sequence[Chunk]) -> Place:
        return Place.ELSEWHERE

    async def run(self, chunks: Sequence[Chunk]) -> list[Tensors]:
        await asyncio.sleep(0.1 + 0.01 * sum(chunk.rows for chunk in chunks))
        return [{} for _ in chunks]

    def health(self) -> Health:
        return Health(True)

    async def close(self) -> None:
        pass


async def _asks(queue: ReplicaQueue[Tensors], tenant: str, n_rows: int, waits_s: list[float]) -> None:
    """One caller, who asks again as soon as it is answered."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        chunk = Chunk(inputs={"x": rows(*range(n_rows))}, rows=n_rows)
        await queue.infer(chunk, tenant=tenant)
        waits_s.append(loop.time() - began)


async def _told_of(
    callers: dict[str, int], seconds: float, monkeypatch: pytest.MonkeyPatch, **weights: float
) -> dict[str, list[float]]:
    """Let tenants ask at the same time, and say how long each answer took."""
    monkeypatch.setattr(time, "perf_counter", asyncio.get_running_loop().time)
    queue = ReplicaQueue(Timed(), max_queue_rows=4096, shares=FairShares(lambda tenant: weights.get(tenant, 1.0)))
    told: dict[str, list[float]] = {tenant: [] for tenant in callers}
    asking = [
        asyncio.create_task(_asks(queue, tenant, 1, told[tenant])) for tenant, n in callers.items() for _ in range(n)
    ]
    await asyncio.sleep(seconds)
    for caller in asking:
        caller.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await queue.close(UNLOADED)
    return told


def test_a_small_tenant_waits_about_as_long_beside_ten_times_its_callers_as_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        def p99_s(waits_s: list[float]) -> float:
            return sorted(waits_s)[int(0.99 * len(waits_s))]

        alone = await _told_of({"small": 4}, 60.0, monkeypatch)
        beside = await _told_of({"small": 4, "noisy": 40}, 60.0, monkeypatch)
        assert p99_s(beside["small"]) <= 3 * p99_s(alone["small"])  # in order of arrival it would be five times
        assert p99_s(beside["noisy"]) > p99_s(beside["small"])

    run_virtual(test)


def test_tenants_share_a_replica_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        weights = {"a": 1.0, "b": 2.0, "c": 5.0}
        told = await _told_of(dict.fromkeys(weights, 64), 120.0, monkeypatch, **weights)
        by_weight = [len(told[tenant]) / weight for tenant, weight in weights.items()]
        jain = sum(by_weight) ** 2 / (len(by_weight) * sum(value**2 for value in by_weight))
        assert jain >= 0.95

    run_virtual(test)


def test_a_deadline_is_judged_by_what_goes_before_it_and_not_by_what_others_wait_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        queue = ReplicaQueue(Timed(), max_queue_rows=4096, shares=FairShares())
        noisy = [asyncio.create_task(queue.infer(Chunk(inputs={}, rows=16), tenant="noisy")) for _ in range(100)]
        await asyncio.sleep(0.05)
        await infer(queue, rows(1), after_s=1.0, tenant="small")
        assert isinstance(await outcome(infer(queue, rows(1), after_s=1.0, tenant="noisy")), DeadlineExceeded)
        for task in noisy:
            task.cancel()
        await asyncio.gather(*noisy, return_exceptions=True)
        await queue.close(UNLOADED)

    run_virtual(test)
