"""The one queue of requests that may share a batch: plan, expire, dispatch, and wait for an arrival or for a time.

Before an engine, before the cloud and in the SDK, each with its own limits and its own way to run a batch. Which
requests run together, which are too late and when to look again is ``penstock.policy.batch_line``'s decision; who is to
blame for a batch that fails is found by ``penstock.hosting.rows.isolate``. Everything here happens on the event loop.

A queue has no task of its own: it is looked at by a callback, at the end of a turn in which something came or went, and
by one timer. A client has a queue for each kind of request; they come and go, and nobody would end their tasks.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

from penstock.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, PenstockError, QueueFull, copy_of
from penstock.hosting.rows import as_ours, fail, isolate, settle
from penstock.hosting.waiting_line import Batch, Waiting
from penstock.policy.batch_line import BatchLine
from penstock.policy.batching import BatchLimits, Room
from penstock.policy.fair_shares import FairShares, fits_beside
from penstock.policy.run_times import Place
from penstock.process.telemetry import log

LOOK_EVERY = 8
"""A lone caller's requests after which it is looked whether it still is one: a look costs a turn of the event loop."""

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour(Generic[T]):
    """What differs between queues beside their limits.

    Attributes:
        max_in_flight: batches under way at once. An engine takes one.
        ahead: how many more may be under way if they are full: one that cannot grow any more saves time by going now.
        stops_unwanted: a batch that nobody waits for any more is cancelled. A call can be, an engine's run cannot.
        may_be_one: whether a failed batch is worth running in halves; see :func:`penstock.hosting.rows.isolate`.
        place: where requests would run together. ``run`` of what would run here returns without suspending; a lone
            request of that kind does not even wait for the end of the turn.
        service_s: how long a batch of so many rows should take; what cannot be answered in time is not run.
        check_deadline: given rows, deadline, priority, tenant and time of a request that would wait; raises where it
            could not be answered in time, so that it does not wait to learn that.
        waited: told how long each request waited.
        drained_after_s: how long it should take until what waits and what runs is done, for whoever is refused.
        charged: told what the tenant of each request was charged for it, in seconds; where tenants have shares.
        late: the error of a request whose deadline passed, and whether it was running by then.
    """

    max_in_flight: int = 1
    ahead: int = 0
    stops_unwanted: bool = False
    may_be_one: Callable[[Exception], bool] = lambda error: True
    place: Callable[[Sequence[T]], Place] = lambda items: Place.ELSEWHERE
    service_s: Callable[[int], float] = lambda rows: 0.0
    check_deadline: Callable[[int, float, int, str, float], None] | None = None
    waited: Callable[[float], None] | None = None
    drained_after_s: Callable[[], float] = lambda: 0.0
    charged: Callable[[T, float], None] | None = None
    late: Callable[[T, bool], PenstockError] = lambda item, is_running: DeadlineExceeded(
        "the deadline passed before the answer came"
        if is_running
        else "the deadline passed, or could not be met any more, while the request waited; nothing was executed"
    )


def is_invalid(error: Exception) -> bool:
    """Blame a member for a call that was refused as invalid, and for nothing else: a server that fails fails once."""
    return isinstance(error, InvalidInput)


Run = Callable[[Sequence[T], Sequence[int], float | None], Coroutine[Any, Any, Sequence[A | PenstockError]]]


class BatchQueue(Generic[T, A]):
    """Requests of type ``T`` that are answered with an ``A``. What an answer is, the queue does not look at.

    Attributes:
        limits: of a batch; ``max_rows`` falls when it is found out that fewer are taken.
        room: the rows that wait.
        running_rows: rows of the batches that run.
    """

    def __init__(
        self,
        run: Run[T, A],
        limits: BatchLimits,
        behaviour: Behaviour[T] | None = None,
        *,
        room: Room | None = None,
        shares: FairShares | None = None,
    ) -> None:
        """
        Args:
            shares: of tenants; None where nobody tells them apart.
            run: runs a batch. Given are requests, the rows of each, and the latest of their deadlines (None: one has
                none); an answer or an error for each, in order, comes back, or it raises for all of them.
        """
        self.limits = limits
        self.room = room or Room(limits.max_queue_rows)
        self._shares = shares
        self._waiting: BatchLine[Waiting[T, A]] = BatchLine(limits, self.room, shares)
        self._run = run
        self._how = behaviour or Behaviour()
        self._loop = asyncio.get_running_loop()
        self.running_rows = 0
        self._batches: set[Batch[T, A]] = set()
        self._is_look_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._due_at = math.inf
        self._is_crowded = False
        self._until_look = 0
        self._refusal: PenstockError | None = None
        self._has_died = False
        self._idle: asyncio.Event | None = None  # made when somebody waits for it

    def __repr__(self) -> str:
        state = "dead" if self._has_died else "closing" if self._refusal else "running" if self._batches else "idle"
        return f"BatchQueue({len(self._waiting)} waiting, {self.room.rows} rows, {len(self._batches)} running, {state})"

    @property
    def is_alive(self) -> bool:
        """Say whether anybody looks at what is queued. False after a defect of ours: only a restart helps."""
        return not self._has_died

    @property
    def is_idle(self) -> bool:
        """Say whether nothing waits and nothing runs."""
        return not self._waiting and not self._batches

    @property
    def running_since(self) -> float | None:
        """Say when the oldest batch that runs began, on the event loop's clock."""
        return min([batch.since for batch in self._batches], default=None)

    def rows_before(self, tenant: str) -> int:
        """Say how many of the rows that wait go before a tenant's next request of the default priority."""
        rows = self.room.rows
        return rows if self._shares is None else self._shares.rows_before(tenant, rows)

    def check_room(self, rows: int = 1, tenant: str = "") -> None:
        """Look whether ``rows`` more may wait. A request that alone is larger than the room may, when nobody else does.

        Raises:
            QueueFull: no room, or the tenant waits with as many rows as others left free.
        """
        room = self.room
        waiting = room.rows
        if waiting and waiting + rows > room.max_rows:
            raise QueueFull(
                f"{waiting} rows wait already, the limit is {room.max_rows} ({room.name})",
                retry_after_s=self._how.drained_after_s() or None,
            )
        if self._shares is None or not waiting or 2 * (waiting + rows) <= room.max_rows:
            return
        if not self._shares.are_several():
            return
        mine = self._shares.of(tenant).rows
        if not fits_beside(mine, rows, held=waiting, limit=room.max_rows):
            raise QueueFull(
                f"{mine} rows of this tenant wait already, and {rows} more would leave too little room for others "
                f"({room.name} is {room.max_rows})",
                retry_after_s=self._how.drained_after_s() or None,
            )

    async def ask(
        self,
        item: T,
        *,
        rows: int,
        deadline: float | None = None,
        priority: int = 0,
        shape_key: Hashable = None,
        tenant: str = "",
    ) -> A:
        """Queue a request and wait for its answer. A caller that is cancelled leaves nothing in the queue.

        Raises:
            QueueFull, or what the queue was closed with: not taken in. DeadlineExceeded: no answer in time.
            PenstockError: the answer of ``run``.
        """
        if not self._waiting and not self._batches and self._runs_at_once(item):
            self._check_open(item, rows, deadline, priority, tenant)
            return await self._run_at_once(item, rows, deadline)
        waiting = self.submit(item, rows=rows, deadline=deadline, priority=priority, shape_key=shape_key, tenant=tenant)
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self.withdraw(waiting)
            raise

    def submit(
        self,
        item: T,
        *,
        rows: int,
        deadline: float | None = None,
        priority: int = 0,
        shape_key: Hashable = None,
        tenant: str = "",
    ) -> Waiting[T, A]:
        """Queue a request. Its ``future`` is to be awaited, and :meth:`withdraw` called when that is cancelled.

        Raises:
            QueueFull, or what the queue was closed with: not taken in. DeadlineExceeded: it has passed.
        """
        self.check_room(rows, tenant)
        now = self._check_open(item, rows, deadline, priority, tenant)
        future = self._loop.create_future()
        waiting: Waiting[T, A] = Waiting(item, future, rows, now, deadline, priority, shape_key, tenant)
        self._waiting.add(waiting)
        if deadline is not None and deadline < self._due_at:
            self._due_at = deadline
            self._look_at(deadline)
        if not self._is_look_due and self._may_dispatch():
            self._look_soon()
        return waiting

    async def finish(self, error: PenstockError, timeout_s: float) -> None:
        """Take nothing more in and run what is queued, for at most ``timeout_s``; refuse the rest with ``error``.

        What runs then goes on, and ``running_rows`` says so.
        """
        self._refusal = error
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_idle()
        except TimeoutError:
            self._drop(error)

    async def close(self, error: PenstockError) -> None:
        """Take nothing more in and refuse what waits; stop what runs if it can be stopped, else wait for it."""
        self._refusal = error
        self._drop(error)
        if self._how.stops_unwanted:
            for batch in tuple(self._batches):
                fail(batch.members, error)
                if batch.task is not None:
                    batch.task.cancel()
        await self._until_idle()

    # -- arrivals ----------------------------------------------------------------------------------------------------

    def _runs_at_once(self, item: T) -> bool:
        """Is it better to run this one here and now than to queue it? Asked only when the queue is idle."""
        if self.limits.max_delay_s:
            return False
        place = self._how.place((item,))
        if place is not Place.ON_LOOP or self._is_crowded or self._is_look_due:
            return place is Place.AT_ONCE
        # Requests that come in one turn of the event loop share a batch, which runs when the loop has turned; after a
        # turn with one request the next ones are taken for a lone caller's, and do not wait for company.
        self._until_look -= 1
        if self._until_look <= 0:
            self._look_soon()
        return True

    async def _run_at_once(self, item: T, rows: int, deadline: float | None) -> A:
        if self._how.waited is not None:
            self._how.waited(0.0)
        try:
            (outcome,) = await self._run((item,), (rows,), deadline)  # never suspends: that is what 'at once' means
        except Exception as error:
            raise as_ours(error) from error
        if isinstance(outcome, PenstockError):
            raise outcome
        return outcome

    def _check_open(self, item: T, rows: int, deadline: float | None, priority: int, tenant: str) -> float:
        if self._refusal is not None:
            raise copy_of(self._refusal)
        now = self._loop.time()
        if deadline is not None:
            if deadline <= now:
                raise self._how.late(item, False)
            if self._how.check_deadline is not None:
                self._how.check_deadline(rows, deadline, priority, tenant, now)
        return now

    def withdraw(self, waiting: Waiting[T, A]) -> None:
        """Take out what a cancelled caller queued; its neighbours are not disturbed."""
        if not waiting.future.cancelled():
            waiting.future.exception()  # the answer had come already, in the same turn of the loop; nobody takes it
        elif waiting.batch is None:
            self._remove([waiting])
        else:
            batch = waiting.batch
            batch.wanted -= 1
            if batch.wanted == 0 and self._how.stops_unwanted and batch.task is not None:
                batch.task.cancel()

    # -- looking -----------------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if not self._is_look_due:
            self._is_look_due = True
            self._loop.call_soon(self._look)

    def _look_at(self, at: float) -> None:
        """Look again at a time. One timer a queue: one for each request would cost more than the request.

        It stays when the request that it was set for is answered, and then finds nothing to do.
        """
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer, at)

    def _on_timer(self, at: float) -> None:
        self._timer, self._timer_at = None, math.inf
        self._look(at)  # not the clock alone: a timer may be early by the step in which the clock moves

    def _look(self, at: float = -math.inf) -> None:
        """Plan, expire, dispatch, until nothing may go. Harmless at any time."""
        self._is_look_due = False
        try:
            self._step(max(self._loop.time(), at))
        except Exception as error:  # a defect of ours: no caller must wait for good, and liveness must tell
            log(_LOG, logging.ERROR, "the queue died", exc_info=error)
            self._has_died = True
            self._refusal = Internal(f"the queue died: {type(error).__name__}: {error}")
            self._drop(self._refusal)

    def _step(self, now: float) -> None:
        if now >= self._due_at:
            self._expire_overdue(now)
        self._is_crowded = len(self._waiting) > 1
        self._until_look = LOOK_EVERY
        while self._waiting and self._may_dispatch():
            limits, how = self.limits, self._how
            service_s = how.service_s(min(self.room.rows, limits.max_rows))
            row_s = 0.0 if self._shares is None else how.service_s(limits.max_rows) / limits.max_rows
            plan = self._waiting.take(limits, now, service_s=service_s, row_s=row_s)
            self._expire(plan.expire)
            if plan.dispatch:
                members = plan.dispatch
                self._taken_out(members, row_s)
                if not self._run_here(members):
                    self._dispatch(members)
                elif self._waiting:
                    self._look_soon()  # not now: answers leave first, and nothing else is held up by a long queue
                    return
            elif not plan.expire:
                if plan.wake_at is not None:
                    self._look_at(plan.wake_at)
                return

    def _may_dispatch(self) -> bool:
        running, how = len(self._batches), self._how
        if running < how.max_in_flight:
            return True
        return running < how.max_in_flight + how.ahead and self.room.rows >= self.limits.max_rows

    def _taken_out(self, members: list[Waiting[T, A]], row_s: float) -> None:
        self._note_idle()
        if self._how.waited is not None:
            began_at = time.perf_counter()
            for member in members:
                self._how.waited(began_at - member.queued_at)
        if self._shares is not None and self._how.charged is not None:
            for member in members:
                self._how.charged(member.item, member.rows * row_s)

    def _run_here(self, members: list[Waiting[T, A]]) -> bool:
        """Run a batch that is short, at once: a task for it would cost more than it does. Say whether it is done.

        A batch that fails is not: the request to blame is found in a task, since what runs then may be long.
        """
        if self._how.place([member.item for member in members]) is Place.ELSEWHERE:
            return False
        run = self._run_members(members)
        try:
            run.send(None)
        except StopIteration as done:
            if len(done.value) == len(members):
                for member, outcome in zip(members, done.value, strict=True):
                    settle(member.future, outcome)
                return True
            error: Exception = Internal(f"{len(done.value)} answers came for {len(members)} requests")
        except Exception as raised:
            if len(members) > 1:
                log(_LOG, logging.DEBUG, "a short batch failed, running it again to see why", error=raised)
                return False
            error = raised
        else:
            run.close()
            error = Internal("what was to run at once is suspended")
        fail(members, as_ours(error))  # they wait in no queue any more: nobody else would ever answer them
        return True

    def _dispatch(self, members: list[Waiting[T, A]]) -> None:
        rows = sum([member.rows for member in members])
        batch = Batch(members=members, rows=rows, since=self._loop.time(), wanted=len(members))
        for member in members:
            member.batch = batch
        batch.task = self._loop.create_task(isolate(members, self._run_members, may_be_one=self._how.may_be_one))
        self._batches.add(batch)
        self.running_rows += rows
        # a callback, not the end of the task: one that is cancelled before its first step runs none of its code
        batch.task.add_done_callback(partial(self._landed, batch))

    def _run_members(self, members: Sequence[Waiting[T, A]]) -> Coroutine[Any, Any, Sequence[A | PenstockError]]:
        deadlines = [member.deadline for member in members]
        latest = None if None in deadlines else max(cast("list[float]", deadlines))
        return self._run([member.item for member in members], [member.rows for member in members], latest)

    def _landed(self, batch: Batch[T, A], task: asyncio.Task[int | None]) -> None:
        self._batches.discard(batch)
        self.running_rows -= batch.rows
        if task.cancelled():
            fail(batch.members, Cancelled("the batch was given up"))
        elif (error := task.exception()) is not None:
            log(_LOG, logging.ERROR, "a batch failed outside of what runs it", exc_info=error)
            fail(batch.members, Internal(f"the batch failed: {type(error).__name__}: {error}"))
        elif max_rows := task.result():
            self.limits = replace(self.limits, max_rows=min(self.limits.max_rows, max_rows))
        batch.members = ()  # each member knows its batch: a circle would live until the garbage collector comes by
        if self._waiting:
            self._look_soon()  # not now: answers leave first, and what their callers ask next joins the batch
        self._note_idle()

    # -- leaving -----------------------------------------------------------------------------------------------------

    def _expire_overdue(self, now: float) -> None:
        """Refuse what is late, also in batches that run: their callers have gone by then, and the batches go on."""
        self._expire(self._waiting.overdue(now))
        earliest = self._waiting.next_deadline()
        self._due_at = math.inf if earliest is None else earliest
        for batch in self._batches:
            for member in batch.members:
                if member.deadline is None or member.future.done():
                    continue
                if member.deadline <= now:
                    settle(member.future, self._how.late(member.item, True))
                    batch.wanted -= 1
                else:
                    self._due_at = min(self._due_at, member.deadline)
        if self._due_at < math.inf:
            self._look_at(self._due_at)

    def _expire(self, late: list[Waiting[T, A]]) -> None:
        """Refuse what was taken out of the line because it is late."""
        if late:
            self._note_idle()
            after_s = self._how.drained_after_s() or None
            for waiting in late:
                error = self._how.late(waiting.item, False)
                error.retry_after_s = error.retry_after_s or after_s
                settle(waiting.future, error)

    def _drop(self, error: PenstockError) -> None:
        dropped = list(self._waiting)
        self._remove(dropped)
        fail(dropped, error)

    def _remove(self, gone: list[Waiting[T, A]]) -> None:
        self._waiting.remove(gone)
        self._note_idle()

    def _note_idle(self) -> None:
        if self._idle is not None and self.is_idle:
            self._idle.set()

    async def _until_idle(self) -> None:
        self._idle = asyncio.Event()
        self._note_idle()
        await self._idle.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
