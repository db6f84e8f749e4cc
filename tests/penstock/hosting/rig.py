"""What tests of queues and replicas share: a virtual clock, and engines and threads that obey a test."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from penstock.errors import Internal
from penstock.hosting.loading import Loaded
from penstock.hosting.replica import EngineReplica, outputs_replica
from penstock.hosting.rows import Tensors
from penstock.policy.service_time import ServiceTime, Timing
from penstock.wire.tensors import Array, TensorSpec
from tests.factories import X

T = TypeVar("T")


class _VirtualSelector(selectors.DefaultSelector):
    """Where the loop would sleep, its clock jumps instead. Threads are not waited for: use :class:`LoopExecutor`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _VirtualSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run_virtual(test: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop whose time passes only while nothing else can happen."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test())


class LoopExecutor(Executor):
    """In place of a replica's thread: runs jobs on the loop, but only while it is open."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[Callable[[], None]] = []
        self._is_open = True

    def close(self) -> None:
        self._is_open = False

    def open(self) -> None:
        self._is_open = True
        for job in self._held:
            self._loop.call_soon(job)
        self._held.clear()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        if self._is_open:
            self._loop.call_soon(job)
        else:
            self._held.append(job)
        return future


@dataclass
class FakeEngine:
    """Doubles its input ``x``; refuses batches that hold a NaN."""

    inputs: tuple[TensorSpec, ...] = (X,)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="y", datatype="FP32", shape=(-1, 4)),)
    batches: list[int] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    is_closed: bool = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(x.shape[0])
        if np.isnan(x.astype(float)).any():
            raise Internal("the model failed: NaN")
        self.seen.extend(float(value) for value in x[:, 0])
        return {"y": x * np.float32(2)}

    def close(self) -> None:
        self.is_closed = True


def loaded_of(
    engine: FakeEngine,
    *,
    max_batch: int = 4,
    one_row_s: float = 1e-4,
    full_batch_s: float = 1e-4,
    service_s: float = 0.0,
    is_batchable: bool = True,
) -> Loaded:
    """An engine and what warm-up is said to have found out."""
    timing = Timing(
        service=ServiceTime(fixed_s=service_s),
        is_batchable=is_batchable,
        one_row_s=one_row_s,
        full_batch_s=full_batch_s,
    )
    return Loaded(engine=engine, timing=timing, max_batch=max_batch)


def replica_of(engine: FakeEngine, *, is_short: bool = True, **timing: Any) -> EngineReplica[Tensors]:
    """A replica whose runs are short enough for the event loop, or so long that every one goes to its thread."""
    return outputs_replica(
        loaded_of(engine, **timing), on_loop_below_s=1000.0 if is_short else 0.0, thread=LoopExecutor()
    )


def rows(*values: float) -> Array:
    """FP32 [len(values), 4], each row filled with one value."""
    return np.repeat(np.array(values, np.float32)[:, None], 4, axis=1)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until ``condition`` holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("never became true")


async def outcome(awaitable: Awaitable[T]) -> T | BaseException:
    """The result, or the error that was raised."""
    return (await asyncio.gather(awaitable, return_exceptions=True))[0]
