"""What a command's output goes to, and what becomes of it: a narrow encoding, a closed pipe, a full disk, nothing.

A result that could not be written is a failed command (POSIX: a utility must not report success then). What goes to
stderr is beside the result, and is lost quietly.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputLostError(Exception):
    """Standard output does not take what was written to it; the cause says why."""


def secure() -> None:
    """Make stdout and stderr ready for anything; the first thing that a process does.

    A descriptor that was closed when the process started is filled: the next file or socket would get its number, and
    with it whatever a library prints.
    """
    _fill(_STDIN, os.O_RDONLY)
    _fill(_STDERR, os.O_WRONLY)
    is_closed = _fill(_STDOUT, os.O_RDONLY)  # for reading: what is written fails, as it would have
    if is_closed or _goes_to(sys.stdout, _STDOUT):
        sys.stdout = _text(_Result(_STDOUT, "w", closefd=False))
    if _goes_to(sys.stderr, _STDERR):
        sys.stderr = _text(_Aside(_STDERR, "w", closefd=False))


def give_up() -> None:
    """Let nothing more be written to stdout, so that the interpreter does not try once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _STDOUT)
    os.close(null)


class _Result(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLostError(str(error.strerror)) from error


class _Aside(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _text(raw: io.FileIO) -> io.TextIOWrapper:
    # the encoding is what Python chose for the terminal and locale; a character that it lacks is no reason to fail
    encoding = getattr(sys.__stdout__ or sys.__stderr__, "encoding", None)
    is_by_line = raw.fileno() == _STDERR or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=is_by_line
    )


def _goes_to(stream: object, descriptor: int) -> bool:
    """Say whether it is Python's own stream for the descriptor, and not what a test put in its place."""
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor
    except io.UnsupportedOperation:  # a stream in memory
        return False


def _fill(descriptor: int, flags: int) -> bool:
    """Open /dev/null as ``descriptor`` if that is closed; say whether it was."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)  # programs that are started need their three as well
        return True
    return False
