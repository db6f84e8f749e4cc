"""Starts what is measured, each in a process of its own, and says where it listens. Owns no measurement."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.models import Model
from benchmarks.peers import Peer
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.errors import PenstockError
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.rpc.fleet import FleetClient
from penstock.rpc.pb import fleet_pb2

START_TIMEOUT_S = 30.0
PEER_START_TIMEOUT_S = 120.0  # Triton loads a model in seconds, one after the other
PENSTOCK = (sys.executable, "-m", "penstock")


class ServerError(RuntimeError):
    """A server did not start; the message ends with its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The CPU of the servers and the CPU of the load generator; None leaves both to the scheduler."""

    server: int | None
    client: int | None


def choose_pins(*, pin: bool) -> Pins:
    """Choose the first allowed CPU for servers, the last for the client. On fewer than two CPUs there is nothing to
    choose.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not pin or len(allowed) < 2:
        return Pins(server=None, client=None)
    return Pins(server=allowed[0], client=allowed[-1])


def pinned(command: Sequence[str], cpu: int | None) -> list[str]:
    """Start ``command`` through a small launcher that sets its CPU and then becomes it: no threads start elsewhere."""
    if cpu is None:
        return list(command)
    code = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"
    return [sys.executable, "-c", code, str(cpu), *command]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server: where it listens (``host:port``, or the path of a socket), by protocol, and its process."""

    pid: int
    endpoints: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Servers:
    """Starts processes, and stops all of them at the end. ``directory`` is short: unix socket paths are limited."""

    directory: Path
    pins: Pins
    processes: list[subprocess.Popen[str]]

    def yardstick(self, model: Model) -> Server:
        """Start the one-file server: endpoints ``http`` and ``socket``."""
        options = ["--max-batch", str(model.max_batch), *(["--in-thread"] if model.in_thread else [])]
        path = self.directory / f"y-{model.name}.sock"
        return self._announcing("benchmarks.yardstick", [str(model.path), str(path), *options])

    def echo(self, response: Path, *, is_native: bool = False) -> Server:
        """Start the gRPC echo, with grpcio's server or the native one: endpoint ``grpc``."""
        return self._announcing("benchmarks.echo", [str(response), *(["--native"] if is_native else [])])

    def core(self, layouts: Sequence[Path], *, name: str = "core", config: str = "") -> Server:
        """Start a core and push every artifact: endpoints ``http`` and ``grpc``.

        Args:
            config: its settings, in TOML.
        """
        data_dir, file = self.directory / name, self.directory / f"{name}.toml"
        file.write_text(config)
        arguments = ["core", "serve", "--data-dir", str(data_dir), "--http-port", "0", "--grpc-port", "0"]
        core = self._penstock([*arguments, "--config", str(file)], data_dir / "endpoints.json")
        with RegistryClient(f"http://{core.endpoints['http']}") as registry:
            for layout in layouts:
                transfer.push(registry, Layout(layout))
        return core

    def agent(self, core: Server, models: Sequence[Model]) -> Server:
        """Start an agent that serves every model of the core: endpoint ``socket``."""
        data_dir, path = self.directory / "agent", self.directory / "a.sock"
        arguments = [
            *("agent", "run", "--device-id", "bench", "--data-dir", str(data_dir), "--socket", str(path)),
            *("--core", f"grpc://{core.endpoints['grpc']}", "--registry", f"http://{core.endpoints['http']}"),
        ]
        agent = self._penstock(arguments, data_dir / "endpoints.json")
        _release(core, models)
        for model in models:
            wait(f"agent serving {model.name}", partial(_runs, f"unix://{path}", model.name))
        return Server(pid=agent.pid, endpoints={"socket": str(path)})

    def peer(self, peer: Peer, python: Path, models: Sequence[Model]) -> Server:
        """Start a peer by the interpreter of its environment, serving every model: endpoints ``http`` and ``grpc``.

        Raises:
            ServerError: it exited, or did not serve the models in time.
        """
        directory = self.directory / peer.name
        directory.mkdir()
        http_port, grpc_port, metrics_port = _free_ports(3)
        job = {
            "directory": str(directory),
            "models": [{"name": m.name, "path": str(m.path.resolve()), "max_batch": m.max_batch} for m in models],
            "http_port": http_port,
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
        }
        endpoints = {"http": f"127.0.0.1:{http_port}", "grpc": f"127.0.0.1:{grpc_port}"}

        def is_ready() -> bool:
            return all(_runs(f"grpc://{endpoints['grpc']}", model.name) for model in models)

        command = [str(python), str(peer.program), json.dumps(job)]
        pid = self._logged(peer.name, command, is_ready, timeout_s=PEER_START_TIMEOUT_S)
        return Server(pid=pid, endpoints=endpoints)

    def _announcing(self, module: str, arguments: Sequence[str]) -> Server:
        command = pinned([sys.executable, "-m", module, *arguments], self.pins.server)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ServerError(f"{module} ended before it was ready (exit {process.wait()})")
        return Server(pid=process.pid, endpoints=json.loads(line))

    def _penstock(self, arguments: Sequence[str], announced: Path) -> Server:
        name = f"penstock {arguments[0]}"
        pid = self._logged(name, [*PENSTOCK, *arguments], announced.exists, timeout_s=START_TIMEOUT_S)
        return Server(pid=pid, endpoints=json.loads(announced.read_text()))

    def _logged(self, name: str, command: Sequence[str], is_ready: Callable[[], bool], *, timeout_s: float) -> int:
        """Start ``command``, what it says going to a file, and return its process id once it is ready."""
        log = self.directory / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(pinned(command, self.pins.server), stdout=output, stderr=output, text=True)
        self.processes.append(process)

        def is_up() -> bool:
            if process.poll() is not None:
                raise ServerError(f"{name} exited {process.returncode}:\n{log.read_text()[-2000:]}")
            return is_ready()

        try:
            wait(f"{name} getting ready", is_up, timeout_s=timeout_s)
        except TimeoutError as error:
            raise ServerError(f"{error}:\n{log.read_text()[-2000:]}") from None
        return process.pid


@contextmanager
def running(directory: Path, pins: Pins) -> Iterator[Servers]:
    """Yield servers that are stopped when the block ends, however it ends."""
    servers = Servers(directory, pins, [])
    try:
        yield servers
    finally:
        children = [child for process in servers.processes for child in _family(process.pid)[1:]]
        for process in servers.processes:
            process.send_signal(signal.SIGTERM)
        for process in servers.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()  # a peer's worker that outlived it


def cpu_s(pid: int) -> float:
    """Return the CPU time that all threads of a process and of its children have had so far; 0 where the system does
    not say.
    """
    total = 0
    for process in _family(pid):
        with suppress(OSError):
            stats = [task.read_text() for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
            total += sum(int(stat.split()[0]) for stat in stats)
    return total / 1e9


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and all its children; nothing when it is gone, or 0."""
    if not pid:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_ports(count: int) -> list[int]:
    """Choose loopback ports for servers that cannot choose their own and say which."""
    bound = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in bound]
    for each in bound:
        each.close()
    return ports


def wait(what: str, is_ready: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.1)


def _release(core: Server, models: Sequence[Model]) -> None:
    """Bring every model to the agent: what was only pushed reaches no device."""
    with FleetClient(f"grpc://{core.endpoints['grpc']}") as fleet:
        wait("agent known to the core", lambda: bool(fleet.devices()))
        for model in models:
            gate = fleet_pb2.GateSettings(min_audited=0, bake_s=0)
            version = Layout(model.layout).digest
            plan = fleet.plan(fleet_pb2.PlanRolloutRequest(model=model.name, version=version, waves=[1.0], gate=gate))
            fleet.apply(plan.rollout_id, plan.plan_digest)


def _runs(target: str, model: str) -> bool:
    try:
        with Client(target, timeout=2.0) as client:
            return bool(client.model_ready(model))
    except PenstockError:
        return False
