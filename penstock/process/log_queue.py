"""The way of log lines to stderr in a process that serves: a bounded queue, and a thread that writes.

Whoever reads stderr may stall (a blocked log driver, a paused terminal), go away, or have no disk left. A write would
then block or fail, and with it the event loop. Lines that find no room, or that nobody takes, are dropped and counted;
once lines are taken again, one line says how many are missing. Knows nothing of levels and formats.

Written to the descriptor, not to Python's own ``sys.stderr``: its lock would be held by a write that blocks.
"""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable

_LOOK_AGAIN_S = 1.0
_BESIDE_BYTES = 100  # of memory that a line takes beside its text, however short it is


class QueuedStream(io.TextIOBase):
    """A text stream that never blocks and never fails. Its thread starts with the first line."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, *, max_bytes: int, notice: Callable[[int], str]) -> None:
        """Queue for ``descriptor``.

        Args:
            max_bytes: of lines that wait, the one that is being written included.
            notice: makes the line that says how many lines are missing.
        """
        self._descriptor, self._max_bytes, self._notice = descriptor, max_bytes, notice
        self.begin_again()

    def begin_again(self) -> None:
        """Start with nothing, as a forked child must: what waits is its parent's, and so is the thread."""
        # re-entrant: a destructor that logs may run in the middle of a write
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[bytes, int]] = deque()  # lines, each with the number that was refused before it
        self._waiting_bytes = 0
        self._is_dropping = False
        self._is_writing = False
        self._refused = 0
        self._lost = 0  # by the thread alone, as _told
        self._told = 0
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Lines that found no room, or that could not be written."""
        return self._refused + self._lost

    def write(self, text: str, /) -> int:
        """Take ``text`` in, or drop it."""
        line = text.encode(self.encoding, self.errors)
        with self._changed:
            # once full, it is filled again only from half: each gap has its notice, which is a line, too
            room = self._max_bytes // 2 if self._is_dropping else self._max_bytes
            self._is_dropping = self._waiting_bytes + _size_bytes(line) > room
            if self._is_dropping:
                self._refused += 1
                return len(text)
            self._waiting.append((line, self._refused))
            self._waiting_bytes += _size_bytes(line)
            if self._thread is None:
                # a daemon: a process that ends does not wait for a reader that never comes
                self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything is written, ``timeout_s`` at most; say whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._is_writing, timeout_s)

    def flush(self) -> None:
        """Do nothing: whoever flushes after each line must not wait."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                self._is_writing = True
                line, refused_before = self._waiting.popleft()
            self._tell_missing(refused_before)
            self._lost += not self._put(line)
            with self._changed:
                self._waiting_bytes -= _size_bytes(line)
                is_last, refused = not self._waiting, self._refused
            if is_last:
                self._tell_missing(refused)

    def _tell_missing(self, refused: int) -> None:
        missing = refused + self._lost - self._told
        if missing and self._put(self._notice(missing).encode(self.encoding, self.errors)):
            self._told += missing

    def _put(self, line: bytes) -> bool:
        """Write a line, however long its reader takes; say whether it could be written."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that has the same pipe made it non-blocking
                select.select([], [self._descriptor], [], _LOOK_AGAIN_S)
            except OSError:  # its reader is gone, the disk is full, the terminal is closed
                return False
        return True


def _size_bytes(line: bytes) -> int:
    return len(line) + _BESIDE_BYTES
