"""Keys and usage of a core that runs: by command, over HTTP and gRPC, and on its data directory when nobody can yet."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cloud_core.api.keys import read_wanted
from cloud_core.app import Core
from cloud_core.commands.core import command
from penstock import AsyncClient
from penstock.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PenstockError,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)
from penstock.rest.connection import ask
from penstock.rpc.fleet import FleetClient
from tests.cloud_core.rig import core_settings, onnx_layout, push_to, start_core

ADMIN = "admin-token-1"
TENANTS = [
    {"name": "operators", "token": ADMIN},
    {"name": "shop", "models": ["ml*"], "requests_per_day": 3},
    {"name": "other", "token": "other-token-1", "role": "client", "models": ["faces"]},
]
X = np.ones((2, 4), np.float32)


async def run(core: Core, *arguments: str, token: str = ADMIN) -> Any:
    """What a command prints as JSON; raises what it would exit with."""
    where = ("--core", f"http://127.0.0.1:{core.http_port}", "--token", token)
    result = await asyncio.to_thread(CliRunner().invoke, command, [*arguments, *where, "-o", "json"])
    if isinstance(result.exception, PenstockError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def infer(core: Core, token: str, *, grpc: bool = False) -> None:
    target = f"grpc://127.0.0.1:{core.grpc_port}" if grpc else f"http://127.0.0.1:{core.http_port}"
    async with AsyncClient(target, token=token) as client:
        await client.infer("mlp", X)


def actions(core: Core) -> list[str]:
    with FleetClient(f"grpc://127.0.0.1:{core.grpc_port}", token=ADMIN) as fleet:
        return [one.action for one in fleet.actions()]


async def test_keys_are_made_and_revoked_without_a_restart_and_usage_is_told(tmp_path: Path) -> None:
    async with await start_core(tmp_path, tenants=TENANTS) as core:
        made = await run(core, "key", "create", "--tenant", "shop", "--note", "checkout", "--days", "30")
        key = made["key"]
        assert key.startswith(f"penstock_{made['id']}_")
        await infer(core, key)
        await infer(core, key, grpc=True)
        with pytest.raises(PermissionDenied):
            await run(core, "key", "list", token=key)
        (listed,) = (await run(core, "key", "list"))["keys"]
        assert listed["last_used_at"] >= listed["created_at"]
        assert "key" not in listed
        assert "hash" not in listed

        used = (await run(core, "usage", "--tenant", "shop"))["usage"]
        assert [(one["tenant"], one["model"], one["requests"], one["rows"]) for one in used] == [("shop", "mlp", 2, 4)]
        assert used[0]["device_s"] > 0
        assert used[0]["bytes"] >= 2 * X.nbytes
        url = f"http://127.0.0.1:{core.http_port}"
        scraped = (await asyncio.to_thread(ask, url, "GET", "/metrics", token=ADMIN)).body.decode()
        assert 'penstock_usage_rows_total{model="mlp",tenant="shop"} 4.0' in scraped

        await run(core, "key", "revoke", key, "--reason", "left")  # who pastes the whole key means its id
        for over_grpc in (False, True):
            with pytest.raises(Unauthenticated):
                await infer(core, key, grpc=over_grpc)
        assert (await run(core, "key", "list"))["keys"] == []
        assert await asyncio.to_thread(actions, core) == ["core key create", "core key revoke"]
        with pytest.raises(NotFound):
            await run(core, "key", "revoke", made["id"])


async def test_a_day_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with await start_core(tmp_path, tenants=TENANTS) as core:
        key = (await run(core, "key", "create", "--tenant", "shop"))["key"]
        for _ in range(3):
            await infer(core, key)
        with pytest.raises(QuotaExceeded) as refused:
            await infer(core, key)
        assert (refused.value.limit, refused.value.remaining) == (3, 0)
    async with await Core.start(core_settings(tmp_path / "core", tenants=TENANTS)) as core:
        for over_grpc in (False, True):
            with pytest.raises(QuotaExceeded, match="midnight UTC"):
                await infer(core, key, grpc=over_grpc)


async def test_the_first_key_is_made_on_the_data_directory(tmp_path: Path) -> None:
    settings = core_settings(tmp_path / "core", auth={"required": True})
    (tmp_path / "core").mkdir()
    arguments = ["key", "create", "--tenant", "ops", "--role", "admin", "--data-dir", str(tmp_path / "core")]
    result = await asyncio.to_thread(CliRunner().invoke, command, [*arguments, "-o", "json"])
    assert result.exit_code == 0, result.output
    key = json.loads(result.stdout)["key"]
    async with await Core.start(settings) as core:
        with pytest.raises(Unauthenticated):
            await run(core, "key", "list", token="")
        await push_to(core, onnx_layout(tmp_path, "v1"), token=key)
        await infer(core, key)
        running = await asyncio.to_thread(CliRunner().invoke, command, arguments)
        assert isinstance(running.exception, PenstockError)
        assert "--core" in running.exception.message


async def test_where_everybody_may_call_a_key_would_say_nothing(tmp_path: Path) -> None:
    async with await start_core(tmp_path) as core:
        with pytest.raises(Conflict, match=r"auth\.required"):
            await run(core, "key", "create", "--tenant", "shop")
        with pytest.raises(Conflict, match="tenants"):
            await run(core, "usage")
        await infer(core, "")


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"tenant": 3}', b'{"tenant": ""}', b'{"tenant": "a", "role": "root"}', b"[" * 9000,
     b'{"tenant": "a", "days": -1}', b'{"tenant": "a", "hash": "x"}', b'{"tenant": "a\\u0000"}',
     b'{"tenant": "a", "device_id": "../../etc"}', b"\xff"],
)  # fmt: skip
def test_a_key_that_cannot_be_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_wanted(body)
