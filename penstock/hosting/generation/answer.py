"""Where the events of one answer wait for their reader: bounded, with a deadline, and with the error that ended it.

Owns nothing else: who makes the events, a process or a server of others, hears from :meth:`Answer.put` when to stop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

from penstock.errors import Cancelled, DeadlineExceeded, PenstockError
from penstock.generation.values import TokenEvent


class Answer:
    """The events of one generation that its reader has not taken yet.

    Attributes:
        id: in this life of the worker.
    """

    def __init__(self, id: str, max_unread: int) -> None:
        self.id = id
        self._max_unread = max_unread
        self._events: deque[TokenEvent] = deque()
        self._error: PenstockError | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._taken = 0

    @property
    def has_begun(self) -> bool:
        """Say whether any event has come."""
        return self._taken > 0 or bool(self._events)

    def put(self, event: TokenEvent) -> bool:
        """Take in the next event. Where too many are unread the answer ends with an error instead, and its maker hears
        that nobody wants the rest."""
        if len(self._events) >= self._max_unread:
            limit = f"{self._max_unread} tokens wait, the limit (max_unread_events)"
            self.fail(Cancelled(f"nobody read the answer: {limit}"))
            return False
        self._events.append(event)
        self._wake()
        return True

    def fail(self, error: PenstockError) -> None:
        """End with an error, after the events that are there already."""
        self._error = self._error or error
        self._wake()

    async def next(self, deadline: float) -> TokenEvent:
        """Return the next event.

        Raises:
            DeadlineExceeded: it did not come in time. PenstockError: what the generation ended with.
        """
        loop = asyncio.get_running_loop()
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrival = loop.create_future()
            try:
                async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                    await self._arrival
            except TimeoutError:
                after = f"after {self._taken} tokens of the answer" if self._taken else "before the first token"
                raise DeadlineExceeded(f"the deadline passed {after}") from None
            finally:
                self._arrival = None
        self._taken += 1
        return self._events.popleft()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
