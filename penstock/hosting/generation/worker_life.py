"""One life of a worker process, from its start to its end, as its parent sees it: what it is asked and what it answers.

The process itself is ``penstock.hosting.workers.worker_process``; whether another life follows is
``penstock.hosting.workers.lives``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

import msgspec

from penstock.errors import InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.answer import Answer
from penstock.hosting.generation.frames import (
    Ask,
    Begin,
    Cancel,
    Loaded,
    Ping,
    Report,
    ToWorker,
    encode,
    from_worker,
)
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.settings import WorkerSettings
from penstock.hosting.workers.framing import Failure, error_of
from penstock.hosting.workers.worker_process import WorkerProcess
from penstock.runtime.generation import EngineFacts

_PROGRAM = "penstock.hosting.generation.worker"


class WorkerLife:
    """A process that runs one engine. Everything here happens on the event loop that started it.

    Attributes:
        process: in which it runs.
        facts: of its engine; None until it is loaded.
        answers: generations that it was asked for and has not ended, by id.
        load: the last that it said.
        has_loaded: is set when it has loaded, or is gone.
        is_pinged: it was asked for a sign of life and has not given one.
        is_idle: is set while no generation is unanswered, and when it is gone.
    """

    def __init__(self, settings: WorkerSettings, on_report: Callable[[Report], None]) -> None:
        self._settings, self._on_report = settings, on_report
        self.process = WorkerProcess(self._take, self._gone, max_frame_bytes=settings.max_frame_bytes)
        self._asked = 0
        self.facts: EngineFacts | None = None
        self.answers: dict[str, Answer] = {}
        self.load, self._totals = Load(), Totals()
        self.is_pinged = False
        self.has_loaded, self.is_idle = asyncio.Event(), asyncio.Event()
        self.is_idle.set()

    def __repr__(self) -> str:
        return f"WorkerLife(pid={self.pid}, {len(self.answers)} unanswered, {self.load})"

    @property
    def pid(self) -> int | None:
        """Return the process's id, which is its group's; None before it was started."""
        return self.process.pid

    @property
    def is_gone(self) -> asyncio.Event:
        """Return what is set when nothing more will be heard of it."""
        return self.process.is_gone

    @property
    def totals(self) -> Totals:
        """Return what it has done."""
        return self._totals

    @property
    def complaint(self) -> PenstockError | None:
        """Return why it ended, if it said so itself."""
        return self.process.complaint

    async def begin(self, begin: Begin) -> None:
        """Start the process and tell it what to load.

        Raises:
            Unavailable: it cannot be started. TooLarge: it would have to be told too much.
        """
        first = encode(begin, max_bytes=self._settings.max_frame_bytes)
        await self.process.begin(_PROGRAM, first, threads=self._settings.threads)

    def ask(self, request: GenerationRequest, *, left_s: float, priority: int = 0) -> Answer:
        """Ask for a generation; its answer gets the events.

        Raises:
            QueueFull: too much waits already, here or in the pipe. TooLarge: the request is. Unavailable: it is gone.
        """
        if self.is_gone.is_set():
            raise Unavailable("the model's process has ended", retry_after_s=1.0)
        unsent_bytes = self.process.unsent_bytes
        if unsent_bytes is None or unsent_bytes > self._settings.max_pipe_bytes:
            raise QueueFull("the model's process takes no requests at the moment", retry_after_s=1.0)
        self._asked += 1
        answer = Answer(str(self._asked), self._settings.max_unread_events)
        named = msgspec.structs.replace(request, id=answer.id)
        self._send(Ask(request=named, left_s=None if left_s == math.inf else left_s, priority=priority))
        self.answers[answer.id] = answer
        self.is_idle.clear()
        return answer

    @property
    def unanswered(self) -> int:
        """Return the number of generations that it was asked for and has not ended."""
        return len(self.answers)

    async def watched(self) -> str:
        """Wait until it is gone, or does not move though it has work; return that in words, or ""."""
        return await self.process.watched(
            self._settings.hang_s,
            progress=lambda: self.totals.steps,
            has_work=lambda: bool(self.answers) or self.is_pinged,
            idle_ping_s=self._settings.idle_ping_s,
            ping=self.ping,
        )

    async def drained(self, timeout_s: float) -> None:
        """Wait until everything is answered, for as long as that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.is_idle.wait(), timeout_s)

    def ping(self) -> None:
        """Ask for a sign of life; nothing happens where it has ended."""
        if not self.is_gone.is_set():
            self.is_pinged = True
            self._send(Ping())

    def give_up(self, answer: Answer) -> None:
        """Tell the worker that nobody wants an answer any more; nothing happens where it has ended."""
        if self._forget(answer.id) is not None and not self.is_gone.is_set():
            self._send(Cancel(id=answer.id))

    def fail_all(self, error: Callable[[], PenstockError]) -> None:
        """End every generation that has not ended, each with an error of its own."""
        for id in list(self.answers):
            answer = self._forget(id)
            if answer is not None:
                answer.fail(error())

    def kill(self) -> None:
        """Kill the process and all that it started, now."""
        self.process.kill()

    async def end(self, grace_s: float) -> str:
        """Close the pipe, give the process ``grace_s`` to end, kill its group, and say how it ended: in its own words
        where it left some."""
        return await self.process.end(grace_s)

    # -- what it says ---------------------------------------------------------------------------------------------

    def _gone(self) -> None:
        self.is_idle.set()
        self.has_loaded.set()

    def _take(self, body: bytes) -> None:
        message = from_worker.decode(body)
        match message:
            case Loaded(facts=facts):
                self.facts = facts
                self.has_loaded.set()
            case Report():
                self.load, self._totals, self.is_pinged = message.load, message.totals, False
                for id, event in message.events:
                    self._tell(id, event)
                for failure in message.failures:
                    answer = self._forget(failure.id)
                    if answer is not None:
                        answer.fail(error_of(failure))
                self._on_report(message)
            case Failure():
                self.process.complaint = error_of(message)

    def _tell(self, id: str, event: TokenEvent) -> None:
        answer = self.answers.get(id)
        if answer is None:  # given up a moment ago
            return
        if not answer.put(event):
            self.give_up(answer)
        elif event.finish is not None:
            self._forget(id)

    def _forget(self, id: str) -> Answer | None:
        answer = self.answers.pop(id, None)
        if not self.answers:
            self.is_idle.set()
        return answer

    def _send(self, message: ToWorker) -> None:
        try:
            frame = encode(message, max_bytes=self._settings.max_frame_bytes)
        except (TypeError, ValueError, OverflowError) as error:  # numbers of more than 64 bits, half a surrogate pair
            raise InvalidInput(f"the request cannot be told to the model's process: {error}") from error
        self.process.send(frame)
