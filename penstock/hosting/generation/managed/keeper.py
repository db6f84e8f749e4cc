"""The program that stands between us and a server with processes of its own: nothing of it outlives us.

Leads the process group in which the server runs. Ends that group when its end of a socket pair says that we are gone,
whatever we died of, and when the server has ended and left processes behind: a killed vLLM leaves its engine and its
ranks. Keeps what the server prints in a file of bounded size. Told to, it asks the server to end.

Started as ``python -m penstock.hosting.generation.managed.keeper SOCKET MAX_LOG_BYTES LOG COMMAND...``, with the
environment of the server, which is not its own, in a variable.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType

END = b"T"
"""What it is told when the server shall end by itself."""

ENVIRONMENT = "PENSTOCK_KEEPER_ENVIRONMENT"
"""Names a JSON object: all variables that the server gets."""

_PR_SET_PDEATHSIG = 1
_PIECE_BYTES = 64 * 1024
_LAST_PIECES = 64  # of output that are still read when the server has ended: others may print into the same pipe


class BoundedLog:
    """A file that is begun again when it is half as large as both may be; the one before it is kept beside it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._max_bytes = path, max_bytes // 2
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        """Add to it. What a full disk does not take is lost: the server goes on."""
        with contextlib.suppress(OSError):
            if self._file.tell() + len(data) > self._max_bytes:
                self._file.close()
                os.replace(self._path, before(self._path))
                self._file = self._path.open("wb")
            self._file.write(data[-self._max_bytes :])
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def before(path: Path) -> Path:
    """Return where the log before this one is."""
    return path.with_name(path.name + ".1")


def main(arguments: list[str]) -> None:
    """Run a server to its end, or to ours."""
    socket_number, max_log_bytes, log_path, *command = arguments
    with socket.socket(fileno=int(socket_number)) as parent:
        status = _kept(command, parent, BoundedLog(Path(log_path), int(max_log_bytes)))
        with contextlib.suppress(OSError):
            parent.sendall(b"%d\n" % status)
    os.killpg(0, signal.SIGKILL)  # what the server left, and this


def _kept(command: list[str], parent: socket.socket, log: BoundedLog) -> int:
    """Start the server and wait for its end; return its exit status, negative for a signal."""
    wakes, woken = os.pipe()
    for file in (wakes, woken):
        os.set_blocking(file, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # handlers and not SIG_IGN, which the server would inherit. Who stops a service sends to every process of it: the
    # server drains by itself then, and we are told by our parent
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _noted)
    output, theirs = os.pipe()
    try:
        server = subprocess.Popen(
            command,
            env=json.loads(os.environ[ENVIRONMENT]),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=_end_with_parent,  # safe: this process has one thread
        )
    except OSError as error:
        log.write(f"{type(error).__name__}: {command[0]} cannot be started: {error}\n".encode())
        return 127
    os.close(theirs)
    os.set_blocking(output, False)
    with selectors.DefaultSelector() as selector:
        for source in (wakes, output, parent.fileno()):
            selector.register(source, selectors.EVENT_READ)
        while server.poll() is None:
            for key, _ in selector.select():
                if key.fileobj == wakes:
                    os.read(wakes, _PIECE_BYTES)
                elif key.fileobj == output and not _copied(output, log):
                    selector.unregister(output)
                elif key.fileobj == parent.fileno():
                    _obey(parent, server)
    for _ in range(_LAST_PIECES):
        if not _copied(output, log):
            break
    return server.returncode


def _copied(output: int, log: BoundedLog) -> bool:
    """Put what the server printed into the log; say whether more may come."""
    try:
        data = os.read(output, _PIECE_BYTES)
    except BlockingIOError:
        return True
    log.write(data)
    return bool(data)


def _obey(parent: socket.socket, server: subprocess.Popen[bytes]) -> None:
    try:
        told = parent.recv(16)
    except OSError:
        told = b""
    if not told:  # it is gone
        os.killpg(0, signal.SIGKILL)
    server.terminate()


def _noted(number: int, frame: FrameType | None) -> None:
    """Do nothing: the file that signals are written to has woken the loop."""


def _end_with_parent() -> None:
    """Let the server end with its keeper, which may be killed like anything else."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # the model's processes, not the one that answers for them, are what memory is taken from when there is none
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")


if __name__ == "__main__":
    main(sys.argv[1:])
