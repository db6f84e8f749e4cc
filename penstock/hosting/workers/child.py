"""The worker's side of its parent: frames in, frames out over a socket pair, and an end with the parent.

What is in the frames is each program's own (``penstock.hosting.generation.worker``). Who asks over a network never
talks to a worker.
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
from collections.abc import Callable
from typing import Protocol, TypeVar

from penstock.hosting.workers.framing import Splitter
from penstock.process.telemetry import LogSettings, log, setup_service_logging

MAX_FRAME_BYTES = 2**31 - 1
"""The parent is trusted with its own limit."""

_log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024
_LAST_WORDS_S = 2.0
_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The other end of the pipe is closed: nobody is left to answer to."""


class Pipe:
    """The worker's end: frames in, frames out, and never a wait for a parent that does not read."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._splitter = Splitter(MAX_FRAME_BYTES)
        self._unsent = bytearray()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the parent has not taken yet."""
        return len(self._unsent)

    def send(self, frame: bytes) -> None:
        """Send a frame, or keep what the parent does not take now.

        Raises:
            ParentGone: it never will.
        """
        self._unsent += frame
        self._flush()

    def receive(self, timeout_s: float | None) -> list[bytes]:
        """Return what has arrived; wait until something has, until something could be sent, or for ``timeout_s``.

        Raises:
            ParentGone: the parent has closed its end, or died.
        """
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._connection, wanted)
        bodies: list[bytes] = []
        for _, ready in self._selector.select(timeout_s):
            if ready & selectors.EVENT_WRITE:
                self._flush()
            if ready & selectors.EVENT_READ:
                bodies += self._splitter.feed(self._read())
        return bodies

    def last_words(self, frame: bytes) -> None:
        """Send a frame before the end, and wait a little until it is taken."""
        give_up = time.monotonic() + _LAST_WORDS_S
        with contextlib.suppress(ParentGone):
            self.send(frame)
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


class Begun(Protocol):
    """What a parent says first, whatever else is in it."""

    @property
    def nice(self) -> int: ...
    @property
    def log(self) -> LogSettings | None: ...


class Server(Protocol):
    """What a worker does once it has loaded."""

    def serve(self) -> None:
        """Serve until the parent is gone.

        Raises:
            ParentGone: the usual end. Exception: nothing more can be done here.
        """
        ...


BegunT = TypeVar("BegunT", bound=Begun)


def run(
    descriptor: int,
    parent: int,
    *,
    first: Callable[[bytes], BegunT],
    ready: Callable[[Pipe, BegunT], Server],
    engine: Callable[[BegunT], str],
    failed: Callable[[Exception], bytes],
) -> int:
    """Serve the parent that is at the other end of a socket until one of us ends; return the exit status.

    Args:
        first: reads the parent's first word.
        ready: loads, and tells the parent when it has.
        engine: names what it loads, for the log.
        failed: writes the last words about an error.
    """
    end_with(parent)
    pipe = Pipe(socket.socket(fileno=descriptor))
    try:
        begun = first(_first_of(pipe))
        setup_service_logging(begun.log or LogSettings())
        with contextlib.suppress(OSError):
            os.nice(begun.nice)
        try:
            server = ready(pipe, begun)
        except Exception as error:
            log(_log, logging.ERROR, "model not loaded", exc_info=error, engine=engine(begun))
            pipe.last_words(failed(error))
            return 1
        try:
            server.serve()
        except ParentGone:
            raise
        except Exception as error:
            log(_log, logging.ERROR, "engine failed", exc_info=error, engine=engine(begun))
            pipe.last_words(failed(error))
            return 1
    except ParentGone:
        return 0
    return 0


def _first_of(pipe: Pipe) -> bytes:
    while True:
        for body in pipe.receive(None):
            return body


def end_with(parent: int) -> None:
    """Leave no orphan: end with the parent even while a step hangs, and leave signals of the group to it.

    A service manager sends SIGTERM to every process of a service, and the parent drains: what it asked for goes on
    until it closes the pipe. Where the kernel has no signal for the parent's death, its end of the pipe tells between
    two steps.
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
