"""Stands in for systemctl where systemd is not process 1: ``service_manager.py COMMAND... UNIT``.

It starts the program of a unit as systemd does, as far as a page relies on that: user, umask, environment, directories,
and that a start ends when the program says ``READY=1``. The sandbox of a unit is for ``systemd-analyze`` to judge.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS, PIDS = Path("/etc/systemd/system"), Path("/run/pids")
TIMEOUT_S = 60.0


def options_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"{unit}.service").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def environment_of(options: dict[str, list[str]]) -> dict[str, str]:
    lines = list(options.get("Environment", ()))
    for file in options.get("EnvironmentFile", ()):
        path = Path(file.removeprefix("-"))
        if path.exists() or not file.startswith("-"):
            lines += [line for line in path.read_text(encoding="utf-8").splitlines() if "=" in line]
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **dict(line.split("=", 1) for line in lines)}


def start(unit: str) -> None:
    options = options_of(unit)
    user = pwd.getpwnam(options["User"][0])
    for name, root in (("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")):
        for directory in options.get(name, ()):
            path = Path(root) / directory
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(int(options.get(f"{name}Mode", ["755"])[0], 8))
            os.chown(path, user.pw_uid, user.pw_gid)
    notified = Path(f"/run/notify-{unit}")
    notified.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, Path(f"/run/{unit}.log").open("ab") as log:
        notify.bind(str(notified))
        notified.chmod(0o666)
        notify.settimeout(0.2)
        os.umask(int(options["UMask"][0], 8))
        # reading what an interpreter needs stands for an interpreter that everybody may read
        reading = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
        process = subprocess.Popen(
            ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *reading,
             *shlex.split(options["ExecStart"][0])],
            env={**environment_of(options), "NOTIFY_SOCKET": str(notified)}, cwd="/",
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        PIDS.mkdir(exist_ok=True)
        (PIDS / unit).write_text(str(process.pid))
        wait_until_ready(notify, process, unit)


def wait_until_ready(notify: socket.socket, process: subprocess.Popen[bytes], unit: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notify.recv(4096):
                return
    sys.exit(f"{unit} does not get ready:\n{Path(f'/run/{unit}.log').read_text()}")


def stop(unit: str) -> None:
    pid = int((PIDS / unit).read_text())
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + TIMEOUT_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if Path(f"/proc/{pid}").exists():
        sys.exit(f"{unit} does not stop")


def main(command: str, *rest: str) -> None:
    unit = rest[-1] if rest else ""
    match command:
        case "daemon-reload":
            pass
        case "enable" | "start":
            start(unit)
        case "restart":
            stop(unit)
            start(unit)
        case "disable" | "stop":
            stop(unit)
        case _:
            sys.exit(f"systemctl {command} is not known here")


if __name__ == "__main__":
    main(*sys.argv[1:])
