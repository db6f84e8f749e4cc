"""Two real cores, one PostgreSQL, one directory of blobs: the one that serves is killed, and the other goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import DemoError, penstock
from penstock import Client
from penstock.rpc.fleet import FleetClient, state_name
from tests.postgresql import PostgreSql, postgresql
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with postgresql() as running:
        yield running


def test_a_core_that_stands_by_takes_the_place_of_one_that_was_killed_and_a_rollout_goes_on(
    server: PostgreSql, digits_build: DigitsBuild, tmp_path: Path
) -> None:
    url = server.new_database("penstock")
    config = (
        f'database = "{url}"\n[cluster]\nstandby = true\nstandby_s = 0.1\n[registry]\ndirectory = "{tmp_path}/blobs"\n'
    )
    first, second = (CoreProcess(tmp_path / name, config=config) for name in ("first", "second"))
    first.start()
    # behind one address: the second binds it when the first is gone
    second.http_url, second.grpc_target = first.http_url, first.grpc_target
    starts = threading.Thread(target=second.start)
    starts.start()
    agent = AgentProcess(tmp_path, "cam-1", first)
    try:
        for version in ("v1", "v2"):
            first.push(digits_build.layout(version))
        agent.start()
        first.release("digits:v1")
        agent.wait_until_runs("digits", "v1")
        agent.kill()  # so that the rollout is under way for as long as the test wants
        penstock("fleet", "apply", "digits:v2", "--at-once", "--yes", "--core", first.grpc_target)
        wait_until("the second core to stand by", lambda: "standing by" in second.log)
        first.kill()
        starts.join(PATIENCE_S)
        x, y = digits_build.test_split()
        with Client(second.http_url, timeout=PATIENCE_S) as client:
            answered = client.infer("digits", x, version="v1")
        assert np.mean(answered.outputs["logits"].argmax(axis=1) == y) > 0.9
        agent.start()
        agent.wait_until_runs("digits", "v2")
        with FleetClient(second.grpc_target) as fleet:
            wait_until("the rollout's end", lambda: state_name(fleet.rollout()) == "SUCCEEDED")
    finally:
        agent.kill()
        first.kill()
        starts.join(PATIENCE_S)
        second.stop()


def _ended_before_it_was_ready(core: CoreProcess) -> None:
    with pytest.raises(DemoError):
        core.start()


def test_a_core_that_stands_by_ends_when_it_is_told_to(server: PostgreSql, tmp_path: Path) -> None:
    url = server.new_database("waits")
    serving = CoreProcess(tmp_path / "first", config=f'database = "{url}"\n')
    serving.start()
    waiting = CoreProcess(tmp_path / "second", config=f'database = "{url}"\n[cluster]\nstandby = true\n')
    starts = threading.Thread(target=_ended_before_it_was_ready, args=(waiting,))
    starts.start()
    try:
        wait_until(
            "it to stand by", lambda: (tmp_path / "second" / "core.log").exists() and "standing by" in waiting.log
        )
        waiting.stop()
        starts.join(PATIENCE_S)
        assert "Traceback" not in waiting.log
        third = penstock(
            "core", "serve", "--data-dir", tmp_path / "third", "--http-port", "0", "--grpc-port", "0",
            "--config", tmp_path / "first" / "core.toml", check=False,
        )  # fmt: skip
        assert third.returncode == 1
        assert "set cluster.standby = true to wait for it" in third.stderr
    finally:
        serving.stop()
