"""Runs one loaded variant and judges its answers: at once, inside the event loop, when a full batch is quicker than a
thread switch is worth; in one thread of its own otherwise. Concurrent requests share a batch either way.

Owns the queue in front of the engine. Does not know what becomes of an uncertain row, nor who asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edge_agent.policy import admission
from edge_agent.policy.cascade import Decision
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, Unavailable
from penstock.policy.batching import BatchLimits, Queued, plan_batch
from penstock.process.telemetry import log
from penstock.runtime import Engine
from penstock.wire.tensors import Array

INLINE_BELOW_S = 0.0003
"""A full batch quicker than this runs on the event loop: handing it to a thread and back costs about as much."""

LOOK_EVERY = 8
"""A lone caller's requests after which it is looked whether it still is one: a look costs a turn of the event loop."""

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)  # not frozen, like all that is made once a request: freezing costs a microsecond each time
class LocalAnswer:
    """The device's answer to one request: outputs with its rows, a score and a decision for each row."""

    outputs: dict[str, Array]
    scores: list[float]
    decision: Decision


Judge = Callable[[Mapping[str, Array], Mapping[str, Array], int], tuple[list[float], Decision]]
"""Inputs and outputs of a batch and its row count in; score and decision per row out. Called where the engine runs."""


@dataclass(slots=True, eq=False)
class _Chunk:
    inputs: Mapping[str, Array]
    rows: int
    future: asyncio.Future[LocalAnswer]
    shape_key: object


class Runner:
    """The queue and the executor of one variant. All methods are called from the event loop."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        *,
        can_join: bool,
        max_rows: int,
        max_queue_rows: int,
        service_time_s: float,
    ) -> None:
        """
        Args:
            can_join: rows of different requests may share a batch, and a request's rows may be run in several.
            service_time_s: measured time of a full batch; it decides where the engine runs. 0.0 where it could not
                be measured: such a model gets a thread.
        """
        self._engine = engine
        self._judge = judge
        self._loop = asyncio.get_running_loop()
        self._can_join = can_join
        self._has_free_dims = any(-1 in spec.shape[1:] for spec in engine.inputs)
        self._limits = BatchLimits(max_rows=max_rows if can_join else 1, max_queue_rows=max_queue_rows)
        self._service_time_s = service_time_s
        self.is_inline = 0.0 < service_time_s < INLINE_BELOW_S
        self._executor: Executor | None = None if self.is_inline else ThreadPoolExecutor(1, "penstock-model")
        self._turn: list[_Chunk] = []  # inline: what came while the event loop turns
        self._queue: dict[_Chunk, Queued] = {}  # in a thread: what waits, in order of arrival
        self._is_busy = False
        self._is_crowded = False
        self._until_look = 0
        self._is_closed = False

    def __repr__(self) -> str:
        where = "inline" if self.is_inline else "thread"
        return f"Runner({where}, queued={len(self._queue) + len(self._turn)}, busy={self._is_busy})"

    async def run(self, inputs: Mapping[str, Array], rows: int, deadline: float | None, priority: int) -> LocalAnswer:
        """Run one request of ``rows`` checked rows.

        Raises:
            DeadlineExceeded: not begun in time, or (in a thread) not finished in time.
            InvalidInput, Internal: from the engine. Unavailable: closed meanwhile.
        """
        if self._is_closed:
            raise Unavailable("the model is being replaced; try again", retry_after_s=0.1)
        if self.is_inline and not self._is_busy:
            # requests that come in one turn of the event loop share a batch, which runs when the loop has turned;
            # after a turn with one request the next ones are taken for a lone caller's, and run at once
            self._until_look -= 1
            if self._is_crowded or self._until_look <= 0:
                self._is_busy = True
                self._loop.call_soon(self._end_turn)
            if not self._is_crowded:
                return _unwrap(self._answer_one(inputs, rows))
        key = tuple(array.shape[1:] for array in inputs.values()) if self._has_free_dims else None
        chunk = _Chunk(inputs, rows, self._loop.create_future(), key)
        if self.is_inline:
            self._turn.append(chunk)
            return await chunk.future
        return await self._run_queued(chunk, deadline, priority)

    async def _run_queued(self, chunk: _Chunk, deadline: float | None, priority: int) -> LocalAnswer:
        queued = Queued(
            rows=chunk.rows,
            arrived_at=self._loop.time(),
            deadline=deadline,
            priority=priority,
            shape_key=chunk.shape_key,
        )
        self._queue[chunk] = queued
        self._pump()
        try:
            async with asyncio.timeout_at(deadline):
                return await chunk.future
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the model was busy") from None
        finally:
            self._queue.pop(chunk, None)  # the caller went away or ran out of time: nothing of it is executed

    async def close(self) -> None:
        """Refuse what is queued, wait for the batch that runs, release the engine; idempotent."""
        self._is_closed = True
        for chunk in (*self._turn, *self._queue):
            _settle(chunk, Unavailable("the model is being replaced; try again", retry_after_s=0.1))
        self._turn.clear()
        self._queue.clear()
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown)
        self._engine.close()

    def _end_turn(self) -> None:
        """Run everything that came in this turn; order and deadlines do not matter, all of it runs now."""
        self._is_busy = False
        self._is_crowded = len(self._turn) > 1
        self._until_look = LOOK_EVERY
        waiting = [chunk for chunk in self._turn if not chunk.future.done()]
        self._turn = []
        while waiting:
            batch: list[_Chunk] = []
            rest: list[_Chunk] = []
            rows, key = 0, waiting[0].shape_key
            for chunk in waiting:
                fits = not batch or (chunk.shape_key == key and rows + chunk.rows <= self._limits.max_rows)
                (batch if fits else rest).append(chunk)
                rows += chunk.rows if fits else 0
            for chunk, result in zip(batch, self._answer(batch), strict=True):
                _settle(chunk, result)
            waiting = rest

    def _pump(self) -> None:
        if self._is_busy or self._is_closed or self._executor is None:
            return
        batch = self._take_batch()
        if batch:
            self._is_busy = True
            self._loop.run_in_executor(self._executor, self._answer, batch).add_done_callback(
                lambda done: self._finish(batch, done)
            )

    def _finish(self, batch: Sequence[_Chunk], done: asyncio.Future[list[LocalAnswer | PenstockError]]) -> None:
        for chunk, result in zip(batch, done.result(), strict=True):
            _settle(chunk, result)
        self._is_busy = False
        self._pump()

    def _take_batch(self) -> list[_Chunk]:
        """Remove from the queue what runs next, and refuse what has expired."""
        chunks = list(self._queue)
        plan = plan_batch(
            list(self._queue.values()), self._limits, self._loop.time(), service_time_s=self._service_time_s
        )
        for index in plan.expire:
            _settle(chunks[index], admission.expired())
        for index in (*plan.dispatch, *plan.expire):
            del self._queue[chunks[index]]
        return [chunks[index] for index in plan.dispatch]

    def _answer(self, batch: Sequence[_Chunk]) -> list[LocalAnswer | PenstockError]:
        """Run a batch; each chunk gets its answer or its error."""
        if len(batch) == 1:
            return [self._answer_one(batch[0].inputs, batch[0].rows)]
        joined = {name: np.concatenate([chunk.inputs[name] for chunk in batch]) for name in batch[0].inputs}
        result = self._answer_one(joined, sum([chunk.rows for chunk in batch]))
        if isinstance(result, PenstockError):
            # one poisoned request must not fail the others
            return [self._answer_one(chunk.inputs, chunk.rows) for chunk in batch]
        answers: list[LocalAnswer | PenstockError] = []
        start = 0
        for chunk in batch:
            stop = start + chunk.rows
            outputs = {name: array[start:stop] for name, array in result.outputs.items()}
            answers.append(LocalAnswer(outputs, result.scores[start:stop], result.decision.part(start, stop)))
            start = stop
        return answers

    def _answer_one(self, inputs: Mapping[str, Array], rows: int) -> LocalAnswer | PenstockError:
        try:
            outputs = self._run_pieces(inputs, rows)
            scores, decision = self._judge(inputs, outputs, rows)
        except (InvalidInput, Internal) as error:
            return error
        except Exception as error:  # an engine's defect ends one request, not the task that serves them all
            log(_LOG, logging.ERROR, "the engine failed in a way it does not document", exc_info=error)
            return Internal(f"the model failed: {type(error).__name__}: {error}")
        return LocalAnswer(outputs, scores, decision)

    def _run_pieces(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """One run, or as many as ``max_rows`` asks for: a variant's largest batch is a limit of memory."""
        step = self._limits.max_rows
        if rows <= step or not self._can_join:
            return self._engine.run(inputs)
        pieces = [
            self._engine.run({name: array[start : start + step] for name, array in inputs.items()})
            for start in range(0, rows, step)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _unwrap(result: LocalAnswer | PenstockError) -> LocalAnswer:
    if isinstance(result, PenstockError):
        raise result
    return result


def _settle(chunk: _Chunk, result: LocalAnswer | PenstockError) -> None:
    if chunk.future.done():
        return
    if isinstance(result, PenstockError):
        chunk.future.set_exception(result)
    else:
        chunk.future.set_result(result)
