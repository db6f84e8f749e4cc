"""Tells systemd how this process is, by the protocol of sd_notify(3): lines in a datagram to the socket that it names.

Does nothing where no NOTIFY_SOCKET is set, which is everywhere but in a unit of Type=notify. Never raises and never
waits: a service manager that does not listen is no reason not to serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping

_PARTS = 2  # of the time that the watchdog gives: so often systemd itself advises to ping


class ServiceManager:
    """The socket of the service manager that started this process, if one did."""

    def __init__(self, environment: Mapping[str, str], *, pid: int) -> None:
        """
        Args:
            pid: of this process: the watchdog may be meant for another one.
        """
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        watched = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        self.watchdog_s = _seconds(environment.get("WATCHDOG_USEC", "")) if watched and self._address else 0.0

    def ready(self, status: str) -> None:
        """Say that requests are answered, and in a sentence what goes on."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that no new requests are taken."""
        self._send("STOPPING=1\nSTATUS=draining")

    def ping(self) -> None:
        """Say that the process is well; systemd ends and starts it again when this is not said in time."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(message.encode(), self._address)


@contextlib.asynccontextmanager
async def watched(manager: ServiceManager) -> AsyncIterator[None]:
    """Ping from the event loop while the block runs: a loop that hangs is silent, and the process is started again."""
    if not manager.watchdog_s:
        yield
        return
    task = asyncio.create_task(_ping(manager), name="watchdog")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def service_manager() -> ServiceManager:
    """Return the service manager that this process's environment names."""
    return ServiceManager(os.environ, pid=os.getpid())


async def _ping(manager: ServiceManager) -> None:
    while True:
        manager.ping()
        await asyncio.sleep(manager.watchdog_s / _PARTS)


def _address(name: str) -> str:
    """Return what ``sendto`` takes: an ``@`` stands for the NUL of an abstract name; other kinds are not known here."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _seconds(microseconds: str) -> float:
    is_number = microseconds.isascii() and microseconds.isdigit() and len(microseconds) < 16
    return int(microseconds) / 1e6 if is_number else 0.0
