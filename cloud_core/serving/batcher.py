"""The queue before one replica, and the one task that owns it.

Bounded; batches form while the replica is busy; what is too late is refused and never run; what its caller gave up is
taken out. Which chunks run together is ``penstock.policy.batching``'s decision, whether a deadline can be met
``policy.admission``'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cloud_core.policy.admission import Backlog, check_deadline, expected_answer_at
from cloud_core.serving.counters import BatchMeasures
from cloud_core.serving.replica import Chunk, Outcome, Replica
from penstock.errors import DeadlineExceeded, Internal, PenstockError, QueueFull, Unavailable
from penstock.policy.batching import BatchLimits, Queued, overdue, plan_batch
from penstock.process.telemetry import log
from penstock.wire.tensors import Array

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    chunk: Chunk
    arrived_at: float
    future: asyncio.Future[dict[str, Array]]


class Batcher:
    """``queue_rows`` wait and ``running_rows`` run. Everything here happens on the event loop's thread."""

    def __init__(
        self, replica: Replica, limits: BatchLimits, measures: BatchMeasures, now: Callable[[], float]
    ) -> None:
        self.replica, self.limits = replica, limits
        self.service = replica.timing.service  # followed as batches are measured
        self._immediate_rows = replica.inline_rows if replica.is_immediate and limits.max_delay_s == 0.0 else 0
        self.queue_rows = self.running_rows = 0
        self.running_since: float | None = None
        self._measures, self._now = measures, now
        self._queue: list[Queued] = []  # the planner's view of ``_entries``: same length, same order
        self._entries: list[_Entry] = []
        self._wake = asyncio.Event()
        self._wake_at: float | None = None
        self._is_closing = False
        self._task = asyncio.create_task(self._guarded(), name=f"batcher {id(self):x}")

    def __repr__(self) -> str:
        state = "closing" if self._is_closing else "running" if self.running_since is not None else "idle"
        waiting = f"{len(self._queue)} chunks, {self.queue_rows} rows queued"
        return f"Batcher({waiting}, {self.running_rows} running, {state})"

    @property
    def outstanding_rows(self) -> int:
        return self.queue_rows + self.running_rows

    @property
    def is_alive(self) -> bool:
        """Whether the task that owns the queue is there to look at it."""
        return not self._task.done() or self._is_closing

    def check_room(self, rows: int = 1) -> None:
        """
        Raises:
            QueueFull: no room for ``rows`` more.
        """
        limit = self.limits.max_queue_rows
        if self.queue_rows + rows > limit:
            raise QueueFull(
                f"the queue holds {self.queue_rows} rows of at most {limit}",
                retry_after_s=self.service.of(self.queue_rows),
            )

    async def infer(
        self, chunk: Chunk, *, shape_key: Hashable, deadline: float | None, priority: int = 0
    ) -> dict[str, Array]:
        """Queue a chunk and wait for its outputs. A caller that is cancelled leaves nothing in the queue.

        Raises:
            QueueFull, Unavailable: not taken in. DeadlineExceeded: not run. InvalidInput, Internal: from the engine.
        """
        if self._is_closing:
            raise Unavailable("the model is being unloaded", retry_after_s=1.0)
        self.check_room(chunk.rows)
        now = self._now()
        is_idle = self.running_since is None and not self._queue
        if deadline is not None and (not is_idle or now + self.service.of(chunk.rows) > deadline):
            self._check_deadline(chunk.rows, deadline, priority, now)
        if is_idle and chunk.rows <= self._immediate_rows:
            return self._run_now(chunk, now)
        queued = Queued(rows=chunk.rows, arrived_at=now, deadline=deadline, priority=priority, shape_key=shape_key)
        entry = _Entry(chunk, now, asyncio.get_running_loop().create_future())
        self._queue.append(queued)
        self._entries.append(entry)
        self.queue_rows += chunk.rows
        # while a batch runs nothing can be dispatched, so only a deadline before the next look is worth a wake-up
        if self.running_since is None or (deadline is not None and (self._wake_at is None or deadline < self._wake_at)):
            self._wake.set()
        try:
            return await entry.future
        except asyncio.CancelledError:
            self._withdraw(entry)
            raise

    def _run_now(self, chunk: Chunk, arrived_at: float) -> dict[str, Array]:
        """A batch of one, without a queue: nothing waits, and its row is answered before it could be queued."""
        (outcome,) = self.replica.run([chunk])
        self._measure(chunk.rows, arrived_at)
        self._measures.queue_s.observe(0.0)
        if isinstance(outcome, PenstockError):
            raise outcome
        return outcome

    async def close(self, timeout_s: float) -> None:
        """Take in nothing more, finish what is queued within ``timeout_s``, and stop."""
        self._is_closing = True
        self._wake.set()
        _, late = await asyncio.wait([self._task], timeout=timeout_s)
        for task in late:
            task.cancel()
            await asyncio.wait([task])
        self._fail_all(lambda: Unavailable("the model was unloaded before the request ran", retry_after_s=1.0))

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if self._queue:
                if self.running_since is not None:
                    self._expire_while_busy()
                elif self._step():
                    if self._queue:
                        await asyncio.sleep(0)  # answers leave, and what has arrived meanwhile joins the next batch
                    continue
            elif self._is_closing and self.running_since is None:
                return
            else:
                self._wake_at = None
            await self._wake_or(self._wake_at)

    def _step(self) -> bool:
        """Plan, expire, dispatch; whether anything was dispatched."""
        service_s = self.service.of(min(self.queue_rows, self.limits.max_rows))
        plan = plan_batch(self._queue, self.limits, self._now(), service_time_s=service_s)
        self._wake_at = plan.wake_at
        if not plan.dispatch and not plan.expire:
            return False
        entries = self._entries
        late = [entries[index] for index in plan.expire]
        batch = [entries[index] for index in plan.dispatch]
        self._remove((*plan.expire, *plan.dispatch))
        self._expire(late)
        if batch:
            self._dispatch(batch)
        return bool(batch)

    def _dispatch(self, batch: list[_Entry]) -> None:
        chunks = [entry.chunk for entry in batch]
        rows = sum([chunk.rows for chunk in chunks])
        start = self._now()
        if rows <= self.replica.inline_rows:
            self._finish(batch, self.replica.run(chunks), rows, start)
            return
        self.running_since, self.running_rows = start, rows
        run = asyncio.get_running_loop().run_in_executor(self.replica.thread, self.replica.run, chunks)
        run.add_done_callback(lambda done: self._returned(done, batch, rows, start))

    def _returned(self, done: asyncio.Future[list[Outcome]], batch: list[_Entry], rows: int, start: float) -> None:
        self.running_since, self.running_rows = None, 0
        if done.cancelled():
            outcomes: list[Outcome] = [Unavailable("the model was unloaded", retry_after_s=1.0) for _ in batch]
        elif (error := done.exception()) is not None:
            log(_log, logging.ERROR, "batch failed outside of the engine", exc_info=error)
            outcomes = [Internal(f"the batch failed: {error}") for _ in batch]
        else:
            outcomes = done.result()
        self._finish(batch, outcomes, rows, start)
        self._wake.set()

    def _finish(self, batch: list[_Entry], outcomes: list[Outcome], rows: int, start: float) -> None:
        self._measure(rows, start)
        queue_s = self._measures.queue_s
        for entry, outcome in zip(batch, outcomes, strict=True):
            queue_s.observe(start - entry.arrived_at)
            _settle(entry.future, outcome)

    def _measure(self, rows: int, start: float) -> None:
        took_s = self._now() - start
        if rows > self.replica.inline_rows:  # what runs inline is too short for any deadline to depend on it
            self.service = self.service.observed(rows, took_s)
        self._measures.rows.observe(rows)
        self._measures.run_s.observe(took_s)

    def _check_deadline(self, rows: int, deadline: float, priority: int, now: float) -> None:
        service = self.service
        busy_until = None if self.running_since is None else self.running_since + service.of(self.running_rows)
        # a priority of its own may overtake all that waits: only what surely comes first counts against it
        waiting = 0 if priority else self.queue_rows
        backlog = Backlog(rows=waiting, max_batch_rows=self.limits.max_rows, busy_until=busy_until)
        try:
            check_deadline(expected_answer_at(backlog, rows, service, now), deadline, now)
        except DeadlineExceeded:
            if deadline > now:
                self.service = service.doubted()
            raise

    def _expire_while_busy(self) -> None:
        # on time alone: how long the batch that runs will still take is a guess, and it is too late to act on one
        late = overdue(self._queue, self._now())
        entries = [self._entries[index] for index in late]
        self._remove(late)
        self._expire(entries)
        self._wake_at = min((item.deadline for item in self._queue if item.deadline is not None), default=None)

    def _expire(self, entries: list[_Entry]) -> None:
        for entry in entries:
            message = "the deadline passed, or could not be met any more, while the request waited; it was not executed"
            _settle(entry.future, DeadlineExceeded(message))

    def _withdraw(self, entry: _Entry) -> None:
        for index, other in enumerate(self._entries):
            if other is entry:
                self._remove((index,))
                return

    def _remove(self, indices: tuple[int, ...]) -> None:
        if len(indices) == len(self._queue):
            self._queue, self._entries, self.queue_rows = [], [], 0
            return
        gone = set(indices)
        self.queue_rows -= sum([self._queue[index].rows for index in gone])
        self._queue = [item for index, item in enumerate(self._queue) if index not in gone]
        self._entries = [entry for index, entry in enumerate(self._entries) if index not in gone]

    async def _wake_or(self, at: float | None) -> None:
        if at is None:
            await self._wake.wait()
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, at - self._now()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _guarded(self) -> None:
        try:
            await self._run()
        except Exception as error:  # a defect of ours: nobody may wait for ever, and liveness must tell
            log(_log, logging.ERROR, "batcher died", exc_info=error)
            reason = f"the batcher died: {error}"
            self._fail_all(lambda: Internal(reason))

    def _fail_all(self, error: Callable[[], PenstockError]) -> None:
        entries, self._entries, self._queue, self.queue_rows = self._entries, [], [], 0
        for entry in entries:
            _settle(entry.future, error())


def _settle(future: asyncio.Future[dict[str, Array]], outcome: Outcome) -> None:
    if future.done():  # its caller was cancelled while the batch ran
        return
    if isinstance(outcome, PenstockError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
