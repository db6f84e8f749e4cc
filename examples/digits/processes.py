"""The demo's real processes: one core and three agents, started as a user would start them, each with its own log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 30.0
PENSTOCK = (sys.executable, "-m", "penstock")


class DemoError(RuntimeError):
    """A step of the demo could not be carried out at all (as opposed to a claim that does not hold)."""


def penstock(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one ``penstock`` command and return what it printed.

    Raises:
        DemoError: it failed, with its own words.
    """
    done = subprocess.run([*PENSTOCK, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    if check and done.returncode != 0:
        raise DemoError(f"penstock {' '.join(map(str, arguments))} exited {done.returncode}:\n{done.stderr.strip()}")
    return done


def penstock_json(*arguments: str | Path) -> Any:
    """Run one ``penstock`` command with ``-o json`` and parse its output."""
    return json.loads(penstock(*arguments, "-o", "json").stdout)


def wait_for(what: str, ready: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll until ``ready``; between two looks it rests as long as a look takes: what it waits for needs the processor.

    Raises:
        DemoError: not within the time limit.
    """
    deadline = time.monotonic() + timeout_s
    looked_at = time.monotonic()
    while not ready():
        now = time.monotonic()
        if now > deadline:
            raise DemoError(f"{what}: not within {timeout_s:g} s")
        time.sleep(min(max(0.02, now - looked_at), 0.25))
        looked_at = time.monotonic()


@dataclass
class Daemon:
    """A long-running ``penstock`` process that announces its addresses in ``endpoints.json``."""

    name: str
    arguments: Sequence[str]
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> dict[str, Any]:
        """Start and return the announced endpoints.

        Raises:
            DemoError: it died or did not get ready; the message ends with its last log lines.
        """
        announced = self.data_dir / "endpoints.json"
        announced.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*PENSTOCK, *self.arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            wait_for(f"{self.name} getting ready", lambda: self._announced(announced))
        except DemoError as error:
            raise DemoError(f"{error}\n{self.tail()}") from None
        endpoints: dict[str, Any] = json.loads(announced.read_text())
        return endpoints

    def _announced(self, path: Path) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise DemoError(f"{self.name} exited {self.process.returncode}")
        return path.exists()

    def tail(self, lines: int = 8) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self) -> None:
        """Send SIGKILL: the process has no chance to finish anything."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it does not drain in time."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        os.kill(self.process.pid, number)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=5)
