"""Real processes for integration tests: a core, agents, and the ``penstock`` command, started as a user starts them.

Ports are free ones, sockets live in short directories (a unix socket path has at most 107 bytes), every wait is bounded
and a process that does not get ready fails with the end of its log.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.digits.processes import Daemon, penstock
from penstock.artifact.layout import Layout
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.rest.connection import ask
from penstock.rpc.fleet import FleetClient
from tests.shared import one_at_a_time
from tests.waiting import PATIENCE_S, wait_until

AGENT_CONFIG = """
[heartbeat]
interval_s = 0.2
max_s = 0.2

[outbox]
flush_s = 0.2

[update]
probation_s = 0.2
"""
"""A test has seconds where a fleet has hours; ``max_s`` also caps what the core asks for, which is seconds."""


def _answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError:
        return False


@dataclass
class CoreProcess:
    """``penstock core serve`` on free loopback ports, which it keeps when it is started again."""

    directory: Path
    config: str = ""
    http_url: str = ""
    grpc_target: str = ""
    _daemon: Daemon | None = field(default=None, repr=False)

    @property
    def data_dir(self) -> Path:
        return self.directory / "core"

    @property
    def http_address(self) -> str:
        """``host:port``, as clients that others wrote want it."""
        return self.http_url.removeprefix("http://")

    @property
    def grpc_address(self) -> str:
        return self.grpc_target.removeprefix("grpc://")

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        assert self._daemon.process is not None
        return self._daemon.process.pid

    def start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        http_port = self.http_url.rpartition(":")[2] or "0"
        grpc_port = self.grpc_target.rpartition(":")[2] or "0"
        ports = ("--http-port", http_port, "--grpc-port", grpc_port)
        arguments = ["core", "serve", "--data-dir", str(self.data_dir), *ports]
        if self.config:
            file = self.directory / "core.toml"
            file.write_text(self.config)
            arguments += ["--config", str(file)]
        self._daemon = Daemon("core", arguments, self.data_dir, self.directory / "core.log")
        endpoints = self._daemon.start()
        secure = "s" if "[tls]" in self.config else ""
        self.http_url, self.grpc_target = f"http{secure}://{endpoints['http']}", f"grpc{secure}://{endpoints['grpc']}"

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self._daemon is not None:
            self._daemon.kill()

    def stop(self) -> None:
        """SIGTERM, and wait for the drain."""
        if self._daemon is not None:
            self._daemon.stop()

    def restart(self) -> None:
        """Kill and start again on the same ports and data."""
        self.kill()
        self.start()

    def push(self, layout: Path, *, patience_s: float = PATIENCE_S) -> None:
        """What ``penstock artifact push`` does; returns when the core serves it."""
        with RegistryClient(self.http_url) as registry:
            moved = transfer.push(registry, Layout(layout))
        path = f"{self.http_url}/v2/models/{moved.model}/versions/{moved.tag}/ready"
        what = f"{moved.model}:{moved.tag} ready in the core"
        wait_until(what, lambda: _answers_200(path), patience_s=patience_s)

    def release(self, reference: str, *, devices: int = 1, is_awaited: bool = True) -> None:
        """Bring a first version to the devices that are there, and when it succeeded to those that come later."""
        where = ("--core", self.grpc_target)
        with FleetClient(self.grpc_target, token=os.environ.get("PENSTOCK_TOKEN", "")) as fleet:
            wait_until("devices to plan for", lambda: len(fleet.devices()) >= devices)
        wait = ("--wait", "--timeout", str(PATIENCE_S)) if is_awaited else ()
        penstock("fleet", "apply", reference, "--at-once", "--yes", *wait, *where)

    @property
    def log(self) -> str:
        return (self.directory / "core.log").read_text(errors="replace")


@dataclass
class AgentProcess:
    """``penstock agent run`` on a unix socket of its own."""

    directory: Path
    device_id: str
    core: CoreProcess
    config: str = AGENT_CONFIG
    arguments: Sequence[str] = ()
    endpoints: dict[str, Any] = field(default_factory=dict)
    _daemon: Daemon | None = field(default=None, repr=False)

    @property
    def data_dir(self) -> Path:
        return self.directory / self.device_id

    @property
    def socket(self) -> Path:
        return self.directory / f"{self.device_id}.sock"

    @property
    def target(self) -> str:
        """What the SDK connects to."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        assert self._daemon.process is not None
        return self._daemon.process.pid

    def start(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        file = self.directory / f"{self.device_id}.toml"
        file.write_text(self.config)
        arguments = [
            *("agent", "run", "--config", str(file), "--device-id", self.device_id, "--data-dir", str(self.data_dir)),
            *("--socket", str(self.socket), "--core", self.core.grpc_target, "--registry", self.core.http_url),
            *self.arguments,
        ]
        self._daemon = Daemon(self.device_id, arguments, self.data_dir, self.directory / f"{self.device_id}.log")
        self.endpoints = self._daemon.start()

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self._daemon is not None:
            self._daemon.kill()

    def stop(self) -> None:
        """SIGTERM, and wait for the drain."""
        if self._daemon is not None:
            self._daemon.stop()

    def restart(self) -> None:
        """Kill and start again on the same data."""
        self.kill()
        self.start()

    def get(self, path: str) -> tuple[int, bytes]:
        """One GET over the unix socket: status and body."""
        answer = ask(f"unix://{self.socket}", "GET", path, timeout_s=10)
        return answer.status, answer.body

    def status(self) -> dict[str, Any]:
        """``GET /status``."""
        code, body = self.get("/status")
        assert code == 200, body
        status: dict[str, Any] = json.loads(body)
        return status

    def runs(self, model: str, version: str, phase: str = "COMMITTED") -> bool:
        return any(
            entry["model"] == model and entry["version"] == version and entry["phase"] == phase and entry["is_serving"]
            for entry in self.status()["models"]
        )

    def wait_until_runs(self, model: str, version: str) -> None:
        wait_until(f"{self.device_id} committing {model}:{version}", lambda: self.runs(model, version))

    @property
    def log(self) -> str:
        return (self.directory / f"{self.device_id}.log").read_text(errors="replace")


@dataclass
class DigitsBuild:
    """The digits example, trained once and compiled on demand: v1, a better v2, and v3, which lies."""

    directory: Path
    models: Path

    def layout(self, version: str = "v1") -> Path:
        """The compiled artifact of a version, as an OCI image layout."""
        self.result(version)
        return self.directory / version

    def result(self, version: str = "v1") -> dict[str, Any]:
        """What ``penstock compile -o json`` said."""
        said = self.directory / f"{version}.json"
        with one_at_a_time(self.directory):
            if not said.exists():
                recipe, out = self.models / f"{version}.toml", self.directory / version
                said.write_text(penstock("compile", recipe, "-o", out, "-o", "json").stdout)
        result: dict[str, Any] = json.loads(said.read_text())
        return result

    def test_split(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Held-out digits x FP32 [N, 64] and their labels y INT64 [N]."""
        with np.load(self.models / "data.npz") as data:
            return data["x_test"], data["y_test"]


@contextmanager
def digits_served(
    build: DigitsBuild, *, core_config: str = "", agent_config: str = AGENT_CONFIG, arguments: Sequence[str] = ()
) -> Iterator[AgentProcess]:
    """A core with digits:v1 and an agent that runs it, for tests of one module that leave no trace."""
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    core = CoreProcess(directory=directory / "c", config=core_config)
    agent = AgentProcess(directory=directory, device_id="a1", core=core, config=agent_config, arguments=arguments)
    try:
        core.start()
        core.push(build.layout("v1"))
        agent.start()
        core.release("digits:v1")
        agent.wait_until_runs("digits", "v1")
        yield agent
    finally:
        agent.kill()
        core.kill()
        shutil.rmtree(directory, ignore_errors=True)
