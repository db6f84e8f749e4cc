"""A core and an agent, both killed between the steps: certificates and removals travel by plan, and come back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from examples.digits.processes import penstock, penstock_json
from penstock.artifact.layout import Layout
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
    beats = heartbeats(core)
    wait_until("more heartbeats", lambda: heartbeats(core) != beats)
    assert certificate_on(agent) == first, "what was only pushed reaches no device"

    penstock("fleet", "apply", "digits:v1", "--at-once", "--yes", *where)
    agent.restart()
    core.restart()
    wait_until("the new certificate", lambda: certificate_on(agent) == second)
    wait_until("the end of the rollout", lambda: penstock_json("fleet", "status", *where)["state"] == "SUCCEEDED")
    penstock("fleet", "undo", *where)
    core.restart()
    wait_until("the former certificate", lambda: certificate_on(agent) == first)

    penstock("fleet", "remove", "digits", "--at-once", "--yes", *where)
    agent.restart()
    core.restart()
    wait_until("the end of the removal", lambda: penstock_json("fleet", "status", *where)["state"] == "SUCCEEDED")
    assert agent.status()["models"] == []
    assert list((agent.data_dir / "models").glob("*.json")) == []
    penstock("fleet", "undo", *where)
    core.restart()
    agent.wait_until_runs("digits", "v1")
    assert certificate_on(agent) == first


def heartbeats(core: CoreProcess) -> Any:
    (device,) = penstock_json("fleet", "devices", "--core", core.grpc_target)
    return device["last_seen_s"]


def test_a_first_version_that_was_only_pushed_reaches_no_device(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> None:
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    wait_until(
        "the device is known", lambda: bool(penstock_json("fleet", "devices", "--core", core_process.grpc_target))
    )
    assert agent.status()["models"] == []
