"""What waits in a queue and what runs: requests of ``penstock.hosting.queue`` and its batches.

Decides nothing: what may run and what is late is ``penstock.policy.batch_line``'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.policy.batching import Queued

T = TypeVar("T")
A = TypeVar("A")


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
        tenant: str,
    ) -> None:
        self.item, self.future, self.rows, self.arrived_at = item, future, rows, arrived_at
        self.deadline, self.priority, self.shape_key = deadline, priority, shape_key
        self.tenant, self.lane, self.number = tenant, None, 0
        self.queued_at = time.perf_counter()
        self.batch: Batch[T, A] | None = None
