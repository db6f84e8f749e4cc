"""One life of a worker process, from its start to its end, as its parent sees it: what it is asked and what it answers.

Owns the process and its group: nothing of it is left when a life has ended. When it counts as hung is
``penstock.policy.worker_health``'s to say; whether another life follows, ``penstock.hosting.generation.lives``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import msgspec

from penstock.errors import InvalidInput, PenstockError, QueueFull, TooLarge, Unavailable
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.answer import Answer
from penstock.hosting.generation.frames import (
    Ask,
    Begin,
    Cancel,
    Failure,
    FromWorker,
    Loaded,
    Ping,
    Report,
    Splitter,
    ToWorker,
    encode,
    error_of,
    from_worker,
)
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.process_group import ProcessGroup
from penstock.hosting.generation.settings import WorkerSettings
from penstock.policy.worker_health import LOOKS, Watch
from penstock.process.exit_status import status_words
from penstock.runtime.generation import EngineFacts

_PROGRAM = "penstock.hosting.generation.worker"
_STDERR = 2


class WorkerLife(asyncio.Protocol):
    """A process that runs one engine. Everything here happens on the event loop that started it.

    Attributes:
        facts: of its engine; None until it is loaded.
        answers: generations that it was asked for and has not ended, by id.
        load: the last that it said.
        has_loaded: is set when it has loaded, or is gone.
        is_pinged: it was asked for a sign of life and has not given one.
        is_gone: is set when nothing more will be heard of it.
        is_idle: is set while no generation is unanswered, and when it is gone.
    """

    def __init__(self, settings: WorkerSettings, on_report: Callable[[Report], None]) -> None:
        self._settings, self._on_report = settings, on_report
        self._splitter = Splitter(settings.max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._group: ProcessGroup | None = None
        self._asked = 0
        self._complaint: PenstockError | None = None  # its own, or ours about what it sent
        self.facts: EngineFacts | None = None
        self.answers: dict[str, Answer] = {}
        self.load, self._totals = Load(), Totals()
        self.is_pinged = False
        self.has_loaded, self.is_gone, self.is_idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.is_idle.set()

    def __repr__(self) -> str:
        return f"WorkerLife(pid={self.pid}, {len(self.answers)} unanswered, {self.load})"

    @property
    def pid(self) -> int | None:
        """Return the process's id, which is its group's; None before it was started."""
        return None if self._group is None else self._group.pid

    @property
    def totals(self) -> Totals:
        """Return what it has done."""
        return self._totals

    @property
    def complaint(self) -> PenstockError | None:
        """Return why it ended, if it said so itself."""
        return self._complaint

    async def begin(self, begin: Begin) -> None:
        """Start the process and tell it what to load.

        Raises:
            Unavailable: it cannot be started. TooLarge: it would have to be told too much.
        """
        first = encode(begin, max_bytes=self._settings.max_frame_bytes)
        ours, theirs = socket.socketpair()
        try:
            self._group = ProcessGroup(_spawned(theirs, self._settings.threads))
        except OSError as error:
            ours.close()
            raise Unavailable(f"the model's process cannot be started: {error}", retry_after_s=1.0) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        transport.write(first)

    def ask(self, request: GenerationRequest, *, left_s: float, priority: int = 0) -> Answer:
        """Ask for a generation; its answer gets the events.

        Raises:
            QueueFull: too much waits already, here or in the pipe. TooLarge: the request is. Unavailable: it is gone.
        """
        if self.is_gone.is_set():
            raise Unavailable("the model's process has ended", retry_after_s=1.0)
        if self._transport is None or self._transport.get_write_buffer_size() > self._settings.max_pipe_bytes:
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
        watch, idle_looks = Watch(), 0
        look_s, idle_ping_s = self._settings.hang_s / LOOKS, self._settings.idle_ping_s
        while not self.is_gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_gone.wait(), look_s)
            has_work = bool(self.answers) or self.is_pinged
            watch = watch.look(progress=self.totals.steps, has_work=has_work)
            if watch.is_hung:
                return f"it had work and made no step for {self._settings.hang_s:g} s, and was killed"
            idle_looks = 0 if has_work else idle_looks + 1
            if idle_ping_s and idle_looks * look_s >= idle_ping_s:
                self.ping()
                idle_looks = 0
        return ""

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
        if self._group is not None:
            self._group.kill()

    async def end(self, grace_s: float) -> str:
        """Close the pipe, give the process ``grace_s`` to end, kill its group, and say how it ended: in its own words
        where it left some."""
        if self._transport is not None:
            self._transport.abort()
        how = "it was never started"
        if self._group is not None:
            status = await self._group.ended(grace_s)
            how = "it was killed and does not end" if status is None else status_words(status)
        return how if self._complaint is None else self._complaint.message

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._take(from_worker.decode(body))
        except (TooLarge, msgspec.DecodeError) as error:
            self._complaint = self._complaint or Unavailable(f"the model's process sent nonsense: {error}")
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone.set()
        self.is_idle.set()
        self.has_loaded.set()

    # -- what it says ---------------------------------------------------------------------------------------------

    def _take(self, message: FromWorker) -> None:
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
                self._complaint = error_of(message)

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
        assert self._transport is not None
        try:
            self._transport.write(encode(message, max_bytes=self._settings.max_frame_bytes))
        except (TypeError, ValueError, OverflowError) as error:  # numbers of more than 64 bits, half a surrogate pair
            raise InvalidInput(f"the request cannot be told to the model's process: {error}") from error


def _spawned(theirs: socket.socket, threads: int) -> subprocess.Popen[bytes]:
    """Start the program with its end of a socket pair.

    Called on the event loop's thread, which that holds up for as long as a fork takes: the kernel takes the end of the
    thread that started a process for the end of its parent.
    """
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=_STDERR,  # what a library prints is no answer of ours
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us alone, and the group can be killed
        pass_fds=(theirs.fileno(),),
    )
