"""A worker process as its parent sees it: started with one end of a socket pair, watched, and ended as a whole.

Owns the process, its group and the way to it; what is said over it is the family's. When it counts as hung is
``penstock.policy.worker_health``'s to say; whether another one follows, ``penstock.hosting.workers.lives``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from penstock.errors import PenstockError, TooLarge, Unavailable
from penstock.hosting.workers.framing import Splitter
from penstock.hosting.workers.process_group import ProcessGroup
from penstock.policy.worker_health import LOOKS, Watch
from penstock.process.exit_status import status_words

_STDERR = 2


class WorkerProcess(asyncio.Protocol):
    """One process and the socket to it. Everything here happens on the event loop that started it.

    Attributes:
        complaint: why it ended, where it said so itself, or what is wrong with what it sent.
        is_gone: is set when nothing more will be heard of it.
    """

    def __init__(self, take: Callable[[bytes], None], gone: Callable[[], None], *, max_frame_bytes: int) -> None:
        """
        Args:
            take: is given the body of each frame; what it raises of msgspec's errors ends the connection.
            gone: called once, when nothing more will come.
        """
        self._take, self._gone = take, gone
        self._splitter = Splitter(max_frame_bytes)
        self._transport: asyncio.Transport | None = None
        self._group: ProcessGroup | None = None
        self.complaint: PenstockError | None = None
        self.is_gone = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Return the process's id, which is its group's; None before it was started."""
        return None if self._group is None else self._group.pid

    @property
    def unsent_bytes(self) -> int | None:
        """Bytes that it has not taken yet; None where there is no way to it."""
        return None if self._transport is None else self._transport.get_write_buffer_size()

    async def begin(self, program: str, first: bytes, *, threads: int = 0, descriptors: Sequence[int] = ()) -> None:
        """Start a module as a program, and send it its first frame.

        Args:
            threads: that libraries are told by the environment; 0 for nothing.
            descriptors: that it inherits under their numbers.

        Raises:
            Unavailable: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            self._group = ProcessGroup(_spawned(program, theirs, threads, descriptors))
        except OSError as error:
            ours.close()
            raise Unavailable(f"the model's process cannot be started: {error}", retry_after_s=1.0) from error
        finally:
            theirs.close()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        transport.write(first)

    def send(self, frame: bytes) -> None:
        """Send a frame; nothing happens where it has ended."""
        assert self._transport is not None
        self._transport.write(frame)

    async def watched(self, hang_s: float, *, progress: Callable[[], int], has_work: Callable[[], bool],
                      idle_ping_s: float, ping: Callable[[], None]) -> str:  # fmt: skip
        """Wait until it is gone, or does not move though it has work; return that in words, or "".

        Args:
            hang_s: for how long it may stand still while it has work.
            progress: a number that changes with each step that it makes.
            has_work: whether it owes us anything, an answer to a ping included.
            idle_ping_s: for how long it may have nothing to do before it is asked for a sign of life; 0 never asks.
            ping: asks for one.
        """
        watch, idle_looks = Watch(), 0
        look_s = hang_s / LOOKS
        while not self.is_gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_gone.wait(), look_s)
            is_busy = has_work()
            watch = watch.look(progress=progress(), has_work=is_busy)
            if watch.is_hung:
                return f"it had work and made no step for {hang_s:g} s, and was killed"
            idle_looks = 0 if is_busy else idle_looks + 1
            if idle_ping_s and idle_looks * look_s >= idle_ping_s:
                if not self.is_gone.is_set():
                    ping()
                idle_looks = 0
        return ""

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
        return how if self.complaint is None else self.complaint.message

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._take(body)
        except (TooLarge, msgspec.DecodeError) as error:
            self.complaint = self.complaint or Unavailable(f"the model's process sent nonsense: {error}")
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone.set()
        self._gone()


def _spawned(program: str, theirs: socket.socket, threads: int, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start the program with its end of a socket pair.

    Called on the event loop's thread, which that holds up for as long as a fork takes: the kernel takes the end of the
    thread that started a process for the end of its parent.
    """
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", program, str(theirs.fileno()), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=_STDERR,  # what a library prints is no answer of ours
        env=environment,
        start_new_session=True,  # Ctrl-C reaches us alone, and the group can be killed
        pass_fds=(theirs.fileno(), *descriptors),
    )
