"""Tests that need a GPU or a board can at least be collected here: a renamed module is found out at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def test_they_can_be_collected() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "--collect-only", "hw_tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ tests collected", done.stdout, re.M)
