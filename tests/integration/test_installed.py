"""What docs/agent.md tells somebody to type on a device is typed: install, look, upgrade, remove.

It happens in a mount namespace, where /etc, /opt, /run, /usr/local/bin and /var/lib are copies or empty, so that every
command stands as the page has it. ``sudo`` is not needed there, and `tests/service_manager.py` stands in for
``systemctl``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.pages import DOCS
from tests.processes import CoreProcess, DigitsBuild
from tests.project.readme import blocks
from tests.waiting import PATIENCE_S

ROOT = DOCS.parent
PAGE = (DOCS / "agent.md").read_text(encoding="utf-8")
PACKAGES = ("penstock", "edge_agent", "cloud_core", "compiler")
PLACES = """\
set -eu
for place in /etc /usr/local/bin; do
    mkdir -p "$SCRATCH$place"; mount -t tmpfs tmpfs "$SCRATCH$place"; cp -a $place/. "$SCRATCH$place"
    mount --move "$SCRATCH$place" $place
done
for place in /opt /run /var/lib; do mount -t tmpfs tmpfs $place; done
export PATH="$SCRATCH/bin:/usr/local/bin:$PATH"
mkdir -p /etc/systemd/system
set -x
"""
KEPT = ("/var/lib/penstock/agent", "/var/lib/penstock/agent/outbox.sqlite", "/run/penstock/agent.sock")
GONE = ("/etc/systemd/system/penstock-agent.service", "/etc/penstock", "/opt/penstock", "/usr/local/bin/penstock",
        "/var/lib/penstock")  # fmt: skip


def _can_enter_namespaces() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount", "useradd", "userdel"))):
        return False
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/opt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_enter_namespaces(), reason="needs root, namespaces (unshare, mount, setpriv), useradd and userdel"
)


def file_of(start: str) -> str:
    """The block of the page that begins with ``start``, which the page says to write to a file."""
    found = [body for body in re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.M | re.S) if body.startswith(start)]
    assert len(found) == 1, start
    return str(found[0])


def wheel(directory: Path) -> Path:
    """Pack what the tests run as a wheel, quickly; what `make wheel` builds is installed with each extra in .ci/run."""
    mine = importlib.metadata.distribution("penstock")
    about = f"penstock-{mine.version}.dist-info"
    files = {about + "/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files |= {f"{about}/{name}": (mine.read_text(name) or "").encode() for name in ("METADATA", "entry_points.txt")}
    for package in PACKAGES:
        sources = (path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files |= {str(path.relative_to(ROOT)): path.read_bytes() for path in sources}
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD")).encode()
    directory.mkdir()
    with zipfile.ZipFile(directory / f"penstock-{mine.version}-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return directory


def typed(core: CoreProcess, directory: Path) -> str:
    """A script of the page's commands in its order, with the files that the page says to write."""
    settings = file_of('core = "grpc://core.example').replace("grpc://core.example:8001", core.grpc_target)
    (directory / "agent.toml").write_text(settings.replace("http://core.example:8000", core.http_url))
    (directory / "penstock-agent.service").write_text(file_of("[Unit]"))
    (directory / "agent.env").write_text(file_of("PENSTOCK_AGENT_TOKEN="))
    lines = [PLACES]
    for command in (command for block in blocks(PAGE) for command in block.commands):
        if not command.startswith("sudo "):  # the file of a token
            continue
        if command.endswith("systemctl daemon-reload"):
            lines += [f"install -m 600 {directory}/agent.env /etc/penstock", f"cp {directory}/agent.toml /etc/penstock"]
            lines += [f"cp {directory}/penstock-agent.service /etc/systemd/system"]
        lines.append(command)
        if "/pip install" in command and "--upgrade" not in command:  # libraries are those that the tests run with
            libraries = sysconfig.get_path("purelib")
            lines.append(f"echo {libraries} > $(echo /opt/penstock/lib/python3*/site-packages)/tests.pth")
        if command.endswith(("penstock agent status", "systemctl restart penstock-agent")):
            lines += ["penstock agent status --wait -o json > $SCRATCH/status-$(ls $SCRATCH | grep -c ^status).json"]
            lines += [f"stat -c '%U %a' {' '.join(KEPT)} > $SCRATCH/modes"]
    lines += [f"! ls -d {path}" for path in GONE]
    lines.append("! getent passwd penstock")
    return "\n".join(lines) + "\n"


def test_a_device_is_installed_looked_at_upgraded_and_cleared_as_the_page_says(
    core_process: CoreProcess, digits_build: DigitsBuild, short_dir: Path
) -> None:
    core_process.push(digits_build.layout("v1"))
    programs = short_dir / "bin"
    programs.mkdir()
    (programs / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (programs / "systemctl").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/service_manager.py "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "SCRATCH": str(short_dir), "HOME": str(short_dir), "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel(short_dir / "dist")), "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
    done = subprocess.run(
        [*alone, typed(core_process, short_dir)], env=environment, capture_output=True, text=True, cwd="/",
        timeout=PATIENCE_S * 4, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    before, after = (json.loads((short_dir / f"status-{i}.json").read_text()) for i in (0, 1))
    assert before["device_id"] == after["device_id"]
    assert (after["data_dir"], after["labels"]) == ("/var/lib/penstock/agent", {"site": "berlin"})
    assert (short_dir / "modes").read_text().splitlines() == ["penstock 750", "penstock 600", "penstock 660"]
    found = re.findall(r"^([a-z ]+?)  +(ok|warning|failed|skipped)  ", done.stdout, re.M)
    assert len(found) == 11, done.stdout
    assert [check for check, state in found if state != "ok"] == ["models"], "which nobody has assigned yet"
