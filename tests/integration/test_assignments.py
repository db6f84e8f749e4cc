"""A core and an agent, both killed between the steps: certificates and removals travel by plan, and come back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from examples.digits.processes import penstock
from penstock.artifact.layout import Layout
from penstock.rpc.fleet import FleetClient, state_name
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import wait_until


def certificate_on(agent: AgentProcess) -> str:
    return next((str(model["certificate"]) for model in agent.status()["models"]), "")


def certify_again(layout: Path) -> str:
    """As ``penstock certify`` on new examples would: another certificate for the same variants."""
    opened = Layout(layout)
    _, former = opened.certificates()[-1]
    return opened.attach_certificate(msgspec.structs.replace(former, serial=former.serial + 1)).digest


def test_a_certificate_and_a_removal_reach_a_device_by_plan_and_are_taken_back(
    agent_process: AgentProcess, core_process: CoreProcess, digits_build: DigitsBuild, tmp_path: Path
) -> None:
    agent, core = agent_process, core_process
    where = ("--core", core.grpc_target)
    first = certificate_on(agent)
    layout = Path(shutil.copytree(digits_build.layout("v1"), tmp_path / "v1"))
    second = certify_again(layout)
    core.push(layout)
    pushed_at = time.time()
    wait_until("a heartbeat", lambda: heard_at(core) > pushed_at)
    assert certificate_on(agent) == first, "what was only pushed reaches no device"

    penstock("fleet", "apply", "digits:v1", "--at-once", "--yes", *where)
    agent.restart()
    core.restart()
    wait_until("the new certificate", lambda: certificate_on(agent) == second)
    wait_until("the end of the rollout", lambda: has_succeeded(core))
    undo(core)
    core.restart()
    wait_until("the former certificate", lambda: certificate_on(agent) == first)

    penstock("fleet", "remove", "digits", "--at-once", "--yes", *where)
    agent.restart()
    core.restart()
    wait_until("the end of the removal", lambda: has_succeeded(core))
    assert agent.status()["models"] == []
    assert list((agent.data_dir / "models").glob("*.json")) == []
    undo(core)
    core.restart()
    agent.wait_until_runs("digits", "v1")
    assert certificate_on(agent) == first


def undo(core: CoreProcess) -> None:
    with FleetClient(core.grpc_target) as fleet:
        name = fleet.rollout().plan.rollout_id
    penstock("fleet", "undo", name, "--core", core.grpc_target)


def has_succeeded(core: CoreProcess) -> bool:
    with FleetClient(core.grpc_target) as fleet:
        return state_name(fleet.rollout()) == "SUCCEEDED"


def heard_at(core: CoreProcess) -> float:
    with FleetClient(core.grpc_target) as fleet:
        return max((time.time() - device.last_seen_s for device in fleet.devices()), default=0.0)


def test_a_first_version_that_was_only_pushed_reaches_no_device(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> None:
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    pushed_at = time.time()
    wait_until("a heartbeat", lambda: heard_at(core_process) > pushed_at)
    assert agent.status()["models"] == []
