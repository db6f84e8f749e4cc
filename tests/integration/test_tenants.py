"""A core with tenants, and a device that has a token: everything a device does needs it, and a wrong one gets nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock, wait_for
from penstock import Client
from penstock.errors import Unauthenticated
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild

TOKEN = "kiosk-token-1"
TENANTS = f"""
[[tenants]]
name = "kiosks"
token = "{TOKEN}"
"""
X = np.zeros((1, 64), "f4")


@pytest.fixture
def core(
    core_factory: Callable[..., CoreProcess], digits_build: DigitsBuild, monkeypatch: pytest.MonkeyPatch
) -> CoreProcess:
    started = core_factory(TENANTS)
    monkeypatch.setenv("PENSTOCK_TOKEN", TOKEN)
    penstock("artifact", "push", digits_build.layout("v1"), "--registry", started.http_url)
    return started


def test_a_device_with_a_token_pulls_escalates_and_reports(
    core: CoreProcess, agent_factory: Callable[..., AgentProcess]
) -> None:
    agent = agent_factory(core, config=f'token = "{TOKEN}"\n{AGENT_CONFIG}')
    agent.wait_until_runs("digits", "v1")
    with Client(agent.target) as client:
        rows = np.random.default_rng(0).uniform(0, 16, (64, 64)).astype("f4")  # noise: nothing to be sure of
        result = client.infer("digits", rows)
    assert result.served_by in ("mixed", "cloud")
    wait_for("outcomes delivered", lambda: agent.status()["outbox"]["records"] == 0)


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
    wait_for("the refusal to show", lambda: "credential" in agent.status()["cloud"]["error"])
    assert agent.status()["models"] == []
