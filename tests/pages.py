"""Walks through a page of the documentation: its commands, in order, in a directory, on ports of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.project.readme import blocks, script

DOCS = Path(__file__).parents[1] / "docs"


def walk(page: Path, directory: Path, *, timeout_s: float = 200.0) -> str:
    """Run a page's commands; return what they said. Servers that it starts are ended with it."""
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as grpc:
        ports = http.getsockname()[1], grpc.getsockname()[1]
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PENSTOCK_CORE_HTTP__PORT": str(ports[0]),
        "PENSTOCK_CORE_GRPC__PORT": str(ports[1]),
        "PENSTOCK_CORE_DATA_DIR": str(directory / "core"),
        "PENSTOCK_CORE": f"grpc://127.0.0.1:{ports[1]}",
        "PENSTOCK_REGISTRY": f"http://127.0.0.1:{ports[0]}",
        "PENSTOCK_AGENT_CORE": f"grpc://127.0.0.1:{ports[1]}",
        "PENSTOCK_AGENT_REGISTRY": f"http://127.0.0.1:{ports[0]}",
        "PENSTOCK_AGENT_DATA_DIR": str(directory / "agent"),
        "PENSTOCK_AGENT_HEARTBEAT__INTERVAL_S": "0.2",
        "PENSTOCK_AGENT_HEARTBEAT__MAX_S": "0.2",
        "PENSTOCK_AGENT_UPDATE__PROBATION_S": "0.2",
    }
    text = page.read_text(encoding="utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{ports[0]}")
    command = ["bash", "-c", script(blocks(text))]
    done = subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
