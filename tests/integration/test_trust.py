"""A device that found more harm than was certified: an operator's word frees it, and so does a new certificate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples.digits.processes import penstock, penstock_json
from penstock import Client
from tests.integration.test_assignments import certify_again
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import wait_until

CONFIG = AGENT_CONFIG + "\n[cascade]\naudit_share = 0.5\naudit_run_length = 100\n"


def mode(agent: AgentProcess) -> str:
    return next((str(model["mode"]).lower() for model in agent.status()["models"]), "")


def distrust(agent: AgentProcess, digits_build: DigitsBuild) -> None:
    """Ask until the device's own audit finds the version out."""
    x, _ = digits_build.test_split()
    with Client(agent.target) as client:

        def asked() -> bool:
            for start in range(0, len(x), 50):
                client.infer("digits", {"x": np.ascontiguousarray(x[start : start + 50])})
            return mode(agent) == "cloud_only"

        wait_until("the audit to find harm", asked)


def test_an_operators_word_and_a_new_certificate_let_a_device_keep_answers_again(
    core_process: CoreProcess,
    agent_factory: Callable[..., AgentProcess],
    digits_build: DigitsBuild,
    tmp_path: Path,
) -> None:
    core = core_process
    where = ("--core", core.grpc_target)
    layout = Path(shutil.copytree(digits_build.layout("v3"), tmp_path / "v3"))
    core.push(layout)
    agent = agent_factory(core, config=CONFIG)
    core.release("digits:v3")
    agent.wait_until_runs("digits", "v3")
    distrust(agent, digits_build)
    agent.restart()
    agent.wait_until_runs("digits", "v3")
    assert mode(agent) == "cloud_only"

    said = penstock_json("fleet", "trust", agent.device_id, "--who", "ada", "--reason", "the lens was dirty", *where)
    assert [(one["model"], one["mode"]) for one in said["models"]] == [("digits", "CLOUD_ONLY")]
    wait_until("the device to keep answers again", lambda: mode(agent) == "cascade")
    agent.restart()
    core.restart()
    agent.wait_until_runs("digits", "v3")
    # a kill may come before the word is on the device's disk: the core has it, and says it with every heartbeat
    wait_until("the word to be known after both were killed", lambda: mode(agent) == "cascade")
    *_, action = penstock_json("fleet", "history", *where)
    assert (action["who"], action["action"]) == ("ada", "fleet trust")
    assert (action["subject"], action["reason"]) == (f"{agent.device_id}: digits", "the lens was dirty")

    distrust(agent, digits_build)  # an operator's word is no pardon for what comes after it
    certify_again(layout)
    core.push(layout)
    penstock("fleet", "apply", "digits:v3", "--at-once", "--yes", *where)
    wait_until("the new certificate to free the device", lambda: mode(agent) == "cascade")


def test_what_cannot_be_trusted_is_said(core_process: CoreProcess, agent_process: AgentProcess) -> None:
    where = ("--core", core_process.grpc_target)
    unknown = penstock("fleet", "trust", "nobody", *where, check=False)
    assert unknown.returncode == 1
    assert "no device 'nobody'" in unknown.stderr
    other = penstock("fleet", "trust", agent_process.device_id, "--model", "faces", *where, check=False)
    assert other.returncode == 1
    assert f"{agent_process.device_id} runs no faces under a certificate" in other.stderr
