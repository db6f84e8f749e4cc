"""A device and commands whose only way to the core is a proxy, and what stays on this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from examples.digits.processes import penstock
from penstock import AsyncClient, Client
from tests.forward_proxy import forward_proxy
from tests.processes import AgentProcess, CoreProcess, DigitsBuild
from tests.tls import ends_tls, make_authority


async def test_all_that_leaves_the_machine_takes_the_proxy_and_nothing_else_does(
    digits_build: DigitsBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(tempfile.mkdtemp(prefix="pk-", dir="/tmp"))
    core = CoreProcess(directory=directory / "c")
    with forward_proxy(tmp_path) as proxy:
        core.start()
        agent = AgentProcess(directory=directory, device_id="a1", core=core)
        try:
            core.push(digits_build.layout("v1"))
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")  # of grpc's own rule
            ask_all(core, tmp_path / "x.npy")
            assert proxy.requests() == []

            away = dataclasses.replace(
                core,
                http_url=core.http_url.replace("127.0.0.1", "core.test"),
                grpc_target=core.grpc_target.replace("127.0.0.1", "core.test"),
            )
            agent.core = away
            agent.start()
            core.release("digits:v1")
            agent.wait_until_runs("digits", "v1")
            blobs = f"GET {away.http_url}/v2/digits/blobs/"
            assert any(line.startswith(blobs) for line in proxy.requests())

            images, _ = digits_build.test_split()
            with Client(agent.target) as client:
                assert "cloud" in {client.infer("digits", {"x": row[None]}).served_by for row in images[:200]}
            before = Counter(proxy.requests())
            ask_all(away, tmp_path / "x.npy")
            for target in (away.http_url, away.grpc_target):
                async with AsyncClient(target) as asking:
                    await asking.infer("digits", {"x": images[:1]})
            after = Counter(proxy.requests()) - before
            assert sum(after[line] for line in after if line.startswith(f"CONNECT {away.grpc_address} ")) >= 3
            assert sum(after[line] for line in after if line.startswith("POST ")) == 2
            assert any("/v2/_catalog" in line for line in after)
            assert all(line.endswith(" with password") for line in proxy.requests())
            assert not any("127.0.0.1" in line for line in proxy.requests())
        finally:
            agent.stop()
            core.stop()
            shutil.rmtree(directory, ignore_errors=True)


async def test_tls_goes_through_a_tunnel_to_the_server_itself(
    core_process: CoreProcess, digits_build: DigitsBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core_process.push(digits_build.layout("v1"))
    authority = make_authority(tmp_path / "tls")
    monkeypatch.setenv("PENSTOCK_CA_FILE", authority.tls.ca_file)
    context = authority.server_context()
    with forward_proxy(tmp_path) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        async with (
            ends_tls(context, core_process.http_address) as https,
            ends_tls(context, core_process.grpc_address) as grpcs,
        ):
            away = dataclasses.replace(
                core_process,
                http_url=f"https://{https}".replace("127.0.0.1", "core.test"),
                grpc_target=f"grpcs://{grpcs}".replace("127.0.0.1", "core.test"),
            )
            await asyncio.to_thread(ask_all, away, tmp_path / "x.npy")
            for target in (away.http_url, away.grpc_target):
                async with AsyncClient(target) as asking:
                    await asking.infer("digits", {"x": np.zeros((1, 64), np.float32)})
        asked = Counter(proxy.requests())
    to_http, to_grpc = (f"CONNECT {at.replace('127.0.0.1', 'core.test')} with password" for at in (https, grpcs))
    assert set(asked) == {to_http, to_grpc}
    assert asked[to_http] >= 3
    assert asked[to_grpc] >= 3


def ask_all(core: CoreProcess, file: Path) -> None:
    """Talk to a core by each command that does, over HTTP and gRPC."""
    np.save(file, np.zeros((1, 64), np.float32))
    for target in (core.http_url, core.grpc_target):
        penstock("infer", target, "digits", "--input", f"x={file}")
    penstock("fleet", "devices", "--core", core.grpc_target)
    penstock("artifact", "list", "--registry", core.http_url)
