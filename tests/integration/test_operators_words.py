"""What an operator commands is what real agents do: kept where they are, held by what failed, stopped by a revert."""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.digits.processes import penstock
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.rpc.fleet import FleetClient, state_name
from penstock.rpc.pb import fleet_pb2 as pb
from tests.edge_agent.cloud import MODEL, build
from tests.processes import AgentProcess, CoreProcess
from tests.waiting import wait_until

CANARY_FIRST = ("--wave", "0.3", "--wave", "1", "--bake", "0", "--min-audited", "0")


@dataclass
class Fleet:
    """A core and three agents that run v1; v2 is good, ``bad`` does not compute its golden outputs."""

    core: CoreProcess
    agents: dict[str, AgentProcess]
    client: FleetClient

    def run(self, *arguments: str) -> tuple[int, str]:
        """``penstock fleet ...`` with nobody at the keyboard: its exit code, and what it said, on one line."""
        done = penstock("fleet", *arguments, "--core", self.core.grpc_target, check=False)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def plan(self, tag: str, *how: str) -> str:
        before = {one.plan.rollout_id for one in self.client.rollouts()}
        code, said = self.run("plan", f"{MODEL}:{tag}", *how)
        assert code == 0, said
        (name,) = {one.plan.rollout_id for one in self.client.rollouts()} - before
        return name

    def device(self, name: str, device_id: str) -> pb.WaveDevice:
        waves = self.client.rollout(name).waves
        return next(device for wave in waves for device in wave.devices if device.device_id == device_id)

    def canary(self, name: str) -> str:
        return str(self.client.rollout(name).waves[0].devices[0].device_id)

    def versions(self) -> dict[str, str]:
        return {name: agent.status()["models"][0]["version"] for name, agent in self.agents.items()}

    def everybody_on(self, tag: str) -> None:
        for agent in self.agents.values():
            agent.wait_until_runs(MODEL, tag)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    core = CoreProcess(directory=directory / "c")
    agents = {name: AgentProcess(directory=directory, device_id=name, core=core) for name in ("c1", "c2", "c3")}
    try:
        core.start()
        layouts = [build(directory / "made", "v1", seed=1), build(directory / "made", "v2", seed=2)]
        with RegistryClient(core.http_url) as registry:
            for layout in [*layouts, build(directory / "made", "bad", seed=3, lies=True)]:
                transfer.push(registry, layout)
        with ThreadPoolExecutor() as starting:
            list(starting.map(AgentProcess.start, agents.values()))
        core.release(f"{MODEL}:v1", devices=len(agents))
        with FleetClient(core.grpc_target) as client:
            yield Fleet(core=core, agents=agents, client=client)
    finally:
        for agent in agents.values():
            agent.kill()
        core.kill()
        shutil.rmtree(directory, ignore_errors=True)


def test_after_abort_keep_a_device_of_the_released_wave_that_comes_back_stays_where_it_was(fleet: Fleet) -> None:
    fleet.everybody_on("v1")
    off = fleet.agents["c2"]
    off.stop()
    name = fleet.plan("v2", "--at-once")
    assert fleet.run("apply", name)[0] == 0
    for device_id in ("c1", "c3"):
        fleet.agents[device_id].wait_until_runs(MODEL, "v2")
    wait_until("both to be heard", lambda: all(fleet.device(name, one).phase == pb.COMMITTED for one in ("c1", "c3")))
    code, said = fleet.run("abort", "--keep", "--reason", "enough for today")
    assert code == 0
    assert "2 of 3 devices stay on v2, 1 where they were" in said

    off.start()
    with FleetClient(fleet.core.grpc_target) as client:
        wait_until("c2 to report", lambda: min(one.last_seen_s for one in client.devices()) < 1)
    off.wait_until_runs(MODEL, "v1")
    wait_until("everybody where they should be", lambda: all(fleet.device(name, one).is_there for one in fleet.agents))
    assert fleet.versions() == {"c1": "v2", "c2": "v1", "c3": "v2"}

    code, said = fleet.run("undo", name, "--yes", "--wait", "--reason", "back to one version")
    assert code == 0, said
    assert set(fleet.versions().values()) == {"v1"}
    code, said = fleet.run("undo", name, "--yes")
    assert (code, "undone" in said) == (3, True), "a second time takes back nothing more"


def test_a_canary_that_goes_back_by_itself_stops_its_rollout_and_no_other_device_moves(fleet: Fleet) -> None:
    fleet.everybody_on("v1")
    name = fleet.plan("bad", *CANARY_FIRST)
    canary = fleet.canary(name)
    code, said = fleet.run("apply", name, "--wait", "--timeout", "100", "--reason", "a canary first")
    assert code == 5, said
    assert f"the only device of this wave went back: {canary} reverted" in said
    assert [wave.is_released for wave in fleet.client.rollout(name).waves] == [True, False]
    fleet.everybody_on("v1")
    with urllib.request.urlopen(f"{fleet.core.http_url}/metrics", timeout=10) as response:
        assert f'penstock_fleet_last_stop_timestamp_seconds{{model="{MODEL}"}} 1' in response.read().decode()
    assert fleet.run("status", name, "--exit-code")[0] == 5
    assert fleet.run("resume", name)[0] == 3


def test_resuming_after_a_failed_canary_wants_that_device_by_name(fleet: Fleet) -> None:
    fleet.everybody_on("v1")
    name = fleet.plan("bad", *CANARY_FIRST, "--no-stop-when-all-revert")
    canary = fleet.canary(name)
    assert fleet.run("apply", name)[0] == 0
    wait_until("the canary to go back", lambda: fleet.device(name, canary).phase == pb.REVERTED)
    assert fleet.run("pause", "--reason", "look at the canary")[0] == 0
    code, said = fleet.run("resume", name)
    assert code == 3
    assert f"penstock fleet resume {name} --accept {canary}" in said
    other = next(one for one in fleet.agents if one != canary)
    code, said = fleet.run("resume", name, "--accept", other)
    assert (code, "there is nothing to accept" in said) == (3, True)
    assert not fleet.client.rollout(name).waves[1].is_released

    code, said = fleet.run("resume", name, "--accept", canary, "--reason", "its lens is broken")
    assert code == 0, said
    wait_until("the next wave", lambda: fleet.client.rollout(name).waves[1].is_released)
    accepted = [event for event in fleet.client.rollout(name).events if "accepted failures" in event.text]
    assert [(event.text, event.reason) for event in accepted] == [
        (f"resumed by the operator; accepted failures: {canary}", "its lens is broken")
    ]
    if state_name(fleet.client.rollout(name)) == "RUNNING":
        fleet.run("abort", name)
    fleet.everybody_on("v1")
