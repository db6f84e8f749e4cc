"""What an agent writes in a day at its default settings is bounded, and the benchmark that measures it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import wear
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = {**os.environ, "PENSTOCK_AGENT_HEARTBEAT__MAX_S": "0.2"}  # the model arrives so much earlier


def test_pages_of_all_writers_leave_the_file_system_room_within_50_mb_a_day(tmp_path: Path) -> None:
    """Of a day on ext4, 42 MB reached the device (docs/adr/0026-wear.md): 31 MB of pages, the rest was its journal."""
    found = wear.writers(tmp_path / "writers")
    assert set(found) == {"outcome counts", "state of a model, audited", "starts and stops"}
    assert 0 < sum(written.files for written in found.values()) < 36e6


def test_a_real_agent_is_measured_as_a_whole() -> None:
    command = [sys.executable, "-m", "benchmarks.wear", "--speed", "600", "--minutes", "3"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, env=AT_ONCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^a real agent, 600 times as fast +[\d.]+ ", done.stdout, re.M), done.stdout
