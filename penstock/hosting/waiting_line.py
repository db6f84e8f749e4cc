"""Who waits in a queue: requests in order of arrival, and the room they take up.

Keeps the books of ``penstock.hosting.queue``, which decides nothing here: what may run and what is late is
``penstock.policy.batching``'s.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.policy.batching import Queued

T = TypeVar("T")
A = TypeVar("A")
_ABSENT = object()


@dataclass(slots=True)
class Room:
    """How many rows wait, and how many may: of one queue, or of several that share it.

    Attributes:
        name: the setting that bounds it, for whoever is refused.
    """

    max_rows: int
    name: str = "max_queue_rows"
    rows: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Batch(Generic[T, A]):
    """Members that run together. ``wanted`` counts those whose caller still waits."""

    members: Sequence[Waiting[T, A]]
    rows: int
    since: float
    wanted: int
    task: asyncio.Task[int | None] | None = None


class Waiting(Queued, Generic[T, A]):
    """One request in the queue, or in a batch that runs.

    Attributes:
        item: what is run.
        future: settled with its answer or its error.
        queued_at: by ``time.perf_counter``, for durations; ``arrived_at`` is on the event loop's clock, for deadlines.
        batch: what it runs in; None while it waits.
    """

    __slots__ = ("batch", "future", "item", "queued_at")

    # written out: one is made for each request, and what a dataclass generates for keywords takes twice the time
    def __init__(
        self,
        item: T,
        future: asyncio.Future[A],
        rows: int,
        arrived_at: float,
        deadline: float | None,
        priority: int,
        shape_key: Hashable,
    ) -> None:
        self.item, self.future, self.rows, self.arrived_at = item, future, rows, arrived_at
        self.deadline, self.priority, self.shape_key = deadline, priority, shape_key
        self.queued_at = time.perf_counter()
        self.batch: Batch[T, A] | None = None


class WaitingLine(Generic[T, A]):
    """The requests that wait, in order of arrival. Leaving costs the same anywhere in the line.

    Attributes:
        room: the rows that wait here, and wherever else the room is shared.
    """

    def __init__(self, room: Room) -> None:
        self.room = room
        self._waiting: dict[Waiting[T, A], None] = {}
        self._kind: Hashable = None  # of all that waits, while that is uniform
        self._is_uniform = True

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting[T, A]) -> None:
        """Let a request wait behind the others."""
        kind = (waiting.shape_key, waiting.priority) if waiting.priority or waiting.shape_key is not None else None
        if not self._waiting:
            self._kind, self._is_uniform = kind, True
        elif kind is not self._kind and kind != self._kind:
            self._is_uniform = False
        self._waiting[waiting] = None
        self.room.rows += waiting.rows

    def remove(self, gone: Iterable[Waiting[T, A]]) -> None:
        """Let requests wait no more; those that do not are left alone."""
        for waiting in gone:
            if self._waiting.pop(waiting, _ABSENT) is None:
                self.room.rows -= waiting.rows

    def front(self, max_rows: int) -> list[Waiting[T, A]]:
        """Choose what a plan of ``max_rows`` has to see: of a line of one kind, which may be long, the first batch."""
        if not self._is_uniform:
            return self.all()
        front = []
        rows = 0
        for waiting in self._waiting:
            front.append(waiting)
            rows += waiting.rows
            if rows > max_rows:
                break
        return front

    def all(self) -> list[Waiting[T, A]]:
        """List everybody."""
        return list(self._waiting)

    def overdue(self, now: float) -> list[Waiting[T, A]]:
        """List those whose deadline has passed."""
        return [waiting for waiting in self._waiting if waiting.deadline is not None and waiting.deadline <= now]

    def next_deadline(self) -> float:
        """Find the earliest deadline; infinity where nobody has one."""
        return min([w.deadline for w in self._waiting if w.deadline is not None], default=math.inf)
