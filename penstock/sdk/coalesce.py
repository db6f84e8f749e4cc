"""Merge concurrent requests of the same kind into one: rows, not calls, are what a server is fast at.

A lane holds requests that may be merged: same model, version, wanted outputs, priority, input names, datatypes and row
shapes. There is no delay: what became ready in one turn of the event loop leaves at once while fewer than
``max_in_flight`` requests are under way, and the next batch grows while they are.

Callers stay independent. Each keeps its own deadline and may be cancelled alone; the merged request has the latest
deadline of its members. When a server refuses a merged request as invalid, it is halved until the refusal reaches the
one it belongs to, and a lane whose halves both pass sends smaller batches from then on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from penstock.errors import Cancelled, DeadlineExceeded, Internal, InvalidInput, PenstockError, QueueFull
from penstock.sdk.call import InferResult, copy_of, result_of
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array

Send = Callable[[InferRequest, float], Awaitable[InferResponse]]
"""A request and its deadline on the loop's clock to a response; raises our errors only."""

MAX_LANES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalesceLimits:
    """``max_rows`` of a merged request, requests in flight a lane, and rows that may wait in all lanes together."""

    max_rows: int = 512
    max_in_flight: int = 2
    max_queued_rows: int = 65_536


@dataclass(slots=True, eq=False)
class Member:
    """One caller's rows in a batch."""

    arrays: Sequence[Array]
    rows: int
    deadline: float
    timeout_s: float
    future: asyncio.Future[InferResult]
    batch: _Batch


@dataclass(slots=True, eq=False)
class _Batch:
    """Members that travel together. ``waiting`` counts those whose caller still wants the answer."""

    members: list[Member] = field(default_factory=list)
    rows: int = 0
    waiting: int = 0
    expires_at: float = float("inf")
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that may be merged, and how. ``template`` has everything but the arrays."""

    template: InferRequest
    names: tuple[str, ...]
    max_rows: int
    queue: deque[_Batch] = field(default_factory=deque)
    in_flight: int = 0
    is_pump_due: bool = False


class Coalescer:
    """Owns the lanes. To be used from one event loop."""

    def __init__(self, send: Send, limits: CoalesceLimits) -> None:
        self._send = send
        self._limits = limits
        self._lanes: dict[Hashable, Lane] = {}
        self._undelivered: set[_Batch] = set()
        self._queued_rows = 0
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Coalescer lanes={len(self._lanes)} batches={len(self._undelivered)} queued_rows={self._queued_rows}>"

    def lane(self, key: Hashable) -> Lane | None:
        """The lane that was opened for a key."""
        return self._lanes.get(key)

    def open_lane(self, key: Hashable, template: InferRequest, names: tuple[str, ...]) -> Lane:
        """A new lane. Past ``MAX_LANES`` all are forgotten first; what they hold is still delivered."""
        if len(self._lanes) >= MAX_LANES:
            self._lanes.clear()
        lane = self._lanes[key] = Lane(template, names, self._limits.max_rows)
        return lane

    def forget(self, model: str, version: str) -> None:
        """Drop the lanes of a model, so that the next request opens one anew; what they hold is still delivered."""
        for key, lane in list(self._lanes.items()):
            if (lane.template.model, lane.template.version) == (model, version):
                del self._lanes[key]

    def submit(self, lane: Lane, arrays: Sequence[Array], rows: int, deadline: float, timeout_s: float) -> Member:
        """Queue rows; await the member's ``future``, and call :meth:`abandon` when that wait is cancelled.

        Raises:
            QueueFull: too many rows wait already.
        """
        if self._queued_rows + rows > self._limits.max_queued_rows:
            raise QueueFull(f"{self._queued_rows} rows are waiting in this client, the limit of max_queued_rows")
        queue = lane.queue
        batch = queue[-1] if queue else None
        if batch is None or batch.rows + rows > lane.max_rows:
            batch = _Batch()
            self._undelivered.add(batch)
            queue.append(batch)
        member = Member(arrays, rows, deadline, timeout_s, self._loop.create_future(), batch)
        batch.members.append(member)
        batch.rows += rows
        batch.waiting += 1
        self._queued_rows += rows
        if deadline < batch.expires_at:
            self._watch(batch, deadline)
        if not lane.is_pump_due and lane.in_flight < self._limits.max_in_flight:
            lane.is_pump_due = True
            self._loop.call_soon(self._pump, lane)
        return member

    def abandon(self, member: Member) -> None:
        """A caller was cancelled. Its neighbours are not disturbed; a batch nobody waits for is cancelled."""
        if member.future.cancelled():
            self._leave(member.batch)
        else:  # the answer had come already, in the same turn of the loop
            member.future.exception()

    def _leave(self, batch: _Batch) -> None:
        batch.waiting -= 1
        if batch.waiting == 0 and batch.task is not None:
            batch.task.cancel()

    async def close(self) -> None:
        """Cancel everything that is under way; waiting callers get :class:`Cancelled`."""
        tasks = []
        for batch in list(self._undelivered):
            _fail(batch.members, Cancelled("the client was closed"))
            self._finish(batch)
            if batch.task is not None:
                batch.task.cancel()
                tasks.append(batch.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pump(self, lane: Lane) -> None:
        lane.is_pump_due = False
        while lane.queue and lane.in_flight < self._limits.max_in_flight:
            batch = lane.queue.popleft()
            self._queued_rows -= batch.rows
            members = [member for member in batch.members if not member.future.done()]
            if not members:
                self._finish(batch)
                continue
            lane.in_flight += 1
            batch.task = self._loop.create_task(self._run(lane, members))
            batch.task.add_done_callback(partial(self._landed, lane, batch))

    def _landed(self, lane: Lane, batch: _Batch, _: asyncio.Task[None]) -> None:
        # a callback, not the end of _run: a task that is cancelled before its first step runs none of its code
        self._finish(batch)
        lane.in_flight -= 1
        self._pump(lane)

    async def _run(self, lane: Lane, members: list[Member]) -> None:
        try:
            await self._deliver(lane, members)
        except PenstockError as error:
            _fail(members, error)
        except Exception as error:  # a defect of ours must reach the callers, who would wait for ever otherwise
            _fail(members, Internal(f"the merged request failed: {type(error).__name__}: {error}"))

    async def _deliver(self, lane: Lane, members: list[Member]) -> None:
        """Send members as one request and hand out the answer's rows; halve on a refusal."""
        deadline = max(member.deadline for member in members)
        try:
            response = await self._send(_merged(lane, members), deadline)
        except InvalidInput:
            if len(members) == 1:
                raise
            await self._deliver_halves(lane, members)
        else:
            _hand_out(response, members)

    async def _deliver_halves(self, lane: Lane, members: list[Member]) -> None:
        middle = len(members) // 2
        refused = 0
        for half in (members[:middle], members[middle:]):
            half = [member for member in half if not member.future.done()]
            if not half:
                continue
            try:
                await self._deliver(lane, half)
            except PenstockError as error:
                refused += 1
                _fail(half, error)
        if not refused and all(_succeeded(member) for member in members):
            # nobody was wrong: the batch was larger than the server takes
            lane.max_rows = max(1, min(lane.max_rows, sum(member.rows for member in members) // 2))

    def _watch(self, batch: _Batch, at: float) -> None:
        """One timer a batch, at the nearest deadline of its members: a timer a row would cost more than the row."""
        if batch.timer is not None:
            batch.timer.cancel()
        batch.expires_at = at
        batch.timer = self._loop.call_at(at, self._expire, batch)

    def _expire(self, batch: _Batch) -> None:
        batch.timer = None
        batch.expires_at = float("inf")
        waiting = [member for member in batch.members if not member.future.done()]
        due = batch.members[0].deadline if not waiting else min(member.deadline for member in waiting)
        for member in waiting:
            if member.deadline <= due:
                member.future.set_exception(DeadlineExceeded(f"no answer within {member.timeout_s:g} s"))
                self._leave(batch)
        later = [member.deadline for member in waiting if member.deadline > due]
        if later:
            self._watch(batch, min(later))

    def _finish(self, batch: _Batch) -> None:
        self._undelivered.discard(batch)
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None


def _merged(lane: Lane, members: Sequence[Member]) -> InferRequest:
    template = lane.template
    inputs: Mapping[str, Array]
    if len(members) == 1:
        inputs = dict(zip(lane.names, members[0].arrays, strict=True))
    else:
        inputs = {
            name: np.concatenate([member.arrays[index] for member in members]) for index, name in enumerate(lane.names)
        }
    return InferRequest(
        model=template.model,
        version=template.version,
        inputs=inputs,
        outputs=template.outputs,
        parameters=template.parameters,
    )


def _hand_out(response: InferResponse, members: Sequence[Member]) -> None:
    if len(members) == 1:
        if not members[0].future.done():
            members[0].future.set_result(result_of(response))
        return
    rows = sum(member.rows for member in members)
    outputs = response.outputs
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != rows:
            raise Internal(f"outputs.{name}: the server answered shape {list(array.shape)} to {rows} rows")
    start = 0
    for member in members:
        stop = start + member.rows
        if not member.future.done():
            member.future.set_result(
                InferResult(
                    outputs={name: array[start:stop] for name, array in outputs.items()},
                    model=response.model,
                    version=response.version,
                    parameters=response.parameters,
                )
            )
        start = stop


def _fail(members: Sequence[Member], error: PenstockError) -> None:
    for member in members:
        if not member.future.done():
            member.future.set_exception(copy_of(error))


def _succeeded(member: Member) -> bool:
    future = member.future
    return future.done() and not future.cancelled() and future.exception() is None
