"""Both ports with TLS: clients of others, certificates in place of tokens, and a renewal that nobody notices."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from cloud_core.app import Core
from penstock import AsyncClient
from penstock.errors import PermissionDenied, Unauthenticated, Unavailable
from penstock.rpc.fleet import FleetClient
from penstock.wire.credentials import PeerCertificate
from tests.cloud_core.rig import start_core
from tests.tls import Authority, Identity, make_authority
from tests.waiting import wait_until

X = np.ones((1, 4), np.float32)
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]})
TENANTS = [
    {"name": "operators", "certificates": ["CN:test client"]},
    {"name": "kiosks", "certificates": ["URI:spiffe://shop/kiosk/*"], "role": "device", "device_id": "kiosk-7"},
    {"name": "app", "token": "app-token-1", "role": "client"},
]


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = make_authority(tmp_path / "tls")
    monkeypatch.setenv("PENSTOCK_CA_FILE", str(made.ca))
    monkeypatch.setenv("PENSTOCK_CLIENT_CERT", str(made.client.cert))
    monkeypatch.setenv("PENSTOCK_CLIENT_KEY", str(made.client.key))
    return made


def tls_of(authority: Authority, *, wants_clients: bool) -> dict[str, Any]:
    section: dict[str, Any] = {"certificate": str(authority.server.cert), "key": str(authority.server.key)}
    return section | ({"client_ca": str(authority.ca)} if wants_clients else {})


async def curl(core: Core, authority: Authority, *arguments: str, who: Identity | None = None) -> tuple[int, str]:
    """Ask twice for an answer on one connection; the exit code, and both statuses and bodies."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed (Debian's package curl)")
    shows = ("--cert", str(who.cert), "--key", str(who.key)) if who else ()
    url = f"https://localhost:{core.http_port}/v2/models/mlp/infer"
    process = await asyncio.create_subprocess_exec(
        *(program, "-sS", "--noproxy", "*", "--cacert", str(authority.ca), *shows, "-d", BODY, *arguments),
        *("-w", "%{http_code} ", url, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_certificate_stands_for_a_token_and_says_who_may_what(tmp_path: Path, authority: Authority) -> None:
    kiosk = authority.sign(tmp_path, "kiosk", uri="spiffe://shop/kiosk/7")
    stranger = authority.sign(tmp_path, "stranger")
    async with await start_core(tmp_path, tls=tls_of(authority, wants_clients=True), tenants=TENANTS) as core:
        assert core.grpc.server == "grpcio"
        code, said = await curl(core, authority, who=kiosk)
        assert (code, said.count("200 "), said.count('"logits"')) == (0, 2, 2)
        code, said = await curl(core, authority, who=stranger)  # signed, and nobody here knows the name
        assert (code, said.count("401 ")) == (0, 2)
        pretends = f"Authorization: {PeerCertificate.of(['CN:test client'])}"
        code, said = await curl(core, authority, "-H", pretends, who=stranger)
        assert (code, said.count("401 ")) == (0, 2)
        code, said = await curl(core, authority, "-H", "Authorization: Bearer app-token-1", who=stranger)
        assert (code, said.count("200 ")) == (0, 2)
        code, said = await curl(core, authority)
        assert code != 0
        assert "200" not in said

        target = f"grpcs://localhost:{core.grpc_port}"
        for who, answers in ((kiosk, True), (stranger, False)):
            tls = msgspec.structs.replace(authority.tls, cert_file=str(who.cert), key_file=str(who.key))
            async with AsyncClient(target, tls=tls) as client:
                if answers:
                    assert (await client.infer("mlp", X)).outputs["logits"].shape == (1, 3)
                else:
                    with pytest.raises(Unauthenticated):
                        await client.infer("mlp", X)
        async with AsyncClient(target, tls=authority.tls) as client:
            with pytest.raises(Unavailable):
                await client.infer("mlp", X)


async def test_the_fleet_service_knows_certificates(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    kiosk = authority.sign(tmp_path, "kiosk", uri="spiffe://shop/kiosk/7")

    def devices() -> Any:
        with FleetClient(f"grpcs://localhost:{core.grpc_port}") as fleet:
            return fleet.devices()

    async with await start_core(tmp_path, tls=tls_of(authority, wants_clients=True), tenants=TENANTS) as core:
        assert list(await asyncio.to_thread(devices)) == []
        monkeypatch.setenv("PENSTOCK_CLIENT_CERT", str(kiosk.cert))
        monkeypatch.setenv("PENSTOCK_CLIENT_KEY", str(kiosk.key))
        with pytest.raises(PermissionDenied):
            await asyncio.to_thread(devices)


async def test_a_renewed_certificate_is_shown_on_both_ports_without_a_restart(
    tmp_path: Path, authority: Authority
) -> None:
    section = {**tls_of(authority, wants_clients=False), "reload_s": 0.1}
    async with await start_core(tmp_path, tls=section) as core:
        ports = (core.http_port, core.grpc_port)
        shown = lambda port: ssl.get_server_certificate(("127.0.0.1", port))  # noqa: E731
        before = [await asyncio.to_thread(shown, port) for port in ports]
        assert before[0] == before[1]
        channel = grpc.aio.secure_channel(
            f"localhost:{core.grpc_port}", grpc.ssl_channel_credentials(authority.ca.read_bytes())
        )
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert await live(b"") == b"\x08\x01"
        made = authority.sign(tmp_path, "renewed")
        made.key.replace(authority.server.key)
        made.cert.replace(authority.server.cert)
        for port in ports:
            await asyncio.to_thread(wait_until, "the new certificate", lambda port=port: shown(port) != before[0])
        assert await live(b"") == b"\x08\x01"  # connections that are open go on
        await channel.close()
        code, said = await curl(core, authority)
        assert (code, said.count("200 ")) == (0, 2)
