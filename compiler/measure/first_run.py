"""First runs: before a model runs in this process, it is loaded and run in a child, with a limit in time and memory.

A graph from somebody else may loop without end, or ask for more memory than there is, and the first run would end the
compilation without a word. One child serves a whole process; after a run that went over a limit, the next one gets
a new child. What the child does is ``compiler.measure.first_run_child``.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from penstock.errors import CompileError
from penstock.process import machine
from penstock.wire import tensors
from penstock.wire.tensors import Array

_START_S = 60.0
_ENDING_S = 5.0
_WALL = 4.0  # times the processor time: a busy machine is not the model's fault
_MAX_REPLY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a first run may take.

    Attributes:
        seconds: of processor time, to load the model and answer one row.
        memory_bytes: beyond what the child needs itself; 0 takes four fifths of what is free.
    """

    seconds: float = 60.0
    memory_bytes: int = 0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run: a model file, the row to give it ("" makes one of zeros, where every size is fixed)."""

    model: str
    row: str
    seconds: float


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: ``is_memory`` says that memory was the reason of ``problem``."""

    problem: str = ""
    is_memory: bool = False


class FirstRuns:
    """Runs models in one child, which is started with the first."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stop: weakref.finalize[..., FirstRuns] | None = None
        self._memory_bytes = 0

    def run(self, model: Path, row: Mapping[str, Array] | None, limits: Limits, *, what: str) -> None:
        """Load a model and run one row.

        Args:
            row: of examples, each [1, ...]; None makes one of zeros, and only what goes over a limit counts.
            what: the model, for messages.

        Raises:
            CompileError: it took longer or more memory than the limits, or ended the child.
        """
        child = self._started(limits)
        with tempfile.TemporaryDirectory(prefix="penstock-first-run-") as scratch:
            path = Path(scratch) / "row.msgpack"
            if row is not None:
                path.write_bytes(tensors.pack(row))
            request = Request(model=str(model), row="" if row is None else str(path), seconds=limits.seconds)
            reply = _asked(child, request)
        if reply is None:
            code = child.poll()
            self.close()
            raise CompileError(_ended(code, what, limits, self._memory_bytes))
        if reply.is_memory:
            self.close()
            raise CompileError(_too_large(what, self._memory_bytes, reply.problem))

    def close(self) -> None:
        """End the child, if there is one."""
        if self._stop is not None:
            self._stop()
        self._child, self._stop = None, None

    def _started(self, limits: Limits) -> subprocess.Popen[bytes]:
        wanted = limits.memory_bytes or machine.first_run_bytes()
        if self._child is not None and limits.memory_bytes not in (0, self._memory_bytes):
            self.close()
        if self._child is None:
            command = [sys.executable, "-m", "compiler.measure.first_run_child", str(wanted)]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._memory_bytes = wanted
            self._stop = weakref.finalize(self, _end, self._child)
        return self._child


@cache
def shared() -> FirstRuns:
    """Return the first runs of this process: its compilations follow each other, and one child will do for all."""
    return FirstRuns()


def _asked(child: subprocess.Popen[bytes], request: Request) -> Reply | None:
    """Send a request and wait for the reply; None where none came in time, or ever will."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(msgspec.json.encode(request) + b"\n")
        child.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            if not selector.select(_WALL * request.seconds + _START_S):  # a child that ended can be read, too
                return None
        line = child.stdout.readline(_MAX_REPLY_BYTES)
        if line:
            return msgspec.json.decode(line, type=Reply)
    except (BrokenPipeError, msgspec.MsgspecError):
        pass
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_ENDING_S)
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def _ended(code: int | None, what: str, limits: Limits, memory_bytes: int) -> str:
    """Say why there was no reply.

    Args:
        code: with which the child ended; None where it runs on.
    """
    if code in (None, -signal.SIGXCPU):
        return (
            f"{what}: loading it and answering one row did not end within {limits.seconds:g} s of processor time. Does "
            "it hold a Loop or Scan that (nearly) never ends? Export it without; a model that is only slow gets "
            "more time with model.max_run_s"
        )
    return (
        f"{what}: the process that loaded it and answered one row was ended (code {code}), with {_gib(memory_bytes)} "
        "GiB of memory allowed: by the system, which had less, or by a fault of onnxruntime on this file. Try a "
        "machine with more memory, or export the model again"
    )


def _too_large(what: str, memory_bytes: int, problem: str) -> str:
    return (
        f"{what}: loading it and answering one row needs more than the {_gib(memory_bytes)} GiB of memory allowed "
        f"({problem}). Use a smaller model or inputs, a machine with more memory, or set model.max_run_bytes"
    )


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f}"
