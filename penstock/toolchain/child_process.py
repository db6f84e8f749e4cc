"""Running one process of another environment within limits: its output in chunks, its end on every way out.

Owns the process group: it is killed at the deadline, on Ctrl-C, and on whatever a callback raises. Does not read what
the output says.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.errors import Internal

MAX_LOG_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_POLL_S = 0.5  # how soon the end of a process is noticed whose children hold its output open
_END_GRACE_S = 10.0  # from the last word to the end of the process
_LOG_LINES_SHOWN = 12
_LOG_LINE_CHARS = 300

# of the interpreter that runs us, and wrong or misleading in another
_SCRUBBED = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__"})


@dataclass(slots=True)
class Log:
    """The tail of what a process wrote, bounded."""

    data: bytearray = field(default_factory=bytearray)

    def add(self, chunk: bytes) -> None:
        """Append, and forget what is too old."""
        self.data += chunk
        del self.data[:-MAX_LOG_BYTES]

    def text(self) -> str:
        """Return all that is kept."""
        return self.data.decode("utf-8", "replace")

    def cause(self) -> str:
        """Return the last line of a traceback that ends the log, ": " before it; "" without one."""
        _, found, rest = self.text().rpartition("Traceback (most recent call last):")
        lines = [line.strip() for line in rest.splitlines() if line.strip()]
        return f": {lines[-1][:_LOG_LINE_CHARS]}" if found and lines else ""

    def tail(self) -> str:
        """Return the last lines, each after a line break and a mark, for the end of a message.

        A traceback is left out: its last line is in the message already, and the rest says nothing to a user.
        """
        text, found, rest = self.text().rpartition("Traceback (most recent call last):")
        lines = [line.rstrip() for line in (text if found else rest).splitlines() if line.strip()]
        return "".join(f"\n  | {line[:_LOG_LINE_CHARS]}" for line in lines[-_LOG_LINES_SHOWN:])


def scrubbed(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what concerns the interpreter that runs us."""
    return {name: value for name, value in inherited.items() if not name.startswith("PYTHON") and name not in _SCRUBBED}


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    on_output: Callable[[bytes], bool],
    on_log: Callable[[bytes], None],
    timeout_s: float,
    on_tick: Callable[[], None] | None = None,
    inherited_files: Sequence[int] = (),
) -> int | None:
    """Run to the end, or to the limit; no process of its group outlives this call.

    Args:
        on_output: gets stdout in chunks, and returns True when nothing more is expected; the process then has a few
            seconds to end. What it raises ends the process.
        on_log: gets stderr in chunks. What it raises ends the process.
        on_tick: called twice a second or more.
        inherited_files: descriptors that stay open in the process.

    Returns:
        The exit status, negative for a signal; None when it was stopped because its time was over.

    Raises:
        Internal: the program cannot be started.
    """
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: its end tells the process that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # so that Ctrl-C reaches us alone, and the group can be killed
            pass_fds=inherited_files,
        )
    except OSError as error:
        raise Internal(f"{command[0]} cannot be started: {error.strerror}; see 'penstock toolchain doctor'") from error
    with process:
        try:
            return _drain(process, on_output, on_log, on_tick, deadline)
        finally:
            _kill_group(process)


def _drain(
    process: subprocess.Popen[bytes],
    on_output: Callable[[bytes], bool],
    on_log: Callable[[bytes], None],
    on_tick: Callable[[], None] | None,
    deadline: float,
) -> int | None:
    """Read until the process ends; its exit status, or None at the deadline."""
    assert process.stdout is not None
    assert process.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, on_output)
        selector.register(process.stderr, selectors.EVENT_READ, on_log)
        has_ended = False
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return None
            ready = selector.select(0 if has_ended else min(_POLL_S, deadline - now))
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if key.data(chunk):
                    deadline = min(deadline, now + _END_GRACE_S)
                if not chunk:
                    selector.unregister(key.fileobj)
            if has_ended and not ready:
                break  # a child of the process still holds its output open, and says nothing
            if on_tick is not None:
                on_tick()
            has_ended = process.poll() is not None
    try:
        return process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the group, not the process: it may have started others, which would hold its files and the processor."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of which only a zombie is left
        process.kill()
