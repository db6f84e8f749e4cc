from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_core.serving.batcher import Batcher
from cloud_core.serving.counters import BatchMeasures
from cloud_core.serving.replica import Chunk
from penstock.errors import DeadlineExceeded, Internal, QueueFull, Unavailable
from penstock.policy.batching import BatchLimits
from penstock.wire.tensors import Array
from tests.cloud_core.rig import FakeEngine, LoopExecutor, outcome, replica_of, rows, run_virtual, until


def make(engine: FakeEngine, *, inline: bool = True, service_s: float = 0.0, **limits: Any) -> Batcher:
    replica = replica_of(engine, max_batch=limits.get("max_rows", 4), inline=inline, service_s=service_s)
    now = asyncio.get_running_loop().time
    return Batcher(replica, BatchLimits(**{"max_rows": 4, **limits}), BatchMeasures(), now)


def infer(batcher: Batcher, x: Array, *, after_s: float | None = None, **more: Any) -> asyncio.Task[dict[str, Array]]:
    deadline = None if after_s is None else asyncio.get_running_loop().time() + after_s
    chunk = Chunk(inputs={"x": x}, rows=len(x))
    return asyncio.create_task(batcher.infer(chunk, shape_key=more.pop("shape_key", ()), deadline=deadline, **more))


def thread(batcher: Batcher) -> LoopExecutor:
    assert isinstance(batcher.replica.thread, LoopExecutor)
    return batcher.replica.thread


async def close(batcher: Batcher, engine: FakeEngine) -> None:
    await batcher.close(5.0)
    batcher.replica.close()
    assert engine.is_closed


@pytest.mark.parametrize("inline", [True, False])
def test_chunks_that_wait_together_run_together_and_get_their_own_rows(inline: bool) -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=inline)
        answers = await asyncio.gather(*(infer(batcher, x) for x in (rows(1), rows(2, 3), rows(4))))
        assert [answer["y"][:, 0].tolist() for answer in answers] == [[2], [4, 6], [8]]
        assert engine.batches == [4]
        await close(batcher, engine)

    run_virtual(test)


def test_an_idle_replica_starts_at_once() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine)
        start = asyncio.get_running_loop().time()
        await infer(batcher, rows(1))
        assert asyncio.get_running_loop().time() == start
        await close(batcher, engine)

    run_virtual(test)


def test_a_batch_grows_while_the_replica_is_busy() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, max_rows=8)
        thread(batcher).close()
        first = infer(batcher, rows(0))
        await until(lambda: batcher.running_rows == 1)
        later = [infer(batcher, rows(i)) for i in range(1, 6)]
        await until(lambda: batcher.queue_rows == 5)
        thread(batcher).open()
        await asyncio.gather(first, *later)
        assert engine.batches == [1, 5]
        await close(batcher, engine)

    run_virtual(test)


def test_a_chunk_larger_than_a_batch_goes_alone_and_off_the_loop() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, max_rows=2)
        answer = await infer(batcher, rows(1, 2, 3))
        assert answer["y"][:, 0].tolist() == [2, 4, 6]
        assert engine.batches == [3]
        await close(batcher, engine)

    run_virtual(test)


def test_different_shape_keys_are_not_merged() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine)
        await asyncio.gather(*(infer(batcher, rows(i), shape_key=i % 2) for i in range(4)))
        assert engine.batches == [2, 2]
        await close(batcher, engine)

    run_virtual(test)


def test_one_poisoned_request_fails_alone() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine)
        good, bad, fine = (infer(batcher, x) for x in (rows(1), rows(float("nan")), rows(3)))
        assert isinstance(await outcome(bad), Internal)
        assert (await good)["y"][0, 0] == 2
        assert (await fine)["y"][0, 0] == 6
        assert engine.batches == [3, 1, 1, 1]
        await close(batcher, engine)

    run_virtual(test)


def test_an_engine_that_raises_anything_fails_its_request_and_not_the_batcher() -> None:
    class Wild(FakeEngine):
        def run(self, inputs: Any, outputs: Any = None) -> dict[str, Array]:
            if inputs["x"][0, 0] < 0:
                raise ZeroDivisionError("of a library")
            return super().run(inputs, outputs)

    async def test() -> None:
        engine = Wild()
        batcher = make(engine)
        assert isinstance(await outcome(infer(batcher, rows(-1))), Internal)
        assert (await infer(batcher, rows(1)))["y"][0, 0] == 2
        await close(batcher, engine)

    run_virtual(test)


def test_a_full_queue_refuses_before_any_work_and_says_when_to_come_back() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, service_s=0.25, max_queue_rows=3)
        thread(batcher).close()
        running = infer(batcher, rows(0))
        await until(lambda: batcher.running_rows == 1)
        waiting = infer(batcher, rows(1, 2, 3))
        await until(lambda: batcher.queue_rows == 3)
        refused = await outcome(infer(batcher, rows(9)))
        assert isinstance(refused, QueueFull)
        assert refused.reason == "rejected-saturated"
        assert refused.retry_after_s == pytest.approx(0.25)
        thread(batcher).open()
        await asyncio.gather(running, waiting)
        assert 9 not in engine.seen
        await close(batcher, engine)

    run_virtual(test)


def test_what_expires_while_the_replica_is_busy_is_answered_on_time_and_never_run() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False)
        thread(batcher).close()
        running = infer(batcher, rows(0))
        await until(lambda: batcher.running_rows == 1)
        start = asyncio.get_running_loop().time()
        late = infer(batcher, rows(7), after_s=2.0)
        patient = infer(batcher, rows(8), after_s=50.0)
        assert isinstance(await outcome(late), DeadlineExceeded)
        assert asyncio.get_running_loop().time() == pytest.approx(start + 2.0, abs=0.1)
        thread(batcher).open()
        await asyncio.gather(running, patient)
        assert engine.seen == [0, 8]
        await close(batcher, engine)

    run_virtual(test)


def test_a_deadline_that_has_passed_or_cannot_be_met_is_refused_at_once() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, service_s=1.0)
        for after_s in (-1.0, 0.0, 0.5):
            assert isinstance(await outcome(infer(batcher, rows(1), after_s=after_s)), DeadlineExceeded)
        assert engine.batches == []
        await infer(batcher, rows(1), after_s=1.5)
        await close(batcher, engine)

    run_virtual(test)


def test_the_work_ahead_counts_against_a_deadline_unless_it_may_be_overtaken() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, service_s=1.0, max_rows=1)
        thread(batcher).close()
        running = infer(batcher, rows(0))
        await until(lambda: batcher.running_rows == 1)
        waiting = [infer(batcher, rows(i)) for i in (1, 2, 3)]
        await until(lambda: batcher.queue_rows == 3)
        assert isinstance(await outcome(infer(batcher, rows(9), after_s=3.5)), DeadlineExceeded)
        urgent = infer(batcher, rows(5), after_s=3.5, priority=1)
        await until(lambda: batcher.queue_rows == 4)
        thread(batcher).open()
        await asyncio.gather(running, urgent, *waiting)
        assert engine.seen == [0, 5, 1, 2, 3]
        await close(batcher, engine)

    run_virtual(test)


def test_an_estimate_that_was_too_high_does_not_refuse_for_ever() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, service_s=100.0)
        for attempt in range(1000):
            if not isinstance(await outcome(infer(batcher, rows(attempt), after_s=1.0)), DeadlineExceeded):
                break
        assert engine.batches == [1]
        await close(batcher, engine)

    run_virtual(test)


def test_a_cancelled_caller_leaves_the_queue_and_its_rows_are_not_run() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False)
        thread(batcher).close()
        running = infer(batcher, rows(0))
        await until(lambda: batcher.running_rows == 1)
        gone, stays = infer(batcher, rows(7)), infer(batcher, rows(8))
        await until(lambda: batcher.queue_rows == 2)
        gone.cancel()
        await until(gone.done)
        assert batcher.queue_rows == 1
        thread(batcher).open()
        await asyncio.gather(running, stays)
        assert engine.seen == [0, 8]
        await close(batcher, engine)

    run_virtual(test)


def test_a_caller_cancelled_while_its_batch_runs_does_not_disturb_the_others() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False)
        thread(batcher).close()
        gone, stays = infer(batcher, rows(1)), infer(batcher, rows(2))
        await until(lambda: batcher.running_rows == 2)
        gone.cancel()
        thread(batcher).open()
        assert (await stays)["y"][0, 0] == 4
        assert isinstance(await outcome(gone), asyncio.CancelledError)
        await close(batcher, engine)

    run_virtual(test)


def test_closing_finishes_what_is_queued_and_takes_in_nothing_more() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, max_rows=1)
        thread(batcher).close()
        admitted = [infer(batcher, rows(i)) for i in range(3)]
        await until(lambda: batcher.outstanding_rows == 3)
        closing = asyncio.create_task(batcher.close(5.0))
        await asyncio.sleep(0)
        assert isinstance(await outcome(infer(batcher, rows(9))), Unavailable)
        thread(batcher).open()
        await asyncio.gather(closing, *admitted)
        assert engine.seen == [0, 1, 2]
        batcher.replica.close()

    run_virtual(test)


def test_closing_does_not_wait_longer_than_it_is_told() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=False, max_rows=1)
        thread(batcher).close()
        stuck, waiting = infer(batcher, rows(0)), infer(batcher, rows(1))
        await until(lambda: batcher.outstanding_rows == 2)
        await batcher.close(3.0)
        assert batcher.running_since is not None
        assert isinstance(await outcome(waiting), Unavailable)
        thread(batcher).open()
        assert (await stuck)["y"][0, 0] == 0
        batcher.replica.close()

    run_virtual(test)


def test_a_delay_waits_for_company_but_not_past_its_end() -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, max_delay_s=0.5)
        start = asyncio.get_running_loop().time()
        first = infer(batcher, rows(1))
        await asyncio.sleep(0.2)
        await asyncio.gather(first, infer(batcher, rows(2)))
        assert engine.batches == [2]
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.5, abs=0.01)
        await asyncio.gather(*(infer(batcher, rows(i)) for i in range(4)))
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.5, abs=0.01)
        await close(batcher, engine)

    run_virtual(test)


def test_a_batch_that_does_not_keep_its_rows_falls_back_to_single_requests() -> None:
    class Summing(FakeEngine):
        def run(self, inputs: Any, outputs: Any = None) -> dict[str, Array]:
            return {"y": super().run(inputs, outputs)["y"].sum(axis=0, keepdims=True)}

    async def test() -> None:
        engine = Summing()
        batcher = make(engine)
        answers = await asyncio.gather(infer(batcher, rows(1)), infer(batcher, rows(2)))
        assert [answer["y"][0, 0] for answer in answers] == [2, 4]
        await close(batcher, engine)

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
    arrivals: list[tuple[int, float, str, int]], inline: bool
) -> None:
    async def test() -> None:
        engine = FakeEngine()
        batcher = make(engine, inline=inline, max_rows=4, max_queue_rows=20)
        tasks = []
        for number, (count, pause_s, kind, priority) in enumerate(arrivals):
            x = rows(*[number + 1] * count)
            tasks.append(infer(batcher, x, after_s=1e-9 if kind == "short" else 10.0, priority=priority))
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
        await batcher.close(5.0)  # a cancelled one may still be running
        assert batcher.outstanding_rows == 0
        await close(batcher, engine)

    run_virtual(test)


def test_a_model_that_costs_less_than_queueing_runs_as_the_request_arrives() -> None:
    async def test() -> None:
        engine = FakeEngine()
        replica = replica_of(engine, one_row_s=1e-6)
        batcher = Batcher(replica, BatchLimits(max_rows=4), BatchMeasures(), asyncio.get_running_loop().time)
        assert replica.is_immediate
        answers = await asyncio.gather(*(infer(batcher, rows(i)) for i in (1, 2)))
        assert [answer["y"][0, 0] for answer in answers] == [2, 4]
        assert engine.batches == [1, 1]
        assert isinstance(await outcome(infer(batcher, rows(float("nan")))), Internal)
        assert isinstance(await outcome(infer(batcher, rows(1), after_s=-1.0)), DeadlineExceeded)
        assert engine.batches == [1, 1, 1]
        thread(batcher).close()  # a chunk larger than a batch is still run elsewhere, and what comes then waits for it
        large = infer(batcher, rows(*range(5)))
        await until(lambda: batcher.running_rows == 5)
        small = infer(batcher, rows(7))
        await until(lambda: batcher.queue_rows == 1)
        thread(batcher).open()
        await asyncio.gather(large, small)
        assert engine.batches == [1, 1, 1, 5, 1]
        await close(batcher, engine)

    run_virtual(test)
