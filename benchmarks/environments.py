"""Virtual environments for what is measured beside Penstock and must not be installed with it. Each is made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_INSTALL_TIMEOUT_S = 900.0
_ERROR_CHARS = 600
_QUIETLY = ("-qq", "--disable-pip-version-check")


class NotInstalled(RuntimeError):
    """The environment cannot be made; the message ends with the last line of what failed."""


def interpreter(directory: Path, requirements: Sequence[str], *, announce: Callable[[str], None]) -> Path:
    """Return the interpreter of the environment at ``directory``, installing when it has not these requirements yet.

    Raises:
        NotInstalled: there is no network, no such version for this interpreter, or no room.
    """
    python = directory / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", *_QUIETLY, *requirements]
    _install(directory, requirements, ([sys.executable, "-m", "venv", str(directory)], pip), announce)
    return python


def packages(directory: Path, requirements: Sequence[str]) -> Path:
    """Return ``directory`` with these packages, and without what they depend on, for a path of modules.

    Raises:
        NotInstalled: as :func:`interpreter`.
    """
    pip = [sys.executable, "-m", "pip", "install", *_QUIETLY, "--no-deps", "--target", str(directory), *requirements]
    _install(directory, requirements, (pip,), lambda line: None)
    return directory


def _install(
    directory: Path, requirements: Sequence[str], commands: Sequence[Sequence[str]], announce: Callable[[str], None]
) -> None:
    stamp = directory / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == list(requirements):
        return
    shutil.rmtree(directory, ignore_errors=True)
    announce(f"installing {directory.name} into an environment of its own ({directory})")
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"not installed: not done after {_INSTALL_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            raise NotInstalled(f"not installed: {last_line(done.stderr or done.stdout)}")
    stamp.write_text(json.dumps(list(requirements)))


def last_line(text: str) -> str:
    """Return the last line that says something, cut to a few lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[:_ERROR_CHARS]
