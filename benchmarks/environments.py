"""Virtual environments for what is measured beside Penstock and must not be installed with it. Each is made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_INSTALL_TIMEOUT_S = 900.0
_ERROR_CHARS = 160


class NotInstalled(RuntimeError):
    """The environment cannot be made; the message ends with the last line of what failed."""


def interpreter(directory: Path, requirements: Sequence[str], *, announce: Callable[[str], None]) -> Path:
    """Return the interpreter of the environment at ``directory``, installing when it has not these requirements yet.

    Raises:
        NotInstalled: there is no network, no such version for this interpreter, or no room.
    """
    python, stamp = directory / "bin" / "python", directory / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == list(requirements):
        return python
    shutil.rmtree(directory, ignore_errors=True)
    announce(f"installing {directory.name} into an environment of its own ({directory})")
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *requirements]
    for command in ([sys.executable, "-m", "venv", str(directory)], pip):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed: not done after {_INSTALL_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            raise NotInstalled(f"not installed: {last_line(done.stderr or done.stdout)}")
    stamp.write_text(json.dumps(list(requirements)))
    return python


def last_line(text: str) -> str:
    """Return the last line that says something, cut to fit a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[:_ERROR_CHARS]
