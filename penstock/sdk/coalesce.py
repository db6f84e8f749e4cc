"""Merge concurrent requests of the same kind into one: rows, not calls, are what a server is fast at.

Requests may be merged when their model, version, wanted outputs, priority, input names, datatypes and row shapes are
equal; each such kind has a queue. There is no delay: what became ready in one turn of the event loop leaves at once
while fewer than ``max_in_flight`` requests are under way, and the next batch grows while they are.

Callers stay independent. Each keeps its own deadline and may be cancelled alone; the merged request has the latest
deadline of its members. When a server refuses a merged request as invalid, it is halved until the refusal reaches the
one it belongs to, and a queue whose halves both pass sends smaller batches from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.errors import Cancelled, DeadlineExceeded, PenstockError
from penstock.hosting.queue import BatchQueue, Behaviour, is_invalid
from penstock.hosting.rows import Tensors, join, split
from penstock.hosting.waiting_line import Waiting
from penstock.policy.batching import BatchLimits, Room
from penstock.sdk.call import InferResult, Inputs, result_of, too_late
from penstock.wire.inference import InferRequest, InferResponse

Send = Callable[[InferRequest, float], Awaitable[InferResponse]]
"""A request and its deadline on the loop's clock to a response; raises our errors only."""

MAX_KINDS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalesceLimits:
    """``max_rows`` of a merged request, requests in flight of a kind, and rows of all kinds that may wait together."""

    max_rows: int = 512
    max_in_flight: int = 2
    max_queued_rows: int = 65_536


_Asked = tuple[Tensors, float]
"""One caller's inputs, and for how long it waits. A plain tuple: one is made for each call."""


class MergeQueue:
    """Requests that may be merged, and how.

    Attributes:
        template: the merged request without its inputs.
        names: of the inputs, in order.
    """

    def __init__(
        self, send: Send, limits: CoalesceLimits, room: Room, template: InferRequest, names: tuple[str, ...]
    ) -> None:
        self.template, self.names = template, names
        self._send = send
        self._queue: BatchQueue[_Asked, InferResult] = BatchQueue(
            self._run,
            BatchLimits(max_rows=limits.max_rows, max_queue_rows=limits.max_queued_rows),
            Behaviour(max_in_flight=limits.max_in_flight, stops_unwanted=True, may_be_one=is_invalid, late=_late),
            room=room,
        )

    def __repr__(self) -> str:
        return f"MergeQueue({self.template.model!r}, {self._queue!r})"

    @property
    def max_rows(self) -> int:
        """Rows of a merged request at most; falls when the server takes fewer."""
        return self._queue.limits.max_rows

    @property
    def is_idle(self) -> bool:
        """Say whether nothing waits and nothing is under way."""
        return self._queue.is_idle

    def submit(self, inputs: Tensors, rows: int, deadline: float, timeout_s: float) -> Waiting[_Asked, InferResult]:
        """Queue rows that leave together with those of others.

        Its ``future`` is to be awaited, and :meth:`withdraw` called when that is cancelled: a coroutine around the two
        would cost every call a tenth of its time.

        Raises:
            QueueFull: too many rows wait already. DeadlineExceeded: no time is left.
        """
        return self._queue.submit((inputs, timeout_s), rows=rows, deadline=deadline)

    def withdraw(self, waiting: Waiting[_Asked, InferResult]) -> None:
        """Forget rows whose caller was cancelled; a merged request that nobody waits for is cancelled too."""
        self._queue.withdraw(waiting)

    async def close(self, error: PenstockError) -> None:
        """Cancel what is under way, and give ``error`` to everyone who waits."""
        await self._queue.close(error)

    async def _run(
        self, asked: Sequence[_Asked], rows: Sequence[int], deadline: float | None
    ) -> Sequence[InferResult | PenstockError]:
        template = self.template
        request = InferRequest(
            model=template.model,
            version=template.version,
            inputs=join([inputs for inputs, _ in asked]),
            outputs=template.outputs,
            parameters=template.parameters,
        )
        assert deadline is not None  # every call has one
        response = await self._send(request, deadline)
        if len(rows) == 1:
            return [result_of(response)]
        return [
            InferResult(outputs=part, model=response.model, version=response.version, parameters=response.parameters)
            for part in split(response.outputs, rows)
        ]


class Coalescer:
    """Owns a queue for each kind of request. To be used from one event loop."""

    def __init__(self, send: Send, limits: CoalesceLimits) -> None:
        self._send = send
        self._limits = limits
        self._room = Room(limits.max_queued_rows, "max_queued_rows of this client")
        self._queues: dict[Hashable, MergeQueue] = {}
        self._forgotten: list[MergeQueue] = []

    def __repr__(self) -> str:
        return f"<Coalescer kinds={len(self._queues)} queued_rows={self._room.rows}>"

    def queue(self, key: Hashable) -> MergeQueue | None:
        """Find the queue that was opened for a kind."""
        return self._queues.get(key)

    def open_queue(self, key: Hashable, template: InferRequest, names: tuple[str, ...]) -> MergeQueue:
        """Open a queue for a kind. Past ``MAX_KINDS`` all are forgotten first; what they hold is still delivered."""
        if len(self._queues) >= MAX_KINDS:
            self._forget(list(self._queues))
        queue = self._queues[key] = MergeQueue(self._send, self._limits, self._room, template, names)
        return queue

    def forget(self, model: str, version: str) -> None:
        """Drop the queues of a model, so that the next request opens a new one; what they hold is still delivered."""
        self._forget(
            [
                key
                for key, queue in self._queues.items()
                if (queue.template.model, queue.template.version) == (model, version)
            ]
        )

    async def close(self) -> None:
        """Cancel everything that is under way; waiting callers get :class:`Cancelled`."""
        queues = [*self._queues.values(), *self._forgotten]
        await asyncio.gather(*(queue.close(Cancelled("the client was closed")) for queue in queues))

    def _forget(self, keys: Sequence[Hashable]) -> None:
        gone = [self._queues.pop(key) for key in keys]
        self._forgotten = [queue for queue in (*self._forgotten, *gone) if not queue.is_idle]


def kind_of(model: str, version: str, inputs: Inputs, outputs: Sequence[str], priority: int) -> Hashable:
    """Return what must be equal for rows to be merged; None for inputs that are not arrays of equally many rows."""
    if isinstance(inputs, np.ndarray):
        shape = inputs.shape
        return (model, version, inputs.dtype, shape[1:], tuple(outputs), priority) if shape and shape[0] else None
    if not isinstance(inputs, dict):
        return None
    kinds = []
    rows = set()
    for name, array in inputs.items():
        if not isinstance(array, np.ndarray) or not array.ndim:
            return None
        rows.add(array.shape[0])
        kinds.append((name, array.dtype, array.shape[1:]))
    if len(rows) != 1 or 0 in rows:
        return None
    return (model, version, tuple(kinds), tuple(outputs), priority)


def _late(asked: _Asked, is_running: bool) -> DeadlineExceeded:
    return too_late(asked[1])
