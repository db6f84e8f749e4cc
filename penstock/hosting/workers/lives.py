"""Keeps a model's worker alive: starts it, has it watched to its end, and starts it again a bounded number of times.

Owns which life answers at the moment, why none does, and how often they failed. What a life is, a process of ours or a
server with processes of its own, and how it is seen that it hangs, is the life's; what follows from a failure is
``penstock.policy.worker_health``'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from penstock.errors import PenstockError, Unavailable
from penstock.hosting.replica import WELL, Health, clock_of
from penstock.policy.worker_health import Restarts
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_AFTER_EOF_S = 1.0  # a process that hung up on us is about to end, and its exit status says why


class Life(Protocol):
    """One worker from its start to its end. Nothing is left of it when :meth:`end` has returned."""

    @property
    def pid(self) -> int | None: ...

    @property
    def unanswered(self) -> int: ...

    async def watched(self) -> str:
        """Wait until it is over; return why where it has to be killed, because it does not move, else ""."""
        ...

    async def drained(self, timeout_s: float) -> None:
        """Wait until everything is answered, for as long as that."""
        ...

    async def end(self, grace_s: float) -> str:
        """End it, by force after ``grace_s``; return how it ended."""
        ...

    def fail_all(self, error: Callable[[], PenstockError]) -> None:
        """End everything that is unanswered, each with an error of its own."""
        ...


LifeT = TypeVar("LifeT", bound=Life)


class Lives(Generic[LifeT]):
    """One life after the other. Everything here happens on one event loop.

    Attributes:
        current: the one that answers; None while there is none.
        starts: lives that were ready.
        crashes: ends that nobody asked for.
        hangs: lives that were ended because they did not move.
        is_closing: who asks is refused.
    """

    def __init__(
        self,
        name: str,
        restarts: Restarts,
        begin: Callable[[], Awaitable[LifeT]],
        *,
        hang_s: float,
        exit_s: float,
        account: Callable[[LifeT], None] = lambda life: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            name: of the model, for messages and logs.
            begin: starts a life and returns when it is ready; what it started is gone when it fails.
            hang_s: for how long one stands still before it is ended for it.
            exit_s: how long one that is told to end may take before it is killed.
            account: told of each life that is over, for what it has done.
            changed: told when one has begun to answer or has ended, and when it is known what comes next.
        """
        self.name = name
        self._restarts, self._begin, self._hang_s, self._exit_s = restarts, begin, hang_s, exit_s
        self._account, self._changed = account, changed
        self.current: LifeT | None = None
        self.starts = self.crashes = self.hangs = 0
        self._why = "it was not started"
        self._retry_at = 0.0
        self._start_takes_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.is_closing = False
        self._now: Callable[[], float] | None = None

    def __repr__(self) -> str:
        return repr(self.current or self._why)

    async def start(self) -> None:
        """Begin the first life. A failure is final: whoever loads a model hears why at once.

        Raises:
            Unavailable: it ended, or was not ready in time. PenstockError: what it said about the model.
        """
        self._now = clock_of(asyncio.get_running_loop())
        self._why = "it is being loaded"
        try:
            life = await self._begun()
        except PenstockError as error:
            self._why = f"it could not be loaded: {error.message}"
            raise
        self._task = asyncio.create_task(self._supervise(life), name=f"worker of {self.name}")

    def answering(self) -> LifeT:
        """Return the life that may be asked.

        Raises:
            Unavailable: there is none; the message says why, and when to come back.
        """
        if self.current is None or self.is_closing:
            raise self.unavailable()
        return self.current

    def health(self) -> Health:
        """Say whether there is a life that answers."""
        return WELL if self.current is not None and not self.is_closing else Health(False, self._why)

    @property
    def back_in_s(self) -> float:
        """Estimate when a life answers again, if the next start does not fail; infinity where nobody starts one."""
        if self.current is not None and not self.is_closing:
            return 0.0
        if self._now is None or self.is_closing or self._restarts.is_slow:
            return math.inf
        return max(0.0, self._retry_at + self._start_takes_s - self._now())

    def unavailable(self) -> PenstockError:
        """Make the error for whoever asks now; who comes back when it says so finds a worker that has loaded."""
        left_s = 1.0
        if self._now is not None and not self.is_closing:
            left_s = self._retry_at + self._start_takes_s - self._now()
        retry_after_s = None if left_s == math.inf else max(1.0, left_s)
        return Unavailable(f"{self.name} cannot answer: {self._why or 'try again'}", retry_after_s=retry_after_s)

    async def close(self, timeout_s: float) -> None:
        """Stop admitting, give what runs ``timeout_s``, and end the last life; idempotent."""
        self.is_closing, self._why = True, "it is being unloaded"
        self._changed()
        if self.current is not None:
            await self.current.drained(timeout_s)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        life, self.current = self.current, None
        if life is not None:
            life.fail_all(self.unavailable)
            self._account(life)
            await life.end(self._exit_s)
        self._why = "it is closed"

    async def _supervise(self, life: LifeT | None) -> None:
        """Watch each life to its end and begin the next one, as often as it may be."""
        assert self._now is not None
        try:
            while life is not None:
                ready_at = self._now()
                try:
                    stands_still = await life.watched()
                    await self._ended(life, stands_still, was_ready_s=self._now() - ready_at)
                finally:  # also where closing cancels this
                    life.fail_all(self.unavailable)
                life = await self._restarted()
        except Exception as error:  # a defect of ours: nobody would look after the worker any more
            log(_log, logging.ERROR, "worker is given up", exc_info=error, model=self.name)
            self._why, self._retry_at = f"nobody watches it any more: {error!r}", math.inf
            self._changed()
            left, self.current = self.current, None
            if left is not None:
                left.fail_all(self.unavailable)
                await left.end(0.0)

    async def _ended(self, life: LifeT, stands_still: str, *, was_ready_s: float) -> None:
        """Account for a life that ended by itself, and tell those whose requests it took along."""
        self.current, self._why = None, "its process has ended"
        lost = life.unanswered
        how = await life.end(0.0 if stands_still else _AFTER_EOF_S)
        self.hangs += bool(stands_still)
        self.crashes += not stands_still
        self._account(life)
        how = stands_still or how
        self._fail(how, was_ready_s, stood_still_s=self._hang_s if stands_still else 0.0)
        self._changed()
        log(_log, logging.ERROR, "worker lost", model=self.name, why=how, unanswered=lost)

    def _fail(self, how: str, was_ready_s: float, *, stood_still_s: float = 0.0) -> None:
        """Count a failure and set when the next start is due."""
        assert self._now is not None
        self._restarts = self._restarts.after_failure(was_ready_s=was_ready_s, stood_still_s=stood_still_s)
        if self._restarts.is_over:
            self._why = f"its process failed {self._restarts.failures} times in a row, the last time: {how}"
            self._retry_at = math.inf
            return
        self._why = f"its process failed and is started again: {how}"
        if self._restarts.is_slow:
            self._why = (
                f"its process failed {self._restarts.failures} times in a row and is started again now and then, "
                f"within {self._restarts.slow_s:g} s; the last time: {how}"
            )
        self._retry_at = self._now() + self._restarts.delay_s(random.random())

    async def _restarted(self) -> LifeT | None:
        """Begin another life, as often as it may be; None when there are no more."""
        assert self._now is not None
        while not self._restarts.is_over:
            await asyncio.sleep(max(0.0, self._retry_at - self._now()))
            try:
                return await self._begun()
            except PenstockError as error:
                self.crashes += 1
                self._fail(error.message, 0.0)
                self._changed()
                log(_log, logging.WARNING, "worker not started", model=self.name, why=self._why)
        log(_log, logging.ERROR, "worker stays down", model=self.name, why=self._why)
        return None

    async def _begun(self) -> LifeT:
        assert self._now is not None
        began_at = self._now()
        life = await self._begin()
        if self.is_closing:
            await life.end(0.0)
            raise self.unavailable()
        self.current, self._why = life, ""
        self.starts += 1
        self._start_takes_s = self._now() - began_at
        self._changed()
        log(_log, logging.INFO, "worker ready", model=self.name, pid=life.pid)
        return life
