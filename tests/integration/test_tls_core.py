"""A core that ends TLS itself and wants certificates: commands, the SDK and a device, all of them without a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock
from penstock import AsyncClient, Client
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild
from tests.tls import make_authority
from tests.waiting import wait_until

X = np.zeros((2, 64), np.float32)
CONFIG = """
[tls]
certificate = "{server.cert}"
key = "{server.key}"
client_ca = "{ca}"

[[tenants]]
name = "operators"
certificates = ["CN:test client"]

[[tenants]]
name = "devices"
role = "device"
certificates = ["URI:spiffe://shop/*"]
"""


async def test_devices_commands_and_the_sdk_dial_tls(
    core_factory: Callable[..., CoreProcess],
    agent_factory: Callable[..., AgentProcess],
    digits_build: DigitsBuild,
    short_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = make_authority(short_dir / "tls")
    device = authority.sign(short_dir, "kiosk", uri="spiffe://shop/kiosk-7")
    tls = authority.tls_with_client
    for name, value in {"CA_FILE": tls.ca_file, "CLIENT_CERT": tls.cert_file, "CLIENT_KEY": tls.key_file}.items():
        monkeypatch.setenv(f"PENSTOCK_{name}", value)
    core = core_factory(CONFIG.format(server=authority.server, ca=authority.ca))
    monkeypatch.setenv("PENSTOCK_CORE", f"{core.http_url},{core.grpc_target}")
    penstock("artifact", "push", digits_build.layout("v1"))
    wait_until("the core to serve what was pushed", lambda: "READY" in penstock("core", "status").stdout)

    section = f"\n[tls]\nca_file = '{authority.ca}'\ncert_file = '{device.cert}'\nkey_file = '{device.key}'\n"
    agent = agent_factory(core, config=AGENT_CONFIG + section)  # a certificate that may report and pull, and no more
    core.release("digits:v1")  # heartbeats, and pulls from the registry
    agent.wait_until_runs("digits", "v1")
    with Client(agent.target) as client:  # zeros are no digit: a device is not sure of them
        answer = client.infer("digits", X)
        assert (answer.served_by, answer.reason) == ("cloud", "escalated"), answer.parameters
    wait_until("outcomes delivered", lambda: agent.status()["outbox"]["records"] == 0)

    for target in (core.http_url, core.grpc_target):
        with Client(target, tls=tls) as client:
            cloud = client.infer("digits", X)
        async with AsyncClient(target, tls=tls) as other:
            np.testing.assert_array_equal((await other.infer("digits", X)).outputs["logits"], cloud.outputs["logits"])
