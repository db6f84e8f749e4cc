"""kill -9 at inconvenient moments: what was acknowledged is still there, and the device goes on answering."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from penstock import Client
from penstock.errors import NotFound
from penstock.rpc.fleet import FleetClient
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import PATIENCE_S, wait_until


def test_core_keeps_what_it_acknowledged(core_process: CoreProcess, digits_build: DigitsBuild) -> None:
    x, y = digits_build.test_split()
    core_process.push(digits_build.layout("v1"))
    core_process.push(digits_build.layout("v2"))
    core_process.restart()
    with Client(core_process.grpc_target, timeout=PATIENCE_S) as client:
        for version in ("v1", "v2"):
            assert np.mean(client.infer("digits", x, version=version).outputs["logits"].argmax(axis=1) == y) > 0.9
        with pytest.raises(NotFound, match="v1"):
            client.infer("digits", x, version="v9")


def test_an_agent_answers_while_the_core_is_gone_and_after_its_own_death(
    agent_process: AgentProcess, core_process: CoreProcess, digits_build: DigitsBuild
) -> None:
    x, y = digits_build.test_split()
    core_process.kill()
    for _ in range(2):
        with Client(agent_process.target, timeout=PATIENCE_S) as client:
            answer = client.infer("digits", x)
        assert answer.served_by == "edge"
        assert answer.reason == "cloud_unreachable"  # some of 447 digits are never certain
        assert np.mean(answer.outputs["logits"].argmax(axis=1) == y) > 0.85
        agent_process.restart()  # offline boot: from what the device remembers
        wait_until("digits after an offline boot", lambda: agent_process.runs("digits", "v1"))


def test_outcomes_survive_the_death_of_both(
    agent_process: AgentProcess, core_process: CoreProcess, digits_build: DigitsBuild
) -> None:
    x, _ = digits_build.test_split()
    core_process.kill()
    with Client(agent_process.target, timeout=PATIENCE_S) as client:
        for row in x[:50]:
            client.infer("digits", row[None])
        flush(agent_process, lambda: client.infer("digits", x[:1]))
    agent_process.kill()
    core_process.start()
    agent_process.start()
    wait_until("outcomes delivered", lambda: _counted(core_process, agent_process.device_id) >= 50)
    wait_until("an empty outbox", lambda: agent_process.status()["outbox"]["records"] == 0)
    # the row after them may have been counted in the same interval, or have died with the agent
    assert _counted(core_process, agent_process.device_id) in (50, 51)


def flush(agent: AgentProcess, ask: Callable[[], object]) -> None:
    """Wait until everything that was counted so far is on disk.

    Each interval in which something is counted becomes a record, so one more question makes one more; whatever was
    counted before it is in that record or in an earlier one.
    """
    before = agent.status()["outbox"]["records"]
    ask()
    wait_until("a record of the last interval", lambda: agent.status()["outbox"]["records"] > before)


def _counted(core: CoreProcess, device_id: str) -> int:
    with FleetClient(core.grpc_target) as fleet:
        found = [device for device in fleet.devices() if device.device_id == device_id]
    return sum(outcomes.counts.requests for device in found for outcomes in device.outcomes)


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4])
def test_an_agent_killed_while_it_pulls_or_switches_ends_up_right(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild, after_s: float
) -> None:
    """Wherever the kill hits between the first byte and the commit, the next start finishes the job."""
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    core_process.release("digits:v1", is_awaited=False)
    time.sleep(after_s)
    agent.restart()
    agent.wait_until_runs("digits", "v1")
    x, y = digits_build.test_split()
    with Client(agent.target, timeout=PATIENCE_S) as client:
        assert np.mean(client.infer("digits", x).outputs["logits"].argmax(axis=1) == y) > 0.9


def test_a_core_killed_while_an_agent_pulls_is_waited_for(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> None:
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    core_process.release("digits:v1", is_awaited=False)
    core_process.kill()
    core_process.start()
    agent.wait_until_runs("digits", "v1")
