"""The demo as a user runs it: every claim holds, the figures are written, and nothing is left running."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil


def test_the_demo_runs_and_every_claim_holds(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "demo", "--dir", str(tmp_path / "demo"), "--json", str(figures)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    written = json.loads(figures.read_text())
    assert [claim["text"] for claim in written["claims"] if not claim["holds"]] == []
    assert len(written["claims"]) == 14, "a step that adds no claim was skipped"
    assert written["harm"]["measured"] <= written["harm"]["promised"]
    assert written["outage"]["sent"] == written["outage"]["counted"]
    assert written["rollout_v3"]["state"] == "STOPPED_BY_GATE"
    runtime = re.search(r"unix://(\S+)/kiosk-1\.sock", done.stdout)
    assert runtime is not None
    assert not Path(runtime[1]).exists()
    left = [p for p in psutil.process_iter(["cmdline"]) if runtime[1] in " ".join(p.info["cmdline"] or ())]
    assert left == []
