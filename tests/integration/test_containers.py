"""Processes as containers start them: a user that is only a number, a disk that cannot be written, process 1."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.digits.processes import PENSTOCK
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import PATIENCE_S, wait_until

UID = 54321


def _can_enter_namespaces() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "mount"))):
        return False
    command = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not _can_enter_namespaces(), reason="needs root, and namespaces (unshare, mount, setpriv)"
)


def in_a_container(arguments: list[str], *, tmp: str = "/mnt/tmp") -> list[str]:
    """Return a command: a number for a user, no HOME, everything but /mnt read-only.

    The capability to read whatever there is stands for an image whose files all may read.
    """
    environment = ["env", "-i", "PATH=/usr/bin:/bin", f"TMPDIR={tmp}", "PYTHONDONTWRITEBYTECODE=1"]
    reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *reading]
    mounts = "mount -t tmpfs tmpfs /mnt && chmod 1777 /mnt && mkdir -m 1777 /mnt/tmp && mount -o remount,ro,bind /"
    return ["unshare", "--mount", "sh", "-c", f'mount --bind / / && {mounts} && cd / && exec "$@"', "sh", *user,
            *environment, *arguments]  # fmt: skip


def ended(arguments: list[str], **options: str) -> subprocess.CompletedProcess[str]:
    command = in_a_container([*PENSTOCK, *arguments], **options)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False)


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    "arguments",
    [
        ["core", "serve", "--data-dir", "/mnt/core", "--http-port", "0", "--grpc-port", "0"],
        [
            "agent",
            "run",
            "--data-dir",
            "/mnt/agent",
            "--core",
            "grpc://127.0.0.1:9",
            "--registry",
            "http://127.0.0.1:9",
        ],
    ],
    ids=["core", "agent"],
)
def test_services_start_without_a_home_on_a_disk_that_cannot_be_written(arguments: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(in_a_container([*PENSTOCK, *arguments]), log) as process:
        wait_until("ready", lambda: " ready " in log.read_text() or process.poll() is not None)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, log.read_text()


def test_commands_run_without_a_home_on_a_disk_that_cannot_be_written(digits_build: DigitsBuild) -> None:
    layout = str(digits_build.layout("v1"))
    verified = ended(["artifact", "verify", layout])
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, f"{layout}: good"), verified.stderr
    recipe = str(digits_build.models / "v1.toml")
    compiled = ended(["compile", recipe, "-o", "/mnt/out", "--smoke"])
    assert compiled.returncode == 0, compiled.stderr
    assert "atplotlib" not in compiled.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["agent", "run"],
            "data_dir: this user has no home directory: set HOME or XDG_DATA_HOME, or give --data-dir (--socket, of an "
            "agent that runs)",
        ),
        (["keys", "list"], "this user has no home directory: set HOME or XDG_CONFIG_HOME"),
        (["artifact", "verify", "digits:v1"], "no directory for temporary files can be written; set TMPDIR to one"),
    ],
)
def test_what_has_no_place_is_said_in_one_line(arguments: list[str], says: str) -> None:
    told = ended(arguments, tmp="/nowhere")
    assert told.returncode != 0
    assert told.stderr == f"penstock: {says}\n"


def test_nothing_is_writable_for_everybody_whatever_the_umask(digits_build: DigitsBuild) -> None:
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    core = CoreProcess(directory=directory / "c")
    agent = AgentProcess(directory=directory, device_id="a1", core=core)
    before = os.umask(0)
    try:
        core.start()
        agent.start()
        os.umask(before)
        core.push(digits_build.layout("v1"))
        core.release("digits:v1")
        agent.wait_until_runs("digits", "v1")
        made = [path for place in (core.data_dir, agent.data_dir) for path in place.rglob("*")]
        assert len(made) > 20
        assert [path for path in made if stat.S_IMODE(path.lstat().st_mode) & 0o002 and not path.is_symlink()] == []
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o660
    finally:
        os.umask(before)
        agent.stop()
        core.stop()
        shutil.rmtree(directory, ignore_errors=True)


def test_process_1_ends_at_a_signal_while_it_still_loads(tmp_path: Path) -> None:
    """The program tells when its own code begins; the signal comes before anything of ours can have been loaded."""
    program = "import penstock.cli, sys; print('began', flush=True); penstock.cli.main()"
    arguments = ["core", "serve", "--data-dir", str(tmp_path / "core"), "--http-port", "0", "--grpc-port", "0"]
    log = tmp_path / "log"
    alone = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program, *arguments]
    with running(alone, log) as process:
        wait_until("its beginning", lambda: "began" in log.read_text())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        os.kill(int(children.read_text()), signal.SIGTERM)
        assert process.wait(PATIENCE_S) in (0, 128 + signal.SIGTERM), log.read_text()
