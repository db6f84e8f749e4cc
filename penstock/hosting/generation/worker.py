"""The program that runs one engine in a process of its own: ``python -m penstock.hosting.generation.worker``.

Its parent (``penstock.hosting.generation.process``) gives it one end of a socket pair and says over it what to load and
to answer. One thread: commands are taken between two steps. Ends when its parent does, however that ends, and with its
engine's first failure; restarting is the parent's. Who asks over a network never talks to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

import penstock.runtime.generation
from penstock.errors import ConfigError, InvalidInput
from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
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
    failure_of,
    to_worker,
)
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import EngineLoop
from penstock.process.telemetry import LogSettings, log, setup_service_logging

_log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024
_LAST_WORDS_S = 2.0
_MAX_MESSAGE_BYTES = 2**31 - 1  # the parent is trusted with its own limit
_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The other end of the pipe is closed: nobody is left to answer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A request with values of types that no request has; the parent checks none, since it would pay for each."""

    id: str
    why: str


class Pipe:
    """The worker's end: messages in, messages out, and never a wait for a parent that does not read."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._splitter = Splitter(_MAX_MESSAGE_BYTES)
        self._unsent = bytearray()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the parent has not taken yet."""
        return len(self._unsent)

    def send(self, message: FromWorker) -> None:
        """Send a message, or keep what the parent does not take now.

        Raises:
            ParentGone: it never will.
        """
        self._unsent += encode(message, max_bytes=_MAX_MESSAGE_BYTES)
        self._flush()

    def receive(self, timeout_s: float | None) -> list[ToWorker | Unreadable]:
        """Return what has arrived; wait until something has, until something could be sent, or for ``timeout_s``.

        Raises:
            ParentGone: the parent has closed its end, or died.
        """
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._connection, wanted)
        messages: list[ToWorker | Unreadable] = []
        for _, ready in self._selector.select(timeout_s):
            if ready & selectors.EVENT_WRITE:
                self._flush()
            if ready & selectors.EVENT_READ:
                messages += [_message(body) for body in self._splitter.feed(self._read())]
        return messages

    def last_words(self, message: FromWorker) -> None:
        """Send a message before the end, and wait a little until it is taken."""
        give_up = time.monotonic() + _LAST_WORDS_S
        with contextlib.suppress(ParentGone):
            self.send(message)
            while self._unsent and time.monotonic() < give_up:
                self.receive(_LAST_WORDS_S)

    def _read(self) -> bytes:
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:  # pragma: no cover - the selector said that there is something
            return b""
        except OSError as error:
            raise ParentGone(str(error)) from error
        if not data:
            raise ParentGone("the connection was closed")
        return data

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise ParentGone(str(error)) from error


def main(descriptor: int, parent: int) -> int:
    """Serve the parent that is at the other end of a socket until one of us ends; return the exit status."""
    _end_with(parent)
    pipe = Pipe(socket.socket(fileno=descriptor))
    try:
        begin = _first(pipe)
        setup_service_logging(begin.log or LogSettings())
        with contextlib.suppress(OSError):
            os.nice(begin.nice)
        try:
            loop = load(begin)
        except Exception as error:
            log(_log, logging.ERROR, "model not loaded", exc_info=error, engine=begin.model.engine)
            pipe.last_words(failure_of("", error))
            return 1
        pipe.send(Loaded(facts=loop.facts))
        try:
            serve(pipe, loop, max_unsent_bytes=begin.max_pipe_bytes)
        except ParentGone:
            raise
        except Exception as error:
            log(_log, logging.ERROR, "engine failed", exc_info=error, engine=begin.model.engine)
            pipe.last_words(failure_of("", error))
            return 1
    except ParentGone:
        return 0
    return 0


def load(begin: Begin) -> EngineLoop:
    """Make the engine and the text of its answers, as the parent told.

    Raises:
        InvalidInput: no such engine. MissingExtra: a library is not installed. ArtifactError: the files are not those
            of a model with a tokenizer.
    """
    directory = Path(begin.model.directory)
    # the tokenizer first: it is quick, and what is wrong with it is told before the weights are read
    pieces = tokenizer.load(_files(directory)).pieces
    engine = penstock.runtime.generation.load(begin.model.engine, directory, begin.model.options)
    limits = begin.line.of(engine.facts)
    return EngineLoop(engine, lambda request: AnswerText(request, pieces), limits, time.monotonic)


def serve(pipe: Pipe, loop: EngineLoop, *, max_unsent_bytes: int) -> None:
    """Take commands, make a step, say what came of it, until the parent is gone.

    A parent that does not read stops the engine when ``max_unsent_bytes`` wait for it: what nobody takes is not made.

    Raises:
        ParentGone: the usual end. Internal: the engine failed.
    """
    told: tuple[Load, Totals] | None = None
    refused: list[Failure] = []
    has_work = False
    while True:
        is_jammed = pipe.unsent_bytes > max_unsent_bytes
        messages = pipe.receive(0.0 if has_work and not is_jammed else None)
        refused += [failure for message in messages if (failure := obey(loop, message)) is not None]
        if any(isinstance(message, Ping) for message in messages):
            told = None
        if pipe.unsent_bytes > max_unsent_bytes:
            continue
        turn = loop.turn()
        has_work = turn.has_work
        failures = (*refused, *(failure_of(id, error) for id, error in turn.failures))
        refused.clear()
        load_now, totals = loop.load(), loop.totals()
        if turn.events or failures or (load_now, totals) != told:
            pipe.send(Report(events=turn.events, failures=failures, times=turn.times, load=load_now, totals=totals))
            told = load_now, totals


def obey(loop: EngineLoop, message: ToWorker | Unreadable) -> Failure | None:
    """Do what the parent says; return what it has to hear of a request that cannot be taken.

    Whatever is wrong with one request, the others go on.
    """
    match message:
        case Unreadable(id=id, why=why):
            return failure_of(id, InvalidInput(f"the request is malformed: {why}"))
        case Ask(request=request, left_s=left_s, priority=priority):
            deadline = float("inf") if left_s is None else time.monotonic() + left_s
            try:
                loop.submit(request, deadline=deadline, priority=priority)
            except Exception as error:
                return failure_of(request.id, error)
        case Cancel(id=id):
            loop.cancel(id)
        case Ping():
            pass  # the report that follows is the answer
        case Begin():
            raise ConfigError("a worker was told twice what to load")
    return None


def _message(body: bytes) -> ToWorker | Unreadable:
    try:
        return to_worker.decode(body)
    except msgspec.ValidationError as error:
        return Unreadable(id=str(msgspec.msgpack.decode(body)["request"]["id"]), why=str(error))


def _files(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in tokenizer.FILES if (directory / name).is_file()}


def _first(pipe: Pipe) -> Begin:
    while True:
        for message in pipe.receive(None):
            if not isinstance(message, Begin):
                raise ConfigError(f"a worker has to be told first what to load, not {type(message).__name__}")
            return message


def _end_with(parent: int) -> None:
    """Leave no orphan: end with the parent even while a step hangs, and leave signals of the group to it.

    A service manager sends SIGTERM to every process of a service, and the parent drains: its streams go on until it
    closes the pipe. Where the kernel has no signal for the parent's death, its end of the pipe tells between two steps.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(0)
        # the model's process, not the one that answers for it, is what memory is taken from when there is none
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
