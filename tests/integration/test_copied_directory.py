"""Two devices from one data directory, as real processes: no row is lost, none counts twice, and the core says so."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent import identity
from examples.digits.processes import penstock
from penstock import Client
from penstock.rpc.fleet import FleetClient, as_data
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import PATIENCE_S, wait_until

CONFIG = """
[fleet]
heartbeat_s = 0.2
"""


@pytest.fixture
def core(core_factory: Callable[..., CoreProcess]) -> CoreProcess:
    return core_factory(CONFIG)


@pytest.fixture
def original(core: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild) -> AgentProcess:
    """An agent that has committed digits:v1, and has rows that it could not deliver; its process is gone."""
    core.push(digits_build.layout("v1"))
    agent = agent_factory(core)
    core.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    ask(agent, digits_build, 30)
    wait_until("30 rows counted", lambda: counted(core) == 30)
    core.kill()
    ask(agent, digits_build, 20)
    wait_until("rows on disk", lambda: agent.status()["outbox"]["records"] > 0)
    agent.stop()
    return agent


@pytest.fixture
def copy(original: AgentProcess, core: CoreProcess, short_dir: Path) -> Iterator[AgentProcess]:
    """A copy of its data directory, under the same device id; not started."""
    agent = AgentProcess(directory=short_dir / "copy", device_id=original.device_id, core=core)
    shutil.copytree(original.data_dir, agent.data_dir)
    yield agent
    agent.kill()


def ask(agent: AgentProcess, build: DigitsBuild, rows: int) -> None:
    x, _ = build.test_split()
    with Client(agent.target, timeout=PATIENCE_S) as client:
        for row in x[:rows]:
            client.infer("digits", row[None])


def device(core: CoreProcess) -> dict[str, Any]:
    with FleetClient(core.grpc_target) as fleet:
        (found,) = fleet.devices()
    return as_data(found)


def counted(core: CoreProcess) -> int:
    return sum(one["counts"]["requests"] for one in device(core)["outcomes"])


def by_instance(core: CoreProcess) -> dict[str, int]:
    return {
        one["instance"]: sum(found["counts"]["requests"] for found in one["outcomes"])
        for one in device(core)["instances"]
    }


def instance(agent: AgentProcess) -> str:
    return str(agent.status()["instance"])


def test_a_copied_directory_loses_no_row_and_is_told(
    core: CoreProcess, original: AgentProcess, copy: AgentProcess, digits_build: DigitsBuild
) -> None:
    core.start()
    original.start()
    copy.start()
    # what waited when the directory was copied is delivered by both, and counts once
    wait_until("50 rows counted", lambda: counted(core) == 50)
    wait_until("empty outboxes", lambda: all(one.status()["outbox"]["records"] == 0 for one in (original, copy)))
    wait_until("two agents seen", lambda: device(core)["is_duplicated"])
    assert instance(original) != instance(copy)
    ask(original, digits_build, 40)
    ask(copy, digits_build, 60)
    wait_until("150 rows counted", lambda: counted(core) == 150)
    assert by_instance(core) == {instance(original): 50 + 40, instance(copy): 60}
    table = penstock("fleet", "devices", "--core", core.grpc_target).stdout
    assert "a1: 2 agents report under this id, because a data directory was copied" in table
    assert "several agents report under this id" in penstock("fleet", "status", "--core", core.grpc_target).stdout
    assert "several agents report under one device id" in core.log
    # neither a restart of an agent nor one of the core changes who is who
    before = instance(copy)
    core.restart()
    copy.restart()
    wait_until("the core again", lambda: copy.status()["cloud"]["is_reachable"])
    assert instance(copy) == before
    ask(copy, digits_build, 5)
    wait_until("155 rows counted", lambda: counted(core) == 155)
    assert by_instance(core)[before] == 65


def test_a_copy_that_cannot_tell_is_told_by_the_core(
    core: CoreProcess, original: AgentProcess, copy: AgentProcess, digits_build: DigitsBuild
) -> None:
    """As an image of a whole card in a machine that names no serial number: the same inodes, the same times."""
    place = msgspec.json.encode(identity.place(copy.data_dir)).decode()
    with sqlite3.connect(copy.data_dir / "outbox.sqlite") as db:
        db.execute("UPDATE instance SET place = ?", [place])
    db.close()
    core.start()
    original.start()
    copy.start()
    wait_until("two instances", lambda: instance(original) != instance(copy))
    wait_until("two agents seen", lambda: len([one for one in device(core)["instances"] if one["agents"]]) == 2)
    wait_until("50 rows counted", lambda: counted(core) == 50)
    ask(original, digits_build, 7)
    ask(copy, digits_build, 11)
    wait_until("68 rows counted", lambda: counted(core) == 68)
    assert sorted(by_instance(core).values()) == [11, 57]
    assert "counts apart from now on" in original.log + copy.log
