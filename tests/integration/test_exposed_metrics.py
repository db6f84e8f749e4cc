"""What real processes expose on /metrics is what its reference page says, after traffic that touches all of it."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import numpy as np

from penstock import Client
from penstock.rest.connection import ask
from tests.processes import AgentProcess, CoreProcess, DigitsBuild

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


OF_EVERYTHING = """
[[tenants]]
name = "prometheus"
token = "observer-token-1"
role = "observer"

[observing]
traffic = true
slo = {{ "*" = {{}} }}
drift = {{ is_on = true }}
capture = {{ directory = "{capture}" }}
"""
"""What is there only where settings ask for it."""


def names_in(exposition: str) -> set[str]:
    return {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE penstock_")}


def test_every_exposed_metric_is_documented(
    agent_process: AgentProcess,
    core_process: CoreProcess,
    digits_build: DigitsBuild,
    tmp_path: Path,
) -> None:
    x, _ = digits_build.test_split()
    with Client(agent_process.target, timeout=10.0) as client:
        client.infer("digits", np.tile(x[:100], (2, 1)))
    status, agent = agent_process.get("/metrics")
    assert status == 200
    with urllib.request.urlopen(f"{core_process.http_url}/metrics", timeout=10) as response:
        core = response.read().decode()
    other = CoreProcess(tmp_path, OF_EVERYTHING.format(capture=tmp_path / "capture"))
    try:
        other.start()
        asked = ask(other.http_url, "GET", "/metrics", token="observer-token-1")
    finally:
        other.stop()
    assert asked.status == 200
    found = names_in(agent.decode()) | names_in(core) | names_in(asked.body.decode())
    assert len(found) > 10
    assert found == set(re.findall(r"^\| `(penstock_\w+)` \|", PAGE.read_text(encoding="utf-8"), re.M))
