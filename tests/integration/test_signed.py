"""Signed artifacts of several files through real processes: an ONNX model with external data, a core and devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples.digits.processes import penstock
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.signing import ed25519, trust
from tests.integration.test_readme import run_script
from tests.pages import DOCS
from tests.penstock.signed import make_layout, trusting
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.project.readme import blocks, script
from tests.waiting import wait_until

X = np.array([[9, 0, 0, 0]], np.float32)


def push(core: CoreProcess, layout: Layout) -> None:
    with RegistryClient(core.http_url) as registry:
        transfer.push(registry, layout)


def test_what_a_trusted_key_signed_runs_on_core_edge_and_middle_rung_and_nothing_else_does(
    core_factory: Callable[..., CoreProcess], agent_factory: Callable[..., AgentProcess], tmp_path: Path
) -> None:
    key = ed25519.generate()
    root = trusting(tmp_path, key).directory
    trusts = f'trust_root = "{root}"\n'
    core = core_factory(trusts)
    layout = make_layout(tmp_path, roles=("edge", "site"))
    push(core, layout)
    edge = agent_factory(core, "e1", config=f"{trusts}{AGENT_CONFIG}")
    site = agent_factory(core, "s1", config=f'{trusts}rung = "site"\n{AGENT_CONFIG}')
    core.release("digits:v1", devices=2, is_awaited=False)
    wait_until("the device refuses it", lambda: "is not signed" in edge.log)
    status = penstock("core", "status", "--core", core.http_url).stdout
    assert "is not signed" in status

    trust.sign(layout.root, key)
    core.push(layout.root)  # returns when the core serves it
    penstock("fleet", "abort", "--core", core.grpc_target)  # planned before there was a certificate to be believed
    core.release("digits:v1", devices=2)
    edge.wait_until_runs("digits", "v1")
    site.wait_until_runs("digits", "v1")
    for agent, scale in ((edge, 1.0), (site, 2.0)):
        with Client(agent.target) as client:
            answer = client.infer("digits", X)
        assert answer.outputs["logits"].tolist() == [[9 * scale, 0.0, 0.0]]
        assert answer.served_by == "edge"
    with Client(core.grpc_target) as client:
        assert client.infer("digits", X).outputs["logits"].tolist() == [[27.0, 0.0, 0.0]]

    edge.restart()  # verified again, from disk
    edge.wait_until_runs("digits", "v1")
    edge.kill()
    (root / "key0.pub").unlink()
    edge.start()
    wait_until("nobody vouches any more", lambda: "trusts none" in edge.log)
    assert not edge.runs("digits", "v1")


def test_what_the_page_says_is_typed(core_process: CoreProcess, digits_build: DigitsBuild, tmp_path: Path) -> None:
    for file in digits_build.models.iterdir():
        (tmp_path / file.name.replace("v1.toml", "recipe.toml")).symlink_to(file)
    page = (DOCS / "how-to" / "sign-artifacts.md").read_text(encoding="utf-8")
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
        "PENSTOCK_REGISTRY": core_process.http_url,
    }
    done = run_script(script(blocks(page)), tmp_path, **env)
    assert done.returncode == 0, done.stdout
    verified = done.stdout.split("$ penstock artifact verify")[1]
    assert "release" in verified
    assert "good" in verified
