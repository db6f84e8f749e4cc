"""One life of a server with processes of its own, from its start to its end, as whoever manages it sees it.

Owns the process group (through ``penstock.hosting.generation.managed.keeper``), the socket over which the server is
asked, and the place of its log: nothing but the log is left when a life has ended. The server is ready after one token,
and hangs when it is asked for tokens and makes none; its health and its load say nothing about either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from penstock.errors import PenstockError, Unavailable
from penstock.hosting.generation.generator import Totals
from penstock.hosting.generation.managed import keeper
from penstock.hosting.generation.remote import RemoteGenerator
from penstock.hosting.workers.process_group import ProcessGroup
from penstock.policy.worker_health import LOOKS
from penstock.process.exit_status import status_words

_KEEPER = "penstock.hosting.generation.managed.keeper"
_STDERR = 2
_LOOK_S = 0.05
_PATIENCE_S = 86_400.0  # whoever starts it has less
_MAX_SOCKET_PATH = 100  # of the 107 bytes that Linux has for one, and the 103 of macOS
_LOG_TAIL_BYTES = 64 * 1024
_TOLD_CHARACTERS = 300
# what is said of an error, and a line more where that goes on; lines of vLLM's processes begin with their names
_COMPLAINT = re.compile(r"\b[\w.]*(?:Error|Exception): .+(?:\n(?:\(\w+ pid=\d+\) )?\s{2,}\S.*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server and how it is started.

    Attributes:
        command: of a path: that of the socket on which it has to listen.
        environment: all that it gets.
        directory: in which it runs.
        log: file for what it prints.
        max_log_bytes: of that file and the one before it.
        says_nothing: finds errors that only say that there was another one.
    """

    command: Callable[[Path], Sequence[str]]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    max_log_bytes: int
    says_nothing: re.Pattern[str]


class ServerLife(asyncio.Protocol):
    """A server that runs one model. Everything here happens on the event loop that started it.

    Attributes:
        url: of its socket.
        remote: asks it.
        is_gone: is set when its keeper is.
        has_ended: is set when nothing is left of it.
        how: it ended; "" until then.
    """

    def __init__(self, program: Program, ask: Callable[[str], RemoteGenerator], hang_s: float) -> None:
        """
        Args:
            ask: makes, of a URL, what asks the server.
            hang_s: a server that fails for so long is given up.
        """
        self._program, self._hang_s = program, hang_s
        self._place = _private_directory()
        self._socket = self._place / "s"
        self.url = f"unix://{self._socket}"
        self.remote = ask(self.url)
        self._transport: asyncio.Transport | None = None
        self._group: ProcessGroup | None = None
        self._told = b""
        self._log_begins = 0
        self._hangs = 0
        self.is_gone, self.has_ended = asyncio.Event(), asyncio.Event()
        self.how = ""

    def __repr__(self) -> str:
        return f"ServerLife(pid={self.pid}, {self.remote})"

    @property
    def pid(self) -> int | None:
        """Return the id of the server's process group; None before it was started."""
        return None if self._group is None else self._group.pid

    @property
    def totals(self) -> Totals:
        """Return what it has done."""
        return self.remote.counts().totals

    @property
    def unanswered(self) -> int:
        """Return the number of generations that it was asked for and has not ended."""
        return self.remote.outstanding

    @property
    def is_hung(self) -> bool:
        """Say whether it was asked for tokens, and sent none for too long, since it was ready."""
        return self.remote.counts().hangs > self._hangs

    async def begin(self) -> None:
        """Start it, and wait for one token.

        Raises:
            Unavailable: it cannot be started, ended by itself, or answered otherwise; the message has its last error.
        """
        try:
            await self._spawn()
        except OSError as error:
            raise Unavailable(f"the server cannot be started: {error}", retry_after_s=1.0) from error
        token = asyncio.ensure_future(self._first_token())
        gone = asyncio.ensure_future(self.is_gone.wait())
        try:
            await asyncio.wait({token, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not self.is_gone.is_set():
                token.result()
                self._hangs = self.remote.counts().hangs
                return
        finally:
            for task in (token, gone):
                task.cancel()
            await asyncio.gather(token, gone, return_exceptions=True)
        raise Unavailable(f"its server ended before its first token: {await self.end(0.0)}")

    async def watched(self) -> str:
        """Wait until it is gone, or makes no token though it is asked for some; return that in words, or ""."""
        looks_down = 0
        while not self.is_gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_gone.wait(), self._hang_s / LOOKS)
            health = self.remote.health()
            looks_down = 0 if health.is_well else looks_down + 1
            if self.is_hung or looks_down >= LOOKS:
                return f"it was asked and made no token for {self._hang_s:g} s, and was killed: {health.why}"
        return ""

    async def drained(self, timeout_s: float) -> None:
        """Wait until everything is answered, for as long as that."""
        await self.remote.drained(timeout_s)

    async def end(self, grace_s: float) -> str:
        """Tell it to end, give it ``grace_s``, kill its group, and say how it ended, with its last words."""
        if grace_s > 0 and self._transport is not None and not self.is_gone.is_set():
            self._transport.write(keeper.END)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_gone.wait(), grace_s)
        try:
            status = None if self._group is None else await self._group.ended(0.0)
        finally:
            if self._transport is not None:
                self._transport.abort()
            shutil.rmtree(self._place, ignore_errors=True)
        self.how = self.how or self._words(status)
        self.has_ended.set()
        await self.remote.close(0.0)
        return self.how

    def fail_all(self, error: Callable[[], PenstockError]) -> None:
        """Tell those who still wait for an answer."""
        self.remote.fail_all(error)

    # -- asyncio.Protocol: the keeper's end of the socket -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._told = (self._told + data)[:16]

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone.set()

    # -- its start and its end ------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        """Start the keeper on this thread, with its end of a socket pair."""
        program = self._program
        for directory in (program.directory, program.log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            self._log_begins = program.log.stat().st_size
        ours, theirs = socket.socketpair()
        with theirs:
            self._group = ProcessGroup(_kept(program, self._socket, theirs))
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    async def _first_token(self) -> None:
        while True:  # quietly: loading takes minutes
            try:
                _, writer = await asyncio.open_unix_connection(str(self._socket))
            except OSError:
                await asyncio.sleep(_LOOK_S)
                continue
            writer.close()
            await self.remote.start(patience_s=_PATIENCE_S)
            return

    def _words(self, status: int | None) -> str:
        with contextlib.suppress(ValueError):
            status = int(self._told)
        how = "it was never started" if status is None else status_words(status)
        last = self._last_error()
        return f"{how}{f'; its last error: {last}' if last else ''} (log: {self._program.log})"

    def _last_error(self) -> str:
        """Return the last error of this life's log that says something."""
        try:
            with self._program.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begins = self._log_begins if self._log_begins <= size else 0  # it was begun again meanwhile
                file.seek(max(begins, size - _LOG_TAIL_BYTES))
                found = _COMPLAINT.findall(file.read().decode("utf-8", "replace"))
        except OSError:
            return ""
        telling = [error for error in found if not self._program.says_nothing.search(error)] or found
        return " ".join(telling[-1].split())[:_TOLD_CHARACTERS] if telling else ""


def _kept(program: Program, listens_on: Path, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start the keeper with its end of a socket pair."""
    arguments = [str(theirs.fileno()), str(program.max_log_bytes), str(program.log), *program.command(listens_on)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _KEEPER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=_STDERR,
        env={**os.environ, keeper.ENVIRONMENT: json.dumps(dict(program.environment))},
        cwd=program.directory,
        start_new_session=True,  # Ctrl-C reaches us alone, and the group can be killed
        pass_fds=(theirs.fileno(),),
    )


def _private_directory() -> Path:
    """Make a directory that only this user may look into, with a path short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="penstock-"))
    if len(os.fsencode(made)) <= _MAX_SOCKET_PATH:
        return made
    made.rmdir()
    return Path(tempfile.mkdtemp(prefix="penstock-", dir="/tmp"))
