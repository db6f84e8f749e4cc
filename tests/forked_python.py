"""An interpreter of a toolchain that has its libraries imported already, for the suite: each runner is a fork of it.

A runner imports torch and its kin before it does anything, which takes seconds of a processor, and the suite starts
some hundred of them. ``interpreter`` starts one server for each toolchain and worker, and gives a program that stands
for ``python``: it hands its arguments, environment, directory and standard files to the server, which forks, and ends
as the fork ended. Run as a program, this file is that server. It knows nothing of ours: the toolchain's Python runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

_MAX_MESSAGE_BYTES = 1 << 20
_START_S = 120.0

_STAND_IN = """\
#!{python} -ISE
import json, os, signal, socket, sys
if sys.argv[1:2] != ["-s"]:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([sys.argv[2:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(asked)
    status = int(server.recv(16) or b"-9")
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@contextlib.contextmanager
def interpreter(
    python: Path, imports: tuple[str, ...], directory: Path, environment: Mapping[str, str]
) -> Iterator[Path]:
    """Start a server in ``directory`` that has imported what is there of ``imports``; give the program to call.

    Args:
        python: of the toolchain.
        environment: of the server; that of a call takes its place in the fork.
    """
    address, stand_in = str(directory / "s"), directory / "python"
    stand_in.write_text(_STAND_IN.format(python=sys.executable, real=str(python), address=address))
    stand_in.chmod(0o700)
    command = [str(python), "-s", __file__, address, *imports]
    with subprocess.Popen(command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        ready, _, _ = select.select([server.stdout], [], [], _START_S)
        assert ready, f"{python} did not import {imports} within {_START_S:g} s"
        assert server.stdout.readline() == b"ready\n", f"{python} ended before it was ready"
        try:
            yield stand_in
        finally:
            server.stdin.close()  # its end tells the server to end


def _serve(address: str, imports: list[str]) -> None:
    for name in imports:
        with contextlib.suppress(ImportError):
            __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    calls: dict[int, socket.socket] = {}
    os.write(1, b"ready\n")
    while True:
        ready, _, _ = select.select([0, woken, listener, *calls.values()], [], [])
        if 0 in ready:
            for pid in calls:
                os.killpg(pid, signal.SIGKILL)
            return
        if listener in ready:
            call, _ = listener.accept()
            calls[_forked(call, listener)] = call
            continue
        if woken in ready:
            os.read(woken, 4096)
            _reap(calls)
        for pid, call in calls.items():
            if call in ready:  # whoever waited is gone, as if the process itself had been killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def _forked(call: socket.socket, listener: socket.socket) -> int:
    size, files, _, _ = socket.recv_fds(call, 4, 3)
    left, parts = int.from_bytes(size, "big"), []
    assert left <= _MAX_MESSAGE_BYTES
    while left:
        parts.append(call.recv(left))
        left -= len(parts[-1])
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        return pid
    status = 1
    try:
        os.setsid()
        listener.close()
        call.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        status = _run(*json.loads(b"".join(parts)))
    finally:
        os._exit(status)


def _run(arguments: list[str], environment: dict[str, str], directory: str) -> int:
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(":")
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _reap(calls: dict[int, socket.socket]) -> None:
    for pid in list(calls):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            call = calls.pop(pid)
            with contextlib.suppress(OSError):
                call.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            call.close()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
