"""The comparison of who reads HTTP runs, and says what a request costs each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def test_every_server_answers_at_every_load() -> None:
    command = [sys.executable, "-m", "benchmarks.http_parsers", "--rounds", "1", "--seconds", "0.05"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    for server in ("express lane", "aiohttp"):
        lines = [line for line in done.stdout.splitlines() if line.startswith(server)]
        assert [line.count("/s") for line in lines] == [3, 3]
