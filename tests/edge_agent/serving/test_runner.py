"""The queue in front of the engine: what shares a batch, what never runs, what fails alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from edge_agent.policy.cascade import Decision, Reason
from edge_agent.serving.runner import INLINE_BELOW_S, Runner
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, Unavailable
from penstock.wire.tensors import Array, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
THREAD_S = 1.0
INLINE_S = INLINE_BELOW_S / 2


class Doubling:
    """An engine that doubles its input, refuses rows with a 13, and can be held up."""

    inputs = (X,)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)

    def __init__(self, inputs: tuple[TensorSpec, ...] = (X,)) -> None:
        self.inputs = inputs
        self.batches: list[int] = []
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(len(x))
        self.began.set()
        assert self.gate.wait(10)
        if (x == 13).any():
            raise InvalidInput("thirteen", field="x")
        if (x == 666).any():
            raise ZeroDivisionError("an undocumented failure")
        return {"y": np.asarray(x * np.float32(2))}

    def close(self) -> None:
        self.is_closed = True


def judge(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> tuple[list[float], Decision]:
    first = outputs["y"].reshape(rows, -1)[:, 0]
    return first.tolist(), Decision([bool(value > 10) for value in first], Reason.ESCALATED)


def runner(engine: Doubling, service_time_s: float, *, max_rows: int = 8, can_join: bool = True) -> Runner:
    return Runner(
        engine, judge, can_join=can_join, max_rows=max_rows, max_queue_rows=100, service_time_s=service_time_s
    )


def x(*values: float) -> dict[str, Array]:
    return {"x": np.array([[value, value] for value in values], np.float32)}


BOTH = pytest.mark.parametrize("service_time_s", [INLINE_S, THREAD_S], ids=["inline", "thread"])


def test_a_quick_model_runs_inline_and_a_slow_one_in_a_thread() -> None:
    async def scenario() -> None:
        for service_time_s, is_inline in ((INLINE_S, True), (INLINE_BELOW_S, False), (0.0, False)):
            made = runner(Doubling(), service_time_s)
            assert made.is_inline is is_inline
            await made.close()

    asyncio.run(scenario())


@BOTH
async def test_each_request_gets_its_own_rows_scores_and_decisions(service_time_s: float) -> None:
    engine = Doubling()
    made = runner(engine, service_time_s)
    for _ in range(2):  # the second time around in a crowd from the first request on
        answers = await asyncio.gather(*(made.run(x(*range(n)), n, None, 0) for n in (1, 2, 3, 4)))
        for n, answer in zip((1, 2, 3, 4), answers, strict=True):
            np.testing.assert_array_equal(answer.outputs["y"][:, 0], [2 * i for i in range(n)])
            assert answer.scores == [2 * i for i in range(n)]
            assert answer.decision.is_kept == [2 * i > 10 for i in range(n)]
    assert sum(engine.batches) == 20
    assert len(engine.batches) < 8
    assert max(engine.batches) <= 8
    await made.close()
    assert engine.is_closed


async def test_a_lone_caller_does_not_wait_for_a_turn_of_the_loop() -> None:
    made = runner(Doubling(), INLINE_S)
    coroutine = made.run(x(1), 1, None, 0)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    await made.close()


@BOTH
async def test_one_poisoned_request_does_not_fail_the_others(service_time_s: float) -> None:
    made = runner(Doubling(), service_time_s)
    for poison, error in ((13, InvalidInput), (666, Internal)):
        results = await asyncio.gather(
            *(made.run(x(value), 1, None, 0) for value in (1, 2, poison, 4)), return_exceptions=True
        )
        assert [type(result) is error for result in results] == [False, False, True, False]
        assert all(hasattr(results[index], "scores") for index in (0, 1, 3))
    await made.close()


@BOTH
async def test_more_rows_than_a_batch_may_have_run_in_several(service_time_s: float) -> None:
    engine = Doubling()
    made = runner(engine, service_time_s, max_rows=4)
    answer = await made.run(x(*range(10)), 10, None, 0)
    assert engine.batches == [4, 4, 2]
    assert answer.scores == [2.0 * i for i in range(10)]
    await made.close()


@BOTH
async def test_requests_of_a_fixed_batch_are_never_joined_or_split(service_time_s: float) -> None:
    engine = Doubling()
    made = runner(engine, service_time_s, can_join=False)
    await asyncio.gather(*(made.run(x(1, 2, 3), 3, None, 0) for _ in range(4)))
    assert engine.batches == [3, 3, 3, 3]
    await made.close()


@BOTH
async def test_only_rows_of_one_shape_share_a_batch(service_time_s: float) -> None:
    engine = Doubling((TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),))
    made = runner(engine, service_time_s)
    inputs = [{"x": np.ones((1, width), np.float32)} for width in (2, 3, 2, 3, 2, 3)]
    answers = await asyncio.gather(*(made.run(given, 1, None, 0) for given in inputs))
    assert [answer.outputs["y"].shape[1] for answer in answers] == [2, 3, 2, 3, 2, 3]
    await made.close()


async def test_expired_and_abandoned_requests_never_run() -> None:
    engine = Doubling()
    engine.gate.clear()
    made = runner(engine, 0.001)
    first = asyncio.create_task(made.run(x(1), 1, None, 0))
    await asyncio.to_thread(engine.began.wait, 10)
    loop = asyncio.get_running_loop()
    late = asyncio.create_task(made.run(x(2), 1, loop.time() + 0.02, 0))
    abandoned = asyncio.create_task(made.run(x(3), 1, None, 0))
    patient = asyncio.create_task(made.run(x(4), 1, None, 0))
    with pytest.raises(DeadlineExceeded):
        await late
    abandoned.cancel()
    await asyncio.gather(abandoned, return_exceptions=True)
    engine.gate.set()
    assert (await first).scores == [2.0]
    assert (await patient).scores == [8.0]
    assert engine.batches == [1, 1]
    await made.close()


async def test_a_request_that_cannot_be_done_in_time_is_refused_at_once() -> None:
    engine = Doubling()
    made = runner(engine, THREAD_S)
    with pytest.raises(DeadlineExceeded, match="nothing was executed"):
        await made.run(x(1), 1, asyncio.get_running_loop().time() + 0.5, 0)
    assert engine.batches == []
    await made.close()


async def test_a_higher_priority_overtakes() -> None:
    engine = Doubling()
    engine.gate.clear()
    made = runner(engine, 0.001, max_rows=1)
    first = asyncio.create_task(made.run(x(1), 1, None, 0))
    await asyncio.to_thread(engine.began.wait, 10)
    done: list[str] = []

    async def named(name: str, priority: int) -> None:
        await made.run(x(1), 1, None, priority)
        done.append(name)

    others = [asyncio.create_task(named("normal", 0)), asyncio.create_task(named("urgent", 1))]
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(first, *others)
    assert done == ["urgent", "normal"]
    await made.close()


async def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    engine = Doubling()
    engine.gate.clear()
    made = runner(engine, 0.001)
    running = asyncio.create_task(made.run(x(1), 1, None, 0))
    await asyncio.to_thread(engine.began.wait, 10)
    waiting = asyncio.create_task(made.run(x(2), 1, None, 0))
    await asyncio.sleep(0)
    closing = asyncio.create_task(made.close())
    with pytest.raises(Unavailable, match="being replaced"):
        await waiting
    engine.gate.set()
    assert (await running).scores == [2.0]
    await closing
    assert engine.is_closed
    with pytest.raises(Unavailable):
        await made.run(x(1), 1, None, 0)
    await made.close()
