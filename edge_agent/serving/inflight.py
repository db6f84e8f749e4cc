"""The requests that are being answered: lets them in before their bodies are read, counts how they end, drains.

Owns the numbers in flight. Who is let in is decided by ``policy.admission``; what becomes of a request's rows is
``edge_agent.serving.dataplane``.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from edge_agent.policy import admission
from penstock.errors import outcome_code
from penstock.process.histogram import SECONDS, Histogram


class Held(Protocol):
    """What is not to go while a request is in it."""

    def enter(self) -> None: ...
    def leave(self) -> None: ...


class Ticket:
    """One admitted request. Use as a context manager: leaving it counts the request and gives its place back."""

    __slots__ = ("_held", "_in_flight", "_reserved_bytes", "_started_at")

    def __init__(self, in_flight: InFlight, reserved_bytes: int) -> None:
        self._in_flight, self._reserved_bytes = in_flight, reserved_bytes
        self._held: list[Held] = []
        self._started_at = perf_counter()  # the loop's own clock may move in milliseconds

    def __enter__(self) -> Ticket:
        return self

    def hold(self, model: Held) -> None:
        """Keep a model until the request is over, whatever of it has begun; again changes nothing."""
        if model not in self._held:
            model.enter()
            self._held.append(model)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for model in self._held:
            model.leave()
        self._in_flight._leave(self._reserved_bytes, outcome_code(error), perf_counter() - self._started_at)


class InFlight:
    """All methods are called from the event loop.

    Attributes:
        load: what is in the house now.
        answers: requests by how they ended: ``ok``, or the code of an error. Refused ones count too.
        duration_s: how long they took.
    """

    def __init__(self, limits: admission.Limits) -> None:
        self.load = admission.Load()
        self.answers: dict[str, int] = {}
        self.duration_s = Histogram(SECONDS)
        self._limits = limits
        self._idle = asyncio.Event()

    def admit(self, size_bytes: int | None) -> Ticket:
        """Let a request in, or not. ``size_bytes``: of its body, as announced; None when it comes in chunks.

        Raises:
            Unavailable: the agent is stopping. TooLarge: so it was announced. QueueFull: no room.
        """
        load = self.load
        refusal = admission.on_arrival(load, self._limits, content_length=size_bytes)
        if refusal is not None:
            self._count(refusal.code, 0.0)
            raise refusal
        reserved_bytes = admission.reserved_bytes(self._limits, size_bytes)
        load.requests += 1
        load.body_bytes += reserved_bytes
        return Ticket(self, reserved_bytes)

    def begin_drain(self) -> None:
        """Refuse new requests from now on; those that were admitted go on."""
        self.load.is_draining = True
        if not self.load.requests:
            self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until admitted requests have their answers; False when they have not within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self, reserved_bytes: int, code: str, took_s: float) -> None:
        load = self.load
        load.requests -= 1
        load.body_bytes -= reserved_bytes
        if load.is_draining and not load.requests:
            self._idle.set()
        self._count(code, took_s)

    def _count(self, code: str, took_s: float) -> None:
        self.answers[code] = self.answers.get(code, 0) + 1
        self.duration_s.observe(took_s)
