"""What every replica does, wherever it runs: one suite for all implementations of the port.

One of them exists for this suite alone: it answers in parts, as a generation will.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import Internal, InvalidInput, PenstockError, Unavailable
from penstock.hosting.loading import Loaded
from penstock.hosting.process_replica.replica import ProcessReplica
from penstock.hosting.replica import WELL, Chunk, EngineReplica, Health, Replica, outputs_replica
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import Tensors
from penstock.policy.run_times import Place
from penstock.policy.service_time import ServiceTime, Timing
from penstock.runtime import Engine
from penstock.wire.tensors import Array, TensorSpec
from tests.penstock.hosting.process_replica.workers import scripted_replica
from tests.penstock.hosting.rig import FakeEngine, LoopExecutor, loaded_of, outcome, rows, run_virtual, until

TIMING = Timing(service=ServiceTime(), is_batchable=True, one_row_s=0.0, full_batch_s=0.0)
Answer = dict[str, Array]


class Streaming:
    """A replica that answers each row's count with that many parts."""

    timing = TIMING
    max_batch = 4
    ahead = 0
    is_isolated = False
    disturbed = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._health = WELL
        self.closed_early = 0

    def place(self, chunks: Sequence[Chunk]) -> Place:
        return Place.ELSEWHERE

    async def run(self, chunks: Sequence[Chunk]) -> Sequence[AsyncIterator[Tensors] | PenstockError]:
        if not self._health.is_well:
            raise Unavailable("the server is gone")
        return [
            InvalidInput("inputs: no prompt") if np.isnan(_x(chunk)).any() else self._parts(chunk) for chunk in chunks
        ]

    def health(self) -> Health:
        return self._health

    async def close(self) -> None:
        self._health = Health(False, "closed")
        self._engine.close()

    async def _parts(self, chunk: Chunk) -> AsyncIterator[Tensors]:
        try:
            for array in np.split(self._engine.run(chunk.inputs)["y"], chunk.rows):
                await asyncio.sleep(0)
                yield {"y": array}
        except GeneratorExit:
            self.closed_early += 1
            raise


def _x(chunk: Chunk) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(chunk.inputs["x"], np.float32)


async def whole(answer: Any) -> list[float]:
    """The first column of an answer, put together where it came in parts."""
    parts = [part async for part in answer] if isinstance(answer, AsyncIterator) else [answer]
    return [float(value) for part in parts for value in part["y"][:, 0]]


Make = Callable[[FakeEngine], Awaitable[Replica[Any]]]


@pytest.fixture(params=["on the loop", "in a thread", "in a process", "in parts"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a replica of one form: of an engine, or, in a process, of one that does as :class:`FakeEngine` does."""
    made: list[Replica[Any]] = []

    async def begin(engine: FakeEngine) -> Replica[Any]:
        replica: Replica[Any]
        match request.param:
            case "in a process":
                replica = scripted_replica(tmp_path)
                await replica.start()
            case "in parts":
                replica = Streaming(engine)
            case where:
                replica = outputs_replica(loaded_of(engine), on_loop_below_s=1000.0 if where == "on the loop" else 0.0)
        made.append(replica)
        return replica

    yield begin
    for replica in made:
        await replica.close()


def chunk(*values: float) -> Chunk:
    return Chunk(inputs={"x": rows(*values)}, rows=len(values))


async def test_every_chunk_gets_its_own_answer_in_order(make: Make) -> None:
    replica = await make(FakeEngine())
    answers = await replica.run([chunk(1), chunk(2, 3), chunk(4)])
    assert [await whole(answer) for answer in answers] == [[2], [4, 6], [8]]
    await replica.close()


async def test_a_failure_is_raised_for_all_or_given_to_the_one_it_belongs_to(make: Make) -> None:
    replica = await make(FakeEngine())
    queue = ReplicaQueue(replica, max_queue_rows=100)
    results = await asyncio.gather(
        *(queue.infer(chunk(value)) for value in (1, float("nan"), 3)), return_exceptions=True
    )
    assert isinstance(results[1], PenstockError)
    assert [await whole(results[index]) for index in (0, 2)] == [[2], [6]]
    await queue.close(Unavailable("stopped"))


async def test_what_would_not_run_elsewhere_is_run_without_suspending(make: Make) -> None:
    replica = await make(FakeEngine())
    for _ in range(20):
        if replica.place([chunk(1)]) is Place.ELSEWHERE:
            await replica.run([chunk(1)])
        else:
            with pytest.raises(StopIteration):
                _step(replica.run([chunk(1)]))
    await replica.close()


def _step(awaitable: Awaitable[object]) -> None:
    awaitable.__await__().send(None)  # type: ignore[attr-defined]


async def test_a_closed_replica_says_so_and_runs_nothing(make: Make) -> None:
    engine = FakeEngine()
    replica = await make(engine)
    assert replica.health().is_well
    await replica.close()
    await replica.close()
    assert engine.is_closed if not isinstance(replica, ProcessReplica) else replica.pid is None
    assert not replica.health().is_well
    assert replica.health().why
    with pytest.raises(Unavailable):
        await replica.run([chunk(1)])
    assert engine.batches == []


async def test_it_says_what_it_takes(make: Make) -> None:
    replica = await make(FakeEngine())
    assert replica.max_batch == 4
    assert replica.timing.is_batchable
    await replica.close()


async def test_an_answer_in_parts_may_be_given_up() -> None:
    replica = Streaming(FakeEngine())
    queue: ReplicaQueue[AsyncIterator[Tensors]] = ReplicaQueue(replica, max_queue_rows=100)
    answer = await queue.infer(chunk(1, 2, 3))
    async for part in answer:
        assert part["y"][0, 0] == 2
        break
    await answer.aclose()  # type: ignore[attr-defined]
    assert replica.closed_early == 1
    await queue.close(Unavailable("stopped"))


# -- where an engine's runs happen ------------------------------------------------------------------------------------


class Long(FakeEngine):
    """Quick for a short row. A row of thousands would hold up whichever thread runs it."""

    def __init__(self) -> None:
        super().__init__(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),))


def measured_at_one(engine: FakeEngine) -> Loaded:
    """As warm-up finds a model with free dimensions: very quick, at [1, 1]."""
    return loaded_of(engine, max_batch=1, one_row_s=2e-5, full_batch_s=2e-5)


def test_a_long_input_of_a_model_that_was_measured_at_one_leaves_the_event_loop() -> None:
    async def test() -> None:
        engine = Long()
        thread = LoopExecutor()
        thread.close()  # whatever goes there does not happen yet
        queue = ReplicaQueue(
            outputs_replica(measured_at_one(engine), on_loop_below_s=3e-4, thread=thread), max_queue_rows=100
        )
        one = Chunk(inputs={"x": np.ones((1, 1), np.float32)}, rows=1)
        long = Chunk(inputs={"x": np.ones((1, 6000), np.float32)}, rows=1)
        assert queue.replica.place([one]) is not Place.ELSEWHERE
        waiting = asyncio.create_task(queue.infer(long))
        await until(lambda: queue.running_rows == 1)
        for _ in range(10):  # the loop goes on, and the engine has not been touched in it
            await asyncio.sleep(0)
        assert engine.batches == []
        thread.open()
        assert (await waiting)["y"].shape == (1, 6000)
        await queue.finish(Unavailable("stopped"), 5.0)

    run_virtual(test)


async def test_a_run_that_took_long_sends_the_next_one_of_its_size_to_the_thread() -> None:
    engine = FakeEngine()
    with ThreadPoolExecutor(1) as thread:
        replica = outputs_replica(loaded_of(engine), on_loop_below_s=1e-3, thread=thread)
        assert replica.place([chunk(1)]) is Place.ON_LOOP
        replica._times.observe(4, 0.5)  # as a run does that took half a second
        assert replica.place([chunk(1)]) is Place.ELSEWHERE
        await replica.close()


async def test_what_is_refused_at_once_says_nothing_about_what_is_not() -> None:
    class Refusing(Long):
        def run(self, *args: object, **more: object) -> dict[str, Array]:
            raise InvalidInput("x: too long")

    with ThreadPoolExecutor(1) as thread:
        replica = outputs_replica(measured_at_one(Refusing()), on_loop_below_s=3e-4, thread=thread)
        long = Chunk(inputs={"x": np.ones((1, 6000), np.float32)}, rows=1)
        for _ in range(3):
            assert isinstance(await outcome(replica.run([long])), InvalidInput)
            assert replica.place([long]) is Place.ELSEWHERE
        await replica.close()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)), True),
        (TensorSpec(name="x", datatype="FP32", shape=(-1, -1)), False),
        (TensorSpec(name="x", datatype="BYTES", shape=(-1, 1)), False),
    ],
)
async def test_only_a_model_of_fixed_shapes_is_known_to_be_always_short(spec: TensorSpec, expected: bool) -> None:
    replica = outputs_replica(loaded_of(FakeEngine(inputs=(spec,))), on_loop_below_s=1e-3)
    assert replica.is_always_short is expected
    await replica.close()


async def test_a_model_that_could_not_be_measured_gets_the_thread() -> None:
    replica = outputs_replica(loaded_of(FakeEngine(), one_row_s=0.0, full_batch_s=0.0), on_loop_below_s=10.0)
    assert replica.place([chunk(1)]) is Place.ELSEWHERE
    await replica.close()


async def test_only_wanted_outputs_are_computed() -> None:
    class Recording(FakeEngine):
        wanted: Any = None

        def run(self, inputs: Any, outputs: Any = None) -> dict[str, Array]:
            self.wanted = outputs
            return super().run(inputs)

    engine = Recording()
    replica = outputs_replica(loaded_of(engine), on_loop_below_s=10.0)
    await replica.run([Chunk(inputs={"x": rows(i)}, rows=1, outputs=("y",)) for i in range(2)])
    assert engine.wanted == ("y",)
    await replica.close()


async def test_an_engines_undocumented_failure_is_raised_for_the_caller_to_tell_apart() -> None:
    class Wild(FakeEngine):
        def run(self, *args: object, **more: object) -> dict[str, Array]:
            raise ZeroDivisionError("of a library")

    replica: EngineReplica[Tensors] = outputs_replica(loaded_of(Wild()), on_loop_below_s=10.0)
    queue = ReplicaQueue(replica, max_queue_rows=10)
    error = await outcome(queue.infer(chunk(1)))
    assert isinstance(error, Internal)
    assert "ZeroDivisionError" in error.message
    await queue.close(Unavailable("stopped"))
