"""A core behind nginx as docs/operations.md has it: TLS with an authority of one's own, certificates of clients, a path
before the core's own, and one port for HTTP and gRPC. SDK, commands and a device go that way only."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock
from penstock import AsyncClient, Client
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.tls import Authority, make_authority, nginx
from tests.waiting import wait_until

X = np.zeros((2, 64), np.float32)


@pytest.fixture
def authority(short_dir: Path) -> Authority:
    return make_authority(short_dir / "tls")


@pytest.fixture
def proxy(core_process: CoreProcess, authority: Authority, short_dir: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with nginx(
        short_dir / "nginx",
        authority,
        port,
        http=core_process.http_url,
        grpc=core_process.grpc_target,
    ) as address:
        yield address


async def test_everything_goes_through_a_proxy_that_ends_tls(
    core_process: CoreProcess,
    agent_factory: Callable[..., AgentProcess],
    digits_build: DigitsBuild,
    proxy: str,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    tls = authority.tls_with_client
    monkeypatch.setenv("PENSTOCK_CA_FILE", tls.ca_file)
    for command in (
        ("core", "status", "--core", f"https://{proxy}"),
        ("fleet", "devices", "--core", f"https://{proxy}"),
        ("artifact", "list", "--registry", f"https://{proxy}"),
    ):
        unknown = penstock(*command, check=False)  # nginx says so by a page of HTML, with status 400
        assert (unknown.returncode != 0, unknown.stderr.count("\n")) == (True, 1), unknown.stderr
        assert "PENSTOCK_CLIENT_CERT" in unknown.stderr
    monkeypatch.setenv("PENSTOCK_CLIENT_CERT", tls.cert_file)
    monkeypatch.setenv("PENSTOCK_CLIENT_KEY", tls.key_file)
    monkeypatch.setenv("PENSTOCK_CORE", f"https://{proxy}")  # one address for commands that speak gRPC and HTTP
    penstock("fleet", "devices")
    penstock("artifact", "push", digits_build.layout("v1"))
    ready = lambda: "READY" in penstock("core", "status").stdout  # noqa: E731
    wait_until("the core to serve what was pushed", ready)

    for name in ("PENSTOCK_CA_FILE", "PENSTOCK_CLIENT_CERT", "PENSTOCK_CLIENT_KEY"):
        monkeypatch.delenv(name)
    section = f"\n[tls]\nca_file = '{tls.ca_file}'\ncert_file = '{tls.cert_file}'\nkey_file = '{tls.key_file}'\n"
    where = ("--core", f"grpcs://{proxy}", "--registry", f"https://{proxy}")
    agent = agent_factory(core_process, config=AGENT_CONFIG + section, arguments=where)
    core_process.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    with Client(agent.target) as client:  # zeros are no digit: a device is not sure of them
        answer = client.infer("digits", X)
        assert (answer.served_by, answer.reason) == ("cloud", "escalated"), answer.parameters

    monkeypatch.setenv("PENSTOCK_AGENT_CORE", f"grpcs://{proxy}")
    monkeypatch.setenv("PENSTOCK_AGENT_REGISTRY", f"https://{proxy}")
    config = agent.directory / "a1.toml"
    said = penstock(
        *("agent", "doctor", "--config", config, "--data-dir", agent.data_dir, "--socket", agent.socket, "-o", "json")
    )
    states = {one["check"]: one["state"] for one in json.loads(said.stdout)["findings"]}
    assert set(states.values()) == {"ok"}, said.stdout
    assert {"tls", "core", "registry", "clock", "agent", "model digits"} <= set(states)

    # the path before the core's own is of the proxy, and goes with every request
    for target in (f"https://{proxy}/inner", f"https://{proxy}", f"grpcs://{proxy}"):
        with Client(target, tls=tls) as client:
            assert client.is_ready()
            cloud = client.infer("digits", X)
        async with AsyncClient(target, tls=tls) as other:
            np.testing.assert_array_equal((await other.infer("digits", X)).outputs["logits"], cloud.outputs["logits"])
