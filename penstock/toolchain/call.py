"""Running a runner in a toolchain: a job file in, JSON lines out, within limits of time and memory.

Owns the process: its environment, its end (the whole process group dies on a timeout, on Ctrl-C and on an error of the
caller's), and what of its output is kept. The other side is ``compiler/runners/protocol.py``. Does not decide what a
job or a result means.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from penstock.blobs import disk_errors
from penstock.errors import CompileError, Internal
from penstock.toolchain.places import require

MAX_LINE_BYTES = 16 * 1024 * 1024  # one line holds a whole result; figures per layer of a large model fit many times
MAX_LOG_BYTES = 64 * 1024
_LOG_LINES_SHOWN = 12
_MAX_NOTE_CHARS = 200
_MAX_MESSAGE_CHARS = 4000
_CHUNK_BYTES = 64 * 1024
_POLL_S = 0.5  # how soon the end of a process is noticed whose children hold its output open
_END_GRACE_S = 10.0  # from the final line to the end of the process

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
# of the interpreter that runs us, and wrong or misleading in another
_SCRUBBED = ("VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
_WATCH_STDIN = "PENSTOCK_RUNNER_WATCHES_STDIN"

Progress = Callable[[float, str], None]


def call(
    name: str, runner: Path, job: Mapping[str, Any], *, progress: Progress | None = None, timeout_s: float = 3600.0
) -> dict[str, Any]:
    """Run ``runner`` on ``job`` in toolchain ``name`` and return its result.

    Args:
        runner: a program that keeps to ``compiler/runners/protocol.py``.
        job: plain JSON; a ``Path`` becomes an absolute path.
        progress: called with the share done (0 to 1) and a short note. What it raises ends the runner.
        timeout_s: the runner is killed after this long.

    Raises:
        MissingToolchain, ConfigError: the toolchain cannot be used here; the message says what to do.
        CompileError: the runner's own error, in its own words, or it took longer than ``timeout_s``.
        Internal: it ended without a result; the message holds the end of its log.
        StorageError: the job file cannot be written.
    """
    python = require(name)
    with _job_file(job) as file:
        outcome = _run([str(python), "-s", str(runner.absolute()), str(file)], progress or _ignore, timeout_s)
    return _result(outcome, what=f"{runner.stem} (toolchain {name})", timeout_s=timeout_s)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a toolchain's process: no Python settings of ours, offline, hash seed fixed, threads bounded.

    Thread counts that are set are respected; otherwise OpenMP gets the processors that this process may use, which
    inside a container are fewer than the machine has.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON") and name not in _SCRUBBED}
    kept.setdefault("OMP_NUM_THREADS", str(_usable_processors()))
    return {**kept, **_OFFLINE, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", _WATCH_STDIN: "1"}


@dataclass(slots=True)
class _Output:
    """What has been read of a runner: its last word, if any, and the tail of everything that is no message."""

    progress: Progress
    final: dict[str, Any] | None = None
    log: bytearray = field(default_factory=bytearray)
    is_too_long: bool = False
    _line: bytearray = field(default_factory=bytearray)

    def on_stdout(self, chunk: bytes) -> None:
        self._line += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(self._line).split(b"\n")
            self._line = bytearray(rest)
            for line in lines:
                self._on_line(line)
        self.is_too_long = len(self._line) > MAX_LINE_BYTES

    def on_log(self, chunk: bytes) -> None:
        self.log += chunk
        del self.log[:-MAX_LOG_BYTES]

    def _on_line(self, line: bytes) -> None:
        message = _message(line)
        if message is None:
            self.on_log(line + b"\n")
        elif "progress" in message:
            share = message["progress"]
            if isinstance(share, int | float) and self.final is None:
                self.progress(min(1.0, max(0.0, float(share))), str(message.get("note", ""))[:_MAX_NOTE_CHARS])
        elif self.final is None:
            self.final = message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How a runner ended; ``status`` is None when it was stopped."""

    output: _Output
    status: int | None


@contextmanager
def _job_file(job: Mapping[str, Any]) -> Iterator[Path]:
    """
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


def _run(command: list[str], progress: Progress, timeout_s: float) -> _Outcome:
    """Run to the end, or to the limit; whatever happens, no process of the runner's group outlives this call."""
    deadline = time.monotonic() + timeout_s
    output = _Output(progress)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: its end tells the runner that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(os.environ),
            start_new_session=True,  # so that Ctrl-C reaches us alone, and the group can be killed
        )
    except OSError as error:
        raise Internal(f"{command[0]} cannot be started: {error.strerror}; see penstock toolchain doctor") from error
    with process:
        try:
            return _Outcome(output=output, status=_drain(process, output, deadline))
        finally:
            _kill_group(process)


def _drain(process: subprocess.Popen[bytes], output: _Output, deadline: float) -> int | None:
    """Read until the process ends; its exit status, or None at the deadline."""
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output.on_stdout)
        selector.register(process.stderr, selectors.EVENT_READ, output.on_log)
        has_ended = False
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline or output.is_too_long:
                return None
            ready = selector.select(0 if has_ended else min(_POLL_S, deadline - now))
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                key.data(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            if has_ended and not ready:
                break  # a child of the runner still holds its output open, and says nothing
            if output.final is not None:
                deadline = min(deadline, now + _END_GRACE_S)
            has_ended = process.poll() is not None
    try:
        return process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _result(outcome: _Outcome, *, what: str, timeout_s: float) -> dict[str, Any]:
    output, status = outcome.output, outcome.status
    final = output.final or {}
    log = _log_tail(output.log)
    if output.is_too_long:
        raise Internal(f"{what} wrote a line of more than {MAX_LINE_BYTES} bytes, which is no message of ours{log}")
    if isinstance(final.get("result"), dict):
        return dict(final["result"])  # complete as soon as it is there, whatever a library does at exit
    if isinstance(error := final.get("error"), dict):
        message = str(error.get("message", ""))[:_MAX_MESSAGE_CHARS]
        raise CompileError(message if error.get("kind") == "input" else f"{what} failed: {message}{log}")
    if status is None:
        raise CompileError(f"{what} did not finish within {timeout_s:g} s and was stopped{log}")
    raise Internal(f"{what} ended without a result: {_status_words(status)}{log}")


def _status_words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (most likely out of memory)" if -status == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def _log_tail(log: bytearray) -> str:
    """The last lines before a traceback: its last line is the message, and the rest says nothing to a user."""
    text, found, rest = log.decode("utf-8", "replace").rpartition("Traceback (most recent call last):")
    text = text if found else rest
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "".join(f"\n  | {line[:300]}" for line in lines[-_LOG_LINES_SHOWN:])


def _message(line: bytes) -> dict[str, Any] | None:
    """A message of the protocol, or None for a library's chatter that got past it."""
    if not line.startswith(b"{"):
        return None
    try:
        message = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return message if isinstance(message, dict) and message.keys() & {"progress", "result", "error"} else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The group, not the process: a runner may have started others, which would hold its files and the processor."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of which only a zombie is left
        process.kill()


def _usable_processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value.absolute())
    raise TypeError(f"a job is plain JSON; {type(value).__name__} is not")


def _ignore(share: float, note: str) -> None:
    """Nobody watches."""
