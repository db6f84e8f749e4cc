"""What the demo's steps share: its directories, processes, figures and claims."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.rest.connection import ask

from .processes import Daemon
from .traffic import MODEL

AGENTS = ("kiosk-1", "kiosk-2", "kiosk-3")
# A demo has seconds where a fleet has hours: devices report quickly and send a quarter of their answers to the audit,
# where production sends 0.5 to 2 percent.
AGENT_CONFIG = """
[cascade]
audit_share = 0.25

[heartbeat]
interval_s = 0.25
max_s = 0.5

[outbox]
flush_s = 0.25

[update]
probation_s = 0.5
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One sentence of the verdict, whether it held, and the figures behind it."""

    text: str
    holds: bool
    evidence: str


@dataclass
class Demo:
    """What the steps share: directories, processes, figures and claims."""

    directory: Path
    runtime: Path
    seed: int
    figures: dict[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    core: Daemon | None = None
    agents: dict[str, Daemon] = field(default_factory=dict)
    core_http: str = ""
    core_grpc: str = ""
    sent_rows: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def socket(self, agent: str) -> str:
        return f"unix://{self.runtime}/{agent}.sock"

    def claim(self, text: str, holds: bool, evidence: str) -> None:
        self.claims.append(Claim(text=text, holds=bool(holds), evidence=evidence))
        say(f"  {'ok  ' if holds else 'FAIL'} {text}: {evidence}")

    def status(self, agent: str) -> dict[str, Any]:
        """Return what ``penstock agent status`` shows, without a process for each look."""
        status: dict[str, Any] = json.loads(ask(self.socket(agent), "GET", "/status", timeout_s=10.0).body)
        return status


def say(text: str = "") -> None:
    print(text, flush=True)


@contextmanager
def heading(number: int, text: str) -> Iterator[None]:
    began = time.monotonic()
    say(f"\n{number}. {text}")
    yield
    say(f"  ({time.monotonic() - began:.1f} s)")


def start_core(demo: Demo, data_dir: Path, *, http_port: str, grpc_port: str) -> None:
    data_dir.mkdir(parents=True, exist_ok=True)
    arguments = ["core", "serve", "--data-dir", str(data_dir), "--http-port", http_port, "--grpc-port", grpc_port]
    demo.core = Daemon(name="core", arguments=arguments, data_dir=data_dir, log=demo.runtime / "core.log")
    endpoints = demo.core.start()
    demo.core_http, demo.core_grpc = f"http://{endpoints['http']}", f"grpc://{endpoints['grpc']}"


def start_agent(demo: Demo, name: str) -> None:
    data_dir = demo.runtime / name
    data_dir.mkdir(parents=True, exist_ok=True)
    config = demo.runtime / f"{name}.toml"
    config.write_text(AGENT_CONFIG)
    arguments = [
        *("agent", "run", "--config", str(config), "--device-id", name, "--data-dir", str(data_dir)),
        *("--socket", f"{demo.runtime}/{name}.sock", "--core", demo.core_grpc, "--registry", demo.core_http),
        *("--label", "site=demo"),
    ]
    demo.agents[name] = Daemon(name=name, arguments=arguments, data_dir=data_dir, log=demo.runtime / f"{name}.log")
    demo.agents[name].start()


def runs(demo: Demo, agent: str, version: str) -> bool:
    models = demo.status(agent)["models"]
    return any(m["model"] == MODEL and m["version"] == version and m["phase"] == "COMMITTED" for m in models)
