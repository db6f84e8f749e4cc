"""A core with tenants: a token can do what its role is for, and a wrong one gets nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock
from penstock import Client
from penstock.errors import Unauthenticated
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.waiting import wait_until

TOKEN, ADMIN_TOKEN, CLIENT_TOKEN = "kiosk-token-1", "admin-token-1", "client-token-1"
TENANTS = f"""
[[tenants]]
name = "kiosks"
token = "{TOKEN}"
role = "device"

[[tenants]]
name = "operators"
token = "{ADMIN_TOKEN}"

[[tenants]]
name = "applications"
token = "{CLIENT_TOKEN}"
role = "client"
"""
X = np.zeros((1, 64), "f4")


@pytest.fixture
def core(
    core_factory: Callable[..., CoreProcess], digits_build: DigitsBuild, monkeypatch: pytest.MonkeyPatch
) -> CoreProcess:
    started = core_factory(TENANTS)
    monkeypatch.setenv("PENSTOCK_TOKEN", ADMIN_TOKEN)
    penstock("artifact", "push", digits_build.layout("v1"), "--registry", started.http_url)
    return started


def test_a_device_with_a_token_pulls_escalates_and_reports(
    core: CoreProcess, agent_factory: Callable[..., AgentProcess]
) -> None:
    agent = agent_factory(core, config=f'token = "{TOKEN}"\n{AGENT_CONFIG}')
    core.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    with Client(agent.target) as client:
        rows = np.random.default_rng(0).uniform(0, 16, (64, 64)).astype("f4")  # noise: nothing to be sure of
        result = client.infer("digits", rows)
    assert result.served_by in ("mixed", "cloud")
    wait_until("outcomes delivered", lambda: agent.status()["outbox"]["records"] == 0)


@pytest.mark.parametrize("token", [None, "kiosk-token-2"])
def test_without_a_known_token_nothing_is_told(core: CoreProcess, token: str | None) -> None:
    for target in (core.grpc_target, core.http_url):
        with Client(target, token=token) as client:
            with pytest.raises(Unauthenticated) as caught:
                client.infer("digits", X)
            with pytest.raises(Unauthenticated):
                client.infer("no-such-model", X)
        assert "digits" not in caught.value.message
        assert "kiosk" not in caught.value.message


def test_a_device_without_a_token_says_why_it_has_nothing(
    core: CoreProcess, agent_factory: Callable[..., AgentProcess], short_dir: Path
) -> None:
    agent = agent_factory(core)
    wait_until("the refusal to show", lambda: "credential" in agent.status()["cloud"]["error"])
    assert agent.status()["models"] == []


@pytest.mark.parametrize("token", [TOKEN, CLIENT_TOKEN])
def test_a_token_can_do_what_its_role_is_for_and_no_more(
    core: CoreProcess, digits_build: DigitsBuild, token: str
) -> None:
    with Client(core.grpc_target, token=token) as client:
        wait_until("the model", lambda: client.model_ready("digits"))
        assert client.infer("digits", X).outputs["logits"].shape == (1, 10)
    for command in (
        ("artifact", "push", digits_build.layout("v2"), "--registry", core.http_url, "--token", token),
        ("fleet", "devices", "--core", core.grpc_target, "--token", token),
        ("fleet", "plan", "no-such-model:v9", "--core", core.grpc_target, "--token", token),
    ):
        refused = penstock(*command, check=False)
        assert (refused.returncode, "may not" in refused.stderr) == (3, True), refused.stderr
        assert "v1" not in refused.stderr
    pulled = penstock(*("artifact", "inspect", "digits:v1", "--registry", core.http_url, "--token", token), check=False)
    assert (pulled.returncode == 0) == (token == TOKEN)
