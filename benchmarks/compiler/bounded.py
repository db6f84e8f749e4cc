"""Calls in a process of their own with a limit of time: what hangs, breaks or dies ends itself, and not the run.

Owns these processes, and what they started. Does not know what is called.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar

from penstock.errors import PenstockError

Answer = TypeVar("Answer")

_PRELOADED = ("benchmarks.compiler.cases", "benchmarks.compiler.quantizers", "benchmarks.compiler.measure")
_END_S = 10.0
_ERROR_CHARS = 400


class NotDone(RuntimeError):
    """The call gave no answer; the message says why, in one line."""


def call(function: Callable[..., Answer], *arguments: Any, limit_s: float) -> Answer:
    """Call a module's function in a process of its own and return what it returns; both ways it is pickled.

    Raises:
        NotDone: it raised, its process died, or ``limit_s`` passed, whereupon all that it started is killed.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit_s):
            raise NotDone(f"not done after {limit_s:.0f} s")
        is_good, found = ours.recv()
        process.join(_END_S)
    except EOFError:
        process.join(_END_S)
        raise NotDone(f"its process ended without an answer ({_ending(process.exitcode)})") from None
    finally:
        ours.close()
        _end(process)
    if not is_good:
        raise NotDone(str(found))
    answer: Answer = found
    return answer


def _context() -> ForkServerContext:
    # not fork: a fork of a process that has run a model has its locks and none of its threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _answer(to: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()  # a group of its own, which ends as a whole
    try:
        found = (True, function(*arguments))
    except PenstockError as error:
        found = (False, error.message)
    except Exception as error:  # whatever a quantizer or a download raises is a line of the table
        traceback.print_exc(file=sys.stderr)
        found = (False, f"{type(error).__name__}: {error}"[:_ERROR_CHARS])
    to.send(found)


def _end(process: ForkServerProcess) -> None:
    """Kill what is left: the process, and whatever it started and did not wait for."""
    assert process.pid is not None
    with suppress(ProcessLookupError):  # all of it ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    if process.exitcode is None:
        process.kill()  # one that had no group of its own yet
        process.join(_END_S)


def _ending(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"status {status}"
