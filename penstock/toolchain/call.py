"""Running a runner in a toolchain: a job file in, JSON lines out, an error that says what happened.

The other side is ``penstock.toolchain.programs.protocol``. Does not decide what a job or a result means.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from penstock.artifact.blobs import disk_errors
from penstock.errors import CompileError, Internal
from penstock.process.exit_status import status_words
from penstock.toolchain import child_process
from penstock.toolchain.locations import require
from penstock.toolchain.programs import protocol

MAX_LINE_BYTES = 16 * 1024 * 1024  # one line holds a whole result; figures per layer of a large model fit many times
_MAX_NOTE_CHARS = 200

# libraries that would otherwise reach for the network, or count us
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PROGRAMS = Path(protocol.__file__).parent

Progress = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and a short note."""


def call(
    name: str, runner: Path, job: Mapping[str, Any], *, progress: Progress | None = None, timeout_s: float = 3600.0
) -> dict[str, Any]:
    """Run ``runner`` on ``job`` in toolchain ``name`` and return its result.

    Args:
        runner: a program that answers by ``serve`` of ``programs/protocol.py``, which it imports as ``protocol``.
        job: plain JSON; a ``Path`` becomes an absolute path.
        progress: what it raises ends the runner.
        timeout_s: the runner is killed after this long.

    Raises:
        MissingToolchain, ConfigError: the toolchain cannot be used here; the message says what to do.
        CompileError: the runner's own error, in its own words, or it took longer than ``timeout_s``.
        Internal: it ended without a result; the message holds the end of its log.
        StorageError: the job file cannot be written.
    """
    command = [str(require(name)), "-s", str(runner.absolute())]
    found = {**environment(os.environ), "PYTHONPATH": str(_PROGRAMS)}
    return _run(command, found, job, progress, what=f"{runner.stem} (toolchain {name})", timeout_s=timeout_s)


def call_here(
    module: str, job: Mapping[str, Any], *, progress: Progress | None = None, timeout_s: float = 3600.0
) -> dict[str, Any]:
    """Run a module of ours on ``job`` in a process of its own, in this very environment.

    Args:
        module: a program that answers by ``serve`` of ``penstock.toolchain.programs.protocol``.
        job: as :func:`call` takes it.
        progress: what it raises ends the module.
        timeout_s: it is killed after this long.

    Raises:
        CompileError, Internal, StorageError: as :func:`call`.
    """
    found = {**os.environ, protocol.WATCH_STDIN: "1"}
    command = [sys.executable, "-m", module]
    return _run(command, found, job, progress, what=module.rpartition(".")[2], timeout_s=timeout_s)


def _run(
    command: list[str],
    environment: Mapping[str, str],
    job: Mapping[str, Any],
    progress: Progress | None,
    *,
    what: str,
    timeout_s: float,
) -> dict[str, Any]:
    output = _Output(progress or ignore_progress)
    with _job_file(job) as file:
        status = child_process.run(
            [*command, str(file)],
            environment=environment,
            on_output=output.read,
            on_log=output.log.add,
            timeout_s=timeout_s,
        )
    return _result(output, status, what=what, timeout_s=timeout_s)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a toolchain's process: no Python settings of ours, offline, hash seed fixed, threads
    bounded.

    Thread counts that are set are respected; otherwise OpenMP gets the processors that this process may use, which
    inside a container can be fewer than the machine has.
    """
    kept = child_process.scrubbed(inherited)
    kept.setdefault("OMP_NUM_THREADS", str(usable_processors()))
    return {**kept, **_OFFLINE, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", protocol.WATCH_STDIN: "1"}


def usable_processors() -> int:
    """Return how many processors this process may use, which inside a container can be fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ignore_progress(share: float, note: str) -> None:
    """Take progress that nothing watches."""


@dataclass(slots=True)
class _Output:
    """What has been read of a runner: its last word, if any, and the tail of everything that is no message."""

    progress: Progress
    final: dict[str, Any] | None = None
    log: child_process.Log = field(default_factory=child_process.Log)
    _line: bytearray = field(default_factory=bytearray)

    def read(self, chunk: bytes) -> bool:
        """Take a chunk of stdout in; whether the last word has been said.

        Raises:
            Internal: a line is too long to be kept.
        """
        self._line += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._line).split(b"\n")
            self._line = bytearray(rest)
            for line in lines:
                self._on_line(line)
        if len(self._line) > MAX_LINE_BYTES:
            raise Internal(
                f"a runner wrote a line of more than {MAX_LINE_BYTES} bytes, and was stopped; "
                f"large results belong in files{self.log.tail()}"
            )
        return self.final is not None

    def _on_line(self, line: bytes) -> None:
        message = _message(line)
        if message is None:
            self.log.add(line + b"\n")
        elif self.final is not None:
            return
        elif "progress" in message:
            share = message["progress"]
            if isinstance(share, int | float):
                self.progress(min(1.0, max(0.0, float(share))), str(message.get("note", ""))[:_MAX_NOTE_CHARS])
        else:
            self.final = message


@contextmanager
def _job_file(job: Mapping[str, Any]) -> Iterator[Path]:
    """Write a job to a file.

    Raises:
        StorageError: it cannot be written.
    """
    content = msgspec.json.encode(job, enc_hook=_plain)
    with disk_errors("writing a job for a toolchain"):
        scratch = Path(tempfile.mkdtemp(prefix="penstock-job-"))
    try:
        with disk_errors("writing a job for a toolchain"):
            (scratch / "job.json").write_bytes(content)
        yield scratch / "job.json"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _result(output: _Output, status: int | None, *, what: str, timeout_s: float) -> dict[str, Any]:
    final = output.final or {}
    if isinstance(final.get("result"), dict):
        return dict(final["result"])  # complete as soon as it is there, whatever a library does at exit
    if isinstance(error := final.get("error"), dict):
        message = str(error.get("message", ""))[: protocol.MAX_MESSAGE_CHARS]
        is_input = error.get("kind") == "input"
        raise CompileError(message if is_input else f"{what} failed: {message}{output.log.tail()}")
    if status is None:
        raise CompileError(f"{what} did not finish within {timeout_s:g} s and was stopped{output.log.tail()}")
    ending = f"{status_words(status)}{output.log.cause()}"
    raise Internal(f"{what} ended without a result: {ending}{output.log.tail()}")


def _message(line: bytes) -> dict[str, Any] | None:
    """Read a message of the protocol; None for a library's chatter that got past it."""
    if not line.startswith(b"{"):
        return None
    try:
        message = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return message if isinstance(message, dict) and message.keys() & {"progress", "result", "error"} else None


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())
    raise TypeError(f"a job is plain JSON; {type(value).__name__} is not")
