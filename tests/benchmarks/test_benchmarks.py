"""The benchmark measures what it says: rates from batched answers, ratios within rounds, and a run from end to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import start_peers
from benchmarks.load import Sample, sample_of
from benchmarks.peers import PEER_ROWS, PEERS, Peer
from benchmarks.plan import CALLERS, GOALS, NAMES, SERVERS, ratios
from benchmarks.servers import Pins, Servers
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


def sample(rows_per_s: float, cpu_us: float = 0.0) -> Sample:
    return Sample(rows_per_s=rows_per_s, p50_ms=1.0, p99_ms=1.0, requests=1, answered_rows=1, cpu_us=cpu_us)


@pytest.mark.parametrize("window_s", [3.0, 3.3, 3.7])
def test_clumps_of_answers_give_the_same_rate_wherever_the_window_ends(window_s: float) -> None:
    """16 callers, answered together every 0.4 s: 40 rows a second."""
    done = [(0.4 * batch + caller / 1e4, 0.4 * (batch - 1)) for batch in range(1, 20) for caller in range(16)]
    measured = sample_of([pair for pair in done if pair[0] <= window_s], after=0.0)
    assert measured.rows_per_s == pytest.approx(40, rel=0.01)


def test_warm_up_is_left_out_and_percentiles_are_of_requests() -> None:
    slow = [(0.5, 0.0)]
    steady = [(1 + 0.01 * n, 1 + 0.01 * (n - 1)) for n in range(1, 101)]
    measured = sample_of(slow + steady, after=1.0, rows=4)
    assert measured.requests == 100
    assert measured.answered_rows == 4 * 101
    assert measured.p50_ms == pytest.approx(10)
    assert measured.rows_per_s == pytest.approx(400, rel=0.05)


def test_ratios_are_medians_of_ratios_within_rounds() -> None:
    """The machine halves its speed in the second round: no ratio sees it."""
    found = ratios(
        {
            ("digits", "core-http", 16): [sample(90, 50), sample(45, 51), sample(80, 50)],
            ("digits", "yardstick-http", 16): [sample(100, 40), sample(50, 40), sample(100, 40)],
        }
    )
    assert [(r.over, r.callers, r.verdict) for r in found] == [("core-http", 16, "reached")]
    assert (found[0].low, found[0].ratio, found[0].high) == (0.8, 0.9, 0.9)
    assert found[0].cpu_ratio == pytest.approx(0.8)


def test_every_goal_compares_what_is_measured() -> None:
    for goal in GOALS:
        measured = CALLERS[goal.model]
        assert set(goal.callers) <= set(measured[goal.over])
        under = {goal.raw_batch} if goal.raw_batch else set(goal.callers)
        assert under <= set(measured[goal.under])
        assert goal.over in SERVERS
        assert {goal.over, goal.under} <= NAMES.keys() | {"raw", "core-sdk"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_measured_beside_ours_and_is_pinned(peer: Peer) -> None:
    assert {goal.under for goal in GOALS} >= peer.rows.keys()
    assert peer.program.exists()
    assert peer.version
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in peer.requirements)
    assert "onnxruntime==" + report.version("onnxruntime") in peer.requirements


def test_a_peer_that_cannot_be_installed_is_left_out_with_one_line(tmp_path: Path) -> None:
    no_directory = tmp_path / "peers"
    no_directory.write_text("")
    servers = Servers(tmp_path, Pins(server=None, client=None), [])
    found, left_out = start_peers(servers, [], ["core-grpc", "mlserver-grpc"], no_directory)
    assert found == {}
    assert len(left_out) == 1
    assert re.fullmatch(r"mlserver is left out: not installed: .*\S.*", left_out[0])


def test_readme_says_what_the_saved_results_say() -> None:
    """Its section is pasted from ``python -m benchmarks.report``, never typed."""
    readme = (ROOT / "README.md").read_text()
    pasted = re.search(r"<!-- python -m benchmarks.report (\S+) -->.*?<!-- end -->", readme, re.S)
    assert pasted
    results = report.load(ROOT / pasted[1])
    assert pasted[0] == report.for_readme(results, Path(pasted[1]))


def test_a_run_measures_every_server_of_ours() -> None:
    ours = set(CALLERS["digits"]) - PEER_ROWS
    load = ["--servers", *ours, "--models", "digits", "--callers", "64", "--quick", "--duration-s", "0.05"]
    command = [sys.executable, "-m", "benchmarks", *load, "--no-save"]
    env = {**os.environ, "PENSTOCK_AGENT_HEARTBEAT__MAX_S": "0.2"}  # the agent has the model so much earlier
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=env, check=False)
    assert done.returncode == 0, done.stderr
    measured = set(re.findall(r"^(\S+) +64 +[\d,.]+ ", done.stdout, re.M))
    assert measured == ours


def test_under_overload_every_request_is_accounted_for() -> None:
    options = ["--seconds", "0.5", "--deadline-s", "0.2"]
    command = [sys.executable, "-m", "benchmarks.overload", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 2
    for table in tables:
        figures = dict(re.findall(r"^(\S.*?)  +(\d+)", table, re.M))
        ended = [int(count) for name, count in figures.items() if name == "answered in time" or name.isupper()]
        assert sum(ended) == int(figures["sent"]) > 0
        assert int(figures["ran"]) >= int(figures["answered in time"])
