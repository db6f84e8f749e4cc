"""What systemd hears of a service: over a real socket, from the code and from real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.process.service_manager import ServiceManager, watched
from tests.waiting import PATIENCE_S


@pytest.fixture
def heard(short_dir: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(short_dir / "notify"))
        listener.settimeout(PATIENCE_S)
        yield listener


def told(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().splitlines()


def test_ready_well_and_stopping_are_told(heard: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": heard.getsockname()}, pid=7)
    manager.ready("serving")
    manager.ping()
    manager.stopping()
    assert told(heard) == ["READY=1", "STATUS=serving"]
    assert told(heard) == ["WATCHDOG=1"]
    assert told(heard) == ["STOPPING=1", "STATUS=draining"]


def test_an_abstract_socket_is_found() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0penstock-{os.getpid()}")
        listener.settimeout(PATIENCE_S)
        ServiceManager({"NOTIFY_SOCKET": f"@penstock-{os.getpid()}"}, pid=7).ping()
        assert told(listener) == ["WATCHDOG=1"]


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "vsock:2:1234", "relative"])
def test_without_a_listener_nothing_happens(name: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": name} if name else {}, pid=7)
    manager.ready("serving")
    manager.stopping()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0.0),  # meant for another process
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_this_process_s(environment: dict[str, str], watchdog_s: float) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "/n", **environment}, pid=7).watchdog_s == watchdog_s


async def test_a_loop_that_hangs_is_silent(heard: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "2000"}, pid=7)
    heard.setblocking(False)
    async with watched(manager):
        for _ in range(3):
            await asyncio.get_running_loop().sock_recv(heard, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:  # nothing pings while this holds the loop, so what was sent before comes to an end
                heard.recv(4096)


@pytest.mark.parametrize("service", ["agent", "core"])
def test_a_service_tells_systemd_how_it_is(service: str, heard: socket.socket, short_dir: Path) -> None:
    flags = {
        "agent": ("run", "--socket", str(short_dir / "s"), "--core", "grpc://127.0.0.1:1"),
        "core": ("serve", "--http-port", "0", "--grpc-port", "0"),
    }[service]
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", service, *flags, "--data-dir", str(short_dir / "data")],
        env={**os.environ, "NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        seen = told(heard)
        while seen == ["WATCHDOG=1"]:
            seen = told(heard)
        assert seen[0] == "READY=1"
        assert told(heard) == ["WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        while (seen := told(heard)) == ["WATCHDOG=1"]:
            pass
        assert seen == ["STOPPING=1", "STATUS=draining"]
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
