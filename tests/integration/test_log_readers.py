"""Agent and core with a log that nobody takes: a reader that stalls or leaves, a full disk, no stderr at all."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.rest.connection import ask
from tests import http2
from tests.processes import CoreProcess
from tests.waiting import PATIENCE_S, wait_until

CONFIG = '[log]\nlevel = "debug"\nmax_waiting_bytes = 65536\nflush_s = 0.1\n'


@dataclass
class Service:
    """A running agent or core, asked over a unix socket or HTTP."""

    process: subprocess.Popen[bytes]
    url: str
    dropped_name: str

    def get(self, path: str) -> tuple[int, str]:
        answer = ask(self.url, "GET", path, timeout_s=PATIENCE_S)
        return answer.status, answer.body.decode()

    def is_refused(self) -> bool:
        """Ask for what is refused, which is logged at level debug."""
        return self.get(f"/v2/models/{'x' * 100}")[0] == 404

    @property
    def dropped(self) -> int:
        status, text = self.get("/metrics")
        assert status == 200
        (count,) = re.findall(rf"^{self.dropped_name}_total (\S+)$", text, re.M)
        return int(float(count))

    def has_dropped(self) -> bool:
        """Have 100 lines logged; say whether there was no room for some."""
        return all(self.is_refused() for _ in range(100)) and self.dropped > 0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


Start = Callable[..., Service]


@pytest.fixture(params=["core", "agent"])
def start(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Start]:
    """``start(redirection, stderr=...)`` starts the service as a shell does, and waits until it serves."""
    config = short_dir / "config.toml"
    config.write_text(CONFIG)
    data, announced, socket = short_dir / "data", short_dir / "data" / "endpoints.json", short_dir / "a.sock"
    data.mkdir()
    if request.param == "core":
        arguments = f"core serve --data-dir {data} --http-port 0 --grpc-port 0"
    else:
        arguments = f"agent run --data-dir {data} --socket {socket} --core grpc://127.0.0.1:1"
    started: list[subprocess.Popen[bytes]] = []

    def begin(redirection: str, stderr: int | None = None) -> Service:
        line = f"exec {sys.executable} -m penstock {arguments} --config {config} {redirection}"
        process = subprocess.Popen(["bash", "-c", line], stderr=stderr, stdin=subprocess.DEVNULL)
        started.append(process)
        wait_until("endpoints", lambda: process.poll() is not None or announced.exists())
        assert process.poll() is None
        if request.param == "agent":
            return Service(process, f"unix://{socket}", "penstock_agent_dropped_log_lines")
        http = re.search(r'"http":"([^"]+)"', announced.read_text())
        assert http
        return Service(process, f"http://{http[1]}", "penstock_dropped_log_lines")

    yield begin
    for process in started:
        process.kill()
        process.wait(PATIENCE_S)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_reader_that_stalls_stops_nothing_and_hears_later_how_much_is_missing(start: Start) -> None:
    with pipe() as (reader, writer):
        service = start("", stderr=writer)
        wait_until("a full queue", service.has_dropped)
        assert service.get("/v2/health/live")[0] == 200
        said = b""

        while not (told := re.findall(rb"log lines dropped lines=(\d+)\n", said)):
            said += os.read(reader, 1 << 16)
        assert sum(map(int, told)) == service.dropped
        assert service.process.poll() is None


def test_a_reader_that_stalls_does_not_keep_a_service_from_ending(start: Start) -> None:
    with pipe() as (_, writer):
        service = start("", stderr=writer)
        wait_until("a full queue", service.has_dropped)
        assert service.stop() == 0


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", ">&- 2>&- <&-", "2> >(true)"])
def test_a_log_that_goes_nowhere_stops_nothing(start: Start, redirection: str) -> None:
    service = start(redirection)
    for _ in range(100):
        assert service.is_refused()
    assert service.get("/v2/health/live")[0] == 200
    assert service.stop() == 0


def test_what_a_client_sends_wrong_over_grpc_writes_nothing_past_the_queue(
    core_factory: Callable[..., CoreProcess],
) -> None:
    core_process = core_factory('[grpc]\nserver = "grpcio"\n')  # whose C core writes lines of its own
    host, _, port = core_process.grpc_address.rpartition(":")
    for _ in range(10):
        _, said = http2.call(
            (host, int(port)), "/inference.GRPCInferenceService/ModelInfer", b"", {"grpc-timeout": "-1S"}
        )
        assert "grpc-timeout" in said
    core_process.stop()
    lines = core_process.log.splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\S+Z (debug|info|warning) ", line)] == []
    assert not [line for line in lines if "grpc-timeout" in line]


def test_the_last_line_of_a_service_is_said_before_it_ends(start: Start) -> None:
    with pipe() as (reader, writer):
        service = start("", stderr=writer)
        service.process.send_signal(signal.SIGTERM)
        said = b""
        while b" stopped\n" not in said:
            said += os.read(reader, 1 << 16)
        assert service.process.wait(PATIENCE_S) == 0


def test_a_service_that_cannot_start_says_why_and_ends_although_nobody_reads(short_dir: Path) -> None:
    (short_dir / "core.db").mkdir()
    arguments = ["core", "serve", "--data-dir", str(short_dir), "--http-port", "0", "--grpc-port", "0"]
    command = [sys.executable, "-m", "penstock", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert done.stderr.startswith("penstock: ")
    with pipe() as (_, writer):
        os.write(writer, b"-" * 4096)
        assert subprocess.run(command, stderr=writer, timeout=PATIENCE_S).returncode == 1
