"""A process and all that it started, as whoever started it sees it: killed as a whole, and reaped whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading

from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_KILL_S = 5.0  # from SIGKILL to the end of the process: longer takes only one that waits for a broken disk


class ProcessGroup:
    """The group of a process that was started in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._has_ended = False

    @property
    def pid(self) -> int:
        """Return the first process's id, which is its group's."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process and all that it started, now."""
        if not self._has_ended:  # its number may be another's by then
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS says EPERM of a group of which only a zombie is left
                self._process.kill()

    async def ended(self, grace_s: float) -> int | None:
        """Give the process ``grace_s`` to end, kill its group, and return its exit status; None where it does not even
        end of that."""
        try:
            if grace_s > 0:
                await asyncio.to_thread(_waited, self._process, grace_s)
        finally:
            self.kill()
            # also where this task was cancelled: a zombie would stay for as long as we live
            reaper = threading.Thread(target=_waited, args=(self._process, _KILL_S), name="reap", daemon=True)
            reaper.start()
        await asyncio.to_thread(reaper.join)
        self._has_ended = True
        status = self._process.returncode
        if status is None:
            log(_log, logging.ERROR, "killed process does not end", pid=self._process.pid)
        return status


def _waited(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout_s)
