"""The units of systemd that pages have: complete for systemd, and about paths that the same page makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("agent.md", "operations.md")
_UNIT = re.compile(r"^```ini\n(.*?)^```$", re.M | re.S)


def unit_of(page: str) -> str:
    (unit,) = _UNIT.findall((DOCS / page).read_text(encoding="utf-8"))
    return str(unit)


@pytest.mark.parametrize("page", PAGES)
def test_a_unit_runs_as_a_user_of_its_own_and_is_watched(page: str) -> None:
    unit, text = unit_of(page), (DOCS / page).read_text(encoding="utf-8")
    for line in ("Type=notify", "User=penstock", "Restart=always", "NoNewPrivileges=yes", "ProtectSystem=strict"):
        assert f"\n{line}\n" in unit
    assert "WatchdogSec=" in unit
    assert "useradd --system" in text
    program = re.search(r"^ExecStart=(\S+)", unit, re.M)
    assert program is not None
    assert program[1].removesuffix("/bin/penstock") in text.replace(unit, "")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_against_a_unit(page: str, tmp_path: Path) -> None:
    file = tmp_path / f"penstock-{page.removesuffix('.md')}.service"
    file.write_text(unit_of(page).replace("/opt/penstock/bin/penstock", sys.executable))  # which there is
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if file.name in line]
    assert ours == []
    assert done.returncode == 0, done.stderr
