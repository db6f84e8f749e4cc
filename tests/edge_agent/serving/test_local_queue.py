"""The device's own variant: batches that are judged where they run, and cut apart with their scores and decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_agent.policy.cascade import Decision, Reason
from edge_agent.serving.local_queue import LocalQueue
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, Unavailable
from penstock.wire.tensors import Array, TensorSpec
from tests.penstock.hosting.rig import FakeEngine, LoopExecutor, loaded_of, outcome, run_virtual, until

SHORT_S = 2e-4
LONG_S = 1.0


def judge(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> tuple[list[float], Decision]:
    first = np.asarray(outputs["y"], np.float32).reshape(rows, -1)[:, 0]
    if (first == 2 * 666).any():
        raise ZeroDivisionError("an undocumented failure")
    return first.tolist(), Decision([bool(value > 10) for value in first], Reason.ESCALATED)


def local(
    engine: FakeEngine, took_s: float = LONG_S, *, max_batch: int = 8, is_batchable: bool = True, service_s: float = 0.0
) -> tuple[LocalQueue, LoopExecutor]:
    loaded = loaded_of(
        engine,
        one_row_s=took_s,
        full_batch_s=took_s,
        max_batch=max_batch if is_batchable else 1,
        is_batchable=is_batchable,
        service_s=service_s,
    )
    thread = LoopExecutor()
    return LocalQueue(loaded, judge, max_queue_rows=100, thread=thread), thread


def x(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value] * 4 for value in values], np.float32)}


BOTH = pytest.mark.parametrize("took_s", [SHORT_S, LONG_S], ids=["on the loop", "in a thread"])


@BOTH
def test_each_request_gets_its_own_rows_scores_and_decisions(took_s: float) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, _ = local(engine, took_s)
        for _ in range(2):  # the second time around in a crowd from the first request on
            answers = await asyncio.gather(*(queue.infer(x(*range(n)), n) for n in (1, 2, 3, 4)))
            for n, answer in zip((1, 2, 3, 4), answers, strict=True):
                assert answer.outputs["y"][:, 0].tolist() == [2 * i for i in range(n)]
                assert answer.scores == [2 * i for i in range(n)]
                assert answer.decision.is_kept == [2 * i > 10 for i in range(n)]
        assert sum(engine.batches) == 20
        assert len(engine.batches) < 8
        assert max(engine.batches) <= 8
        await queue.close()
        assert engine.is_closed

    run_virtual(test)


def test_a_lone_caller_does_not_wait_for_a_turn_of_the_loop() -> None:
    async def test() -> None:
        queue, _ = local(FakeEngine(), SHORT_S)
        with pytest.raises(StopIteration):
            queue.infer(x(1), 1).send(None)
        await queue.close()

    run_virtual(test)


@BOTH
@pytest.mark.parametrize(("poison", "error"), [(float("nan"), Internal), (666, Internal)])
def test_one_poisoned_request_does_not_fail_the_others(took_s: float, poison: float, error: type[Exception]) -> None:
    async def test() -> None:
        queue, _ = local(FakeEngine(), took_s)
        results = await asyncio.gather(
            *(queue.infer(x(value), 1) for value in (1, 2, poison, 4)), return_exceptions=True
        )
        assert [type(result) is error for result in results] == [False, False, True, False]
        assert all(hasattr(results[index], "scores") for index in (0, 1, 3))
        await queue.close()

    run_virtual(test)


@BOTH
def test_more_rows_than_a_batch_may_have_run_in_several(took_s: float) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, _ = local(engine, took_s, max_batch=4)
        answer = await queue.infer(x(*range(10)), 10)
        assert engine.batches == [4, 4, 2]
        assert answer.scores == [2.0 * i for i in range(10)]
        await queue.close()

    run_virtual(test)


@BOTH
def test_requests_of_a_fixed_batch_are_never_joined_or_split(took_s: float) -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, _ = local(engine, took_s, is_batchable=False)
        await asyncio.gather(*(queue.infer(x(1, 2, 3), 3) for _ in range(4)))
        assert engine.batches == [3, 3, 3, 3]
        await queue.close()

    run_virtual(test)


@BOTH
def test_only_rows_of_one_shape_share_a_batch(took_s: float) -> None:
    async def test() -> None:
        engine = FakeEngine((TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),))
        queue, _ = local(engine, took_s)
        inputs = [{"x": np.ones((1, width), np.float32)} for width in (2, 3, 2, 3, 2, 3)]
        answers = await asyncio.gather(*(queue.infer(given, 1) for given in inputs))
        assert [answer.outputs["y"].shape[1] for answer in answers] == [2, 3, 2, 3, 2, 3]
        await queue.close()

    run_virtual(test)


def test_expired_and_abandoned_requests_never_run() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, thread = local(engine)
        thread.close()
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(queue.infer(x(1), 1))
        await asyncio.sleep(0.1)
        late = asyncio.create_task(queue.infer(x(2), 1, loop.time() + 0.02))
        abandoned, patient = (asyncio.create_task(queue.infer(x(value), 1)) for value in (3, 4))
        assert isinstance(await outcome(late), DeadlineExceeded)
        abandoned.cancel()
        await outcome(abandoned)
        thread.open()
        assert (await first).scores == [2.0]
        assert (await patient).scores == [8.0]
        assert engine.batches == [1, 1]
        await queue.close()

    run_virtual(test)


def test_a_request_that_cannot_be_done_in_time_is_refused_at_once() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, _ = local(engine, service_s=1.0)
        with pytest.raises(DeadlineExceeded, match="nothing was executed"):
            await queue.infer(x(1), 1, asyncio.get_running_loop().time() + 0.5)
        assert engine.batches == []
        await queue.close()

    run_virtual(test)


def test_a_higher_priority_overtakes() -> None:
    async def test() -> None:
        engine = FakeEngine()
        queue, thread = local(engine, max_batch=1)
        thread.close()
        first = asyncio.create_task(queue.infer(x(0), 1))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(queue.infer(x(value), 1, None, priority)) for value, priority in ((1, 0), (2, 1))]
        await asyncio.sleep(0.1)
        thread.open()
        await asyncio.gather(first, *others)
        assert engine.seen == [0, 2, 1]
        await queue.close()

    run_virtual(test)


async def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    engine = FakeEngine()
    with ThreadPoolExecutor(1) as thread:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        held = thread.submit(lambda: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result())
        queue = LocalQueue(
            loaded_of(engine, one_row_s=LONG_S, full_batch_s=LONG_S), judge, max_queue_rows=9, thread=thread
        )
        running = asyncio.create_task(queue.infer(x(1), 1))
        await until(lambda: "1 running" in repr(queue))
        waiting = asyncio.create_task(queue.infer(x(2), 1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(queue.close())
        with pytest.raises(Unavailable, match="being replaced"):
            await waiting
        gate.set()
        assert (await running).scores == [2.0]
        await closing
        assert held.done()
    assert engine.is_closed
    with pytest.raises(Unavailable):
        await queue.infer(x(1), 1)
    await queue.close()


async def test_what_the_engine_refuses_is_the_callers_to_mend() -> None:
    class Refusing(FakeEngine):
        def run(self, *args: object, **more: object) -> dict[str, Array]:
            raise InvalidInput("thirteen", field="x")

    queue = LocalQueue(loaded_of(Refusing()), judge, max_queue_rows=9)
    with pytest.raises(InvalidInput, match="thirteen"):
        await queue.infer(x(1), 1)
    await queue.close()
