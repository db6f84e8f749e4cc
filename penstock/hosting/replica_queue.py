"""The queue before one replica: refuses what cannot be answered in time, and follows how long batches take.

For a core's replica and for a device's variant alike. Which chunks run together is ``penstock.policy.batch_line``'s
decision, whether a deadline can be met ``penstock.policy.service_time``'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Hashable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from penstock.errors import DeadlineExceeded, PenstockError
from penstock.hosting.queue import BatchQueue, Behaviour
from penstock.hosting.replica import Chunk, Replica
from penstock.hosting.run_notes import BatchNote
from penstock.policy.batch_closing import closed_by
from penstock.policy.batching import BatchLimits
from penstock.policy.fair_shares import FairShares
from penstock.policy.service_time import Backlog, check_deadline, drained_after_s, expected_answer_at

PROBE_AFTER_S = 1.0
"""An idle replica whose last measurement is older takes a request that its estimate would refuse. What is refused is
never measured, so one slow spell would keep all out for good. Nothing else lowers an estimate: under overload it would
fall with every refusal.
"""

_MARGIN = 0.1  # of the time to an answer: an estimate that is met exactly is missed half of the time

A = TypeVar("A")


class Measures(Protocol):
    """Who is told what batches did. Durations are in seconds; a batch has the rows of so many requests."""

    def waited(self, seconds: float) -> None: ...
    def ran(self, rows: int, seconds: float, requests: int) -> None: ...


class ReplicaQueue(Generic[A]):
    """One replica and the requests before it. Everything here happens on the event loop."""

    def __init__(
        self,
        replica: Replica[A],
        *,
        max_queue_rows: int,
        max_delay_s: float = 0.0,
        measures: Measures | None = None,
        shares: FairShares | None = None,
    ) -> None:
        """``shares``: of tenants in the time of this replica; None where nobody tells them apart."""
        self.replica = replica
        self._shares = shares
        self.service = replica.timing.service  # followed as batches are measured
        self._measures = measures
        self._loop = asyncio.get_running_loop()
        self._measured_at, self._is_probing = self._loop.time(), False
        self._landed_at = self._freed_at = 0.0  # when the last run was over, by the loop and by perf_counter
        self._queue: BatchQueue[Chunk, A] = BatchQueue(
            self._run,
            BatchLimits(max_rows=replica.max_batch, max_delay_s=max_delay_s, max_queue_rows=max_queue_rows),
            Behaviour(
                ahead=replica.ahead,
                place=replica.place,
                service_s=self._service_s,
                check_deadline=self._check_deadline,
                waited=None if measures is None else measures.waited,
                charged=_note_charge,
                drained_after_s=self.drained_after_s,
            ),
            shares=shares,
        )

    def __repr__(self) -> str:
        return f"ReplicaQueue({self.replica!r}, {self._queue!r})"

    @property
    def queue_rows(self) -> int:
        """Rows that wait."""
        return self._queue.room.rows

    @property
    def running_rows(self) -> int:
        """Rows that run."""
        return self._queue.running_rows

    @property
    def outstanding_rows(self) -> int:
        """Rows that wait or run."""
        return self._queue.room.rows + self._queue.running_rows

    @property
    def running_since(self) -> float | None:
        """Say when the batch that runs began, on the event loop's clock: one that was ahead, when it was its turn."""
        since = self._queue.running_since
        return None if since is None else max(since, self._landed_at)

    @property
    def is_alive(self) -> bool:
        """Say whether somebody looks at the queue, and the replica can answer or sees to itself."""
        return self._queue.is_alive and (self.replica.is_isolated or self.replica.health().is_well)

    def check_room(self, rows: int = 1, tenant: str = "") -> None:
        """
        Raises:
            QueueFull: no room for ``rows`` more, or the tenant waits with as many as it may.
        """
        self._queue.check_room(rows, tenant)

    def drained_after_s(self) -> float:
        """Estimate how long it takes until what waits and what runs here is done; 0.0 where nothing does."""
        return drained_after_s(self._backlog(self._queue.room.rows), self.service, self._loop.time())

    def infer(
        self,
        chunk: Chunk,
        *,
        shape_key: Hashable = None,
        deadline: float | None = None,
        priority: int = 0,
        tenant: str = "",
    ) -> Coroutine[Any, Any, A]:
        """Queue a chunk and wait for its answer. A caller that is cancelled leaves nothing in the queue.

        Raises:
            QueueFull, Unavailable: not taken in. DeadlineExceeded: not run, or not done in time.
            InvalidInput, Internal: from the replica.
        """
        if deadline is not None:
            chunk.deadline = deadline
        if self._shares is not None:
            chunk.tenant = tenant
        return self._queue.ask(
            chunk, rows=chunk.rows, deadline=deadline, priority=priority, shape_key=shape_key, tenant=tenant
        )

    async def finish(self, error: PenstockError, timeout_s: float) -> bool:
        """Run what is queued for at most ``timeout_s``, refuse the rest, and close the replica if nothing runs then.

        Returns:
            Whether the replica could be closed: what runs in a thread cannot be stopped, a process can.
        """
        await self._queue.finish(error, timeout_s)
        if self._queue.running_rows and not self.replica.is_isolated:
            return False
        await self.replica.close()
        return True

    async def close(self, error: PenstockError) -> None:
        """Refuse what is queued with ``error``, wait for the batch that runs, and close the replica; idempotent."""
        await self._queue.close(error)
        await self.replica.close()

    async def _run(
        self, chunks: Sequence[Chunk], rows: Sequence[int], deadline: float | None
    ) -> Sequence[A | PenstockError]:
        started_at, has_answered, total = time.perf_counter(), False, sum(rows)
        replica, disturbed = self.replica, self.replica.disturbed
        # observers come and go with a server, not with a request: the first one speaks for all
        batch = None if chunks[0].note is None else self._noted(chunks, started_at, total)
        try:
            answers = await replica.run(chunks)
            # what was late when the run began, or found no worker, was left out of it
            total -= sum([n for n, a in zip(rows, answers, strict=False) if isinstance(a, PenstockError)])
            has_answered = total > 0 and replica.disturbed == disturbed
            return answers
        finally:
            ended_at = time.perf_counter()
            took_s = ended_at - max(started_at, self._freed_at)  # while it was ahead, another one ran
            self._freed_at = ended_at
            if replica.ahead:
                self._landed_at = self._loop.time()
            if batch is not None:
                batch.took_s = took_s
            if self._shares is not None:
                self._settle(self._shares, chunks, took_s if total else 0.0)
            if self._measures is not None and total:
                self._measures.ran(total, took_s, len(chunks))
            is_probe, self._is_probing = self._is_probing, False
            # what fails may fail early, and says nothing about what an answer takes
            if has_answered and is_probe:
                self.service = self.service.corrected(total, took_s)
                self._measured_at = self._loop.time()
            elif has_answered and not self._queue.is_idle:  # at once: no deadline depends on it
                self.service = self.service.observed(total, took_s)
                self._measured_at = self._loop.time()

    def _settle(self, shares: FairShares, chunks: Sequence[Chunk], took_s: float) -> None:
        """Charge tenants what their rows took, instead of what they should have taken."""
        a_row_s = took_s / sum([chunk.rows for chunk in chunks])
        for chunk in chunks:
            shares.correct(chunk.tenant, chunk.rows * a_row_s - chunk.charged_s)
            chunk.charged_s = 0.0  # of a batch that failed, each half runs again

    def _noted(self, chunks: Sequence[Chunk], began_at: float, rows: int) -> BatchNote:
        """Note in each chunk which batch it runs in."""
        notes = [chunk.note for chunk in chunks if chunk.note is not None]
        waited_s = began_at - min([note.queued_at for note in notes])
        closed = closed_by(rows, self._queue.room.rows, self._queue.limits, waited_s)
        batch = BatchNote(began_at=began_at, rows=rows, requests=len(chunks), closed_by=closed)
        for note in notes:
            note.batch = batch
        return batch

    def _service_s(self, rows: int) -> float:
        return 0.0 if self._is_probing else self.service.of(rows)

    def _backlog(self, rows: int) -> Backlog:
        since = self.running_since
        busy_until = None if since is None else since + self.service.of(self._queue.running_rows)
        return Backlog(rows=rows, max_batch_rows=self._queue.limits.max_rows, busy_until=busy_until)

    def _check_deadline(self, rows: int, deadline: float, priority: int, tenant: str, now: float) -> None:
        # row by row is the dearest way to run what is ahead: who has time for that need not be looked at closer
        if now + (self.outstanding_rows + rows) * self.service.of(1) <= deadline:
            return
        # a priority of its own may overtake all that waits: only what surely comes first counts against it
        backlog = self._backlog(0 if priority else self._queue.rows_before(tenant))
        try:
            answer_at = expected_answer_at(backlog, rows, self.service, now)
            answer_at += _MARGIN * (answer_at - now)
            check_deadline(answer_at, deadline, now, alone_s=self.service.of(rows) * (1.0 + _MARGIN))
        except DeadlineExceeded:
            if not self._queue.is_idle or now < self._measured_at + PROBE_AFTER_S:
                raise
            self._is_probing = True


def _note_charge(chunk: Chunk, seconds: float) -> None:
    chunk.charged_s = seconds
