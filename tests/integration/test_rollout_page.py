"""What docs/how-to/roll-out-a-version.md tells an operator to type is typed here, to a real core with real agents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from examples.digits.processes import penstock, penstock_json
from penstock.rpc.fleet import FleetClient
from tests.integration.test_readme import run_script
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.project.readme import blocks, script
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "roll-out-a-version.md").read_text(encoding="utf-8")
NAMES = ("cam-1", "cam-2", "cam-3")


def test_an_operator_who_types_the_page_rolls_out_pauses_goes_back_and_reads_who_did_what(
    core_process: CoreProcess,
    agent_factory: Callable[..., AgentProcess],
    digits_build: DigitsBuild,
    tmp_path: Path,
) -> None:
    core = core_process
    agents = [agent_factory(core, device_id=name) for name in NAMES]
    with FleetClient(core.grpc_target) as fleet:
        wait_until("all devices", lambda: len(fleet.devices()) == len(NAMES))
    (tmp_path / "build").mkdir()
    for version in ("v1", "v2"):
        (tmp_path / "build" / f"digits-{version}").symlink_to(digits_build.layout(version))
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PENSTOCK_CORE": core.grpc_target,
        "PENSTOCK_REGISTRY": core.http_url,
        "PENSTOCK_OPERATOR": "alice",
    }
    done = run_script(script(blocks(PAGE)), tmp_path, **env)
    assert done.returncode == 0, done.stdout
    assert "   1        1  it goes back  1 failure            90%      11.3%     285" in done.stdout
    where = ("--core", core.grpc_target)
    history = penstock_json("fleet", "history", *where)
    assert [(one["action"].split()[1], one["subject"]) for one in history] == [
        ("plan", "digits-v1-1"), ("apply", "digits-v1-1"), ("plan", "digits-v2-2"), ("apply", "digits-v2-2"),
        ("pause", "digits-v2-2"), ("resume", "digits-v2-2"), ("abort", "digits-v2-2"), ("plan", "digits-v2-3"),
        ("apply", "digits-v2-3"), ("undo", "digits-v2-3"),
    ]  # fmt: skip
    assert {one["who"] for one in history} == {"alice"}
    assert history[4]["reason"] == "a customer called"
    assert "operator's command" in core.log
    assert {str(agent.status()["models"][0]["version"]) for agent in agents} == {"v1"}

    # whoever interrupts a watch keeps the last state, and the rollout goes on
    started = penstock_json("fleet", "apply", "digits:v2", "--yes", "--bake", "600", *where)
    name = started["plan"]["rollout_id"]
    watch = subprocess.Popen(
        [sys.executable, "-m", "penstock", "fleet", "status", "--watch", "-o", "json", *where],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stderr is not None
    assert watch.stderr.readline()
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=60)
    assert (watch.returncode, json.loads(out)["state"]) == (130, "RUNNING")
    assert f"penstock fleet status {name} --watch" in err

    # a device that was off and has not begun stays where it was
    agents[0].stop()
    moved = [agent for agent in agents[1:] if agent.runs("digits", "v2")]
    penstock("fleet", "abort", name, "--keep", *where)
    kept = penstock_json("fleet", "status", name, *where)["kept"]
    agents[0].start()
    for agent in agents:
        agent.wait_until_runs("digits", "v2" if agent.device_id in kept else "v1")
    assert {agent.device_id for agent in moved} <= set(kept) | {agents[0].device_id}
