"""A tenant with models of its own: whatever it asks for, over HTTP and gRPC, it learns nothing of others."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from cloud_core.app import Core
from penstock.rest.connection import ask
from penstock.rpc.pb import oip_pb2 as pb
from tests.cloud_core.rig import onnx_layout, push_to, start_core

TENANTS = [
    {"name": "operators", "token": "admin-token-1"},
    {"name": "shop", "token": "shop-token-1", "role": "device", "models": ["shop-*"]},
]
SECRET = "mlp"
LISTS = ("/v2/models", "/v2/models/stats", "/v2/repository/index", "/v1/models", "/v2/_catalog", "/", "/openapi.json")
NAMED = (
    "/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/config", "/v2/models/{}/stats", "/v2/models/{}/versions/v1",
    "/v2/{}/tags/list", "/v2/{}/manifests/v1", "/v1/models/{}",
)  # fmt: skip


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with await start_core(tmp_path, tenants=TENANTS) as core:
        await push_to(core, onnx_layout(tmp_path, "v1", model="shop-faces"), token="admin-token-1")
        yield core


async def get(core: Core, path: str, token: str) -> tuple[int, str]:
    answer = await asyncio.to_thread(ask, f"http://127.0.0.1:{core.http_port}", "GET", path, token=token)
    return answer.status, answer.body.decode()


async def test_lists_over_http_show_what_a_tenant_may_ask_for(core: Core) -> None:
    told = {path: await get(core, path, "shop-token-1") for path in LISTS}
    assert {path for path, (status, _) in told.items() if status != 200} == set()
    assert {path for path, (_, body) in told.items() if SECRET in body} == set()
    for path in ("/v2/models", "/v2/models/stats", "/v2/repository/index", "/v2/_catalog"):
        assert "shop-faces" in told[path][1]
        assert SECRET in (await get(core, path, "admin-token-1"))[1]


async def test_a_name_of_others_is_refused_alike_whether_it_exists_or_not(core: Core) -> None:
    for path in NAMED:
        exists, ghost = [await get(core, path.format(name), "shop-token-1") for name in (SECRET, "ghost")]
        assert exists[0] == ghost[0], path
        assert exists[0] in (403, 404), path
        assert exists[1].replace(SECRET, "ghost") == ghost[1], path
        mine, unknown = [await get(core, path.format(name), "shop-token-1") for name in ("shop-faces", "shop-ghost")]
        assert mine[0] == 200 or path.startswith("/v1"), path  # no language model
        assert SECRET not in mine[1] + unknown[1], path


async def test_grpc_shows_and_refuses_the_same(core: Core) -> None:
    as_shop = (("authorization", "Bearer shop-token-1"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:

        async def call(method: str, request: bytes) -> bytes:
            answer: bytes = await channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                request, metadata=as_shop
            )
            return answer

        for method in ("RepositoryIndex", "ModelStatistics"):
            listed = await call(method, b"")
            assert (b"shop-faces" in listed, SECRET.encode() in listed) == (True, False)
        for method, kind in (
            ("ModelMetadata", pb.ModelMetadataRequest), ("ModelReady", pb.ModelReadyRequest),
            ("ModelConfig", pb.ModelConfigRequest), ("ModelStatistics", pb.ModelStatisticsRequest),
        ):  # fmt: skip
            said = []
            for name in (SECRET, "ghost"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(method, kind(name=name).SerializeToString())
                said.append((refused.value.code(), refused.value.details()))
            assert said[0] == said[1], method
            assert said[0][0] == grpc.StatusCode.PERMISSION_DENIED


async def test_a_connection_that_others_use_next_sees_with_their_eyes(core: Core) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
    seen = []
    for token in ("shop-token-1", "admin-token-1", "shop-token-1"):
        head = f"GET /v2/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"content-length: (\d+)", answer.lower())
        seen.append(sorted(one["name"] for one in json.loads(await reader.readexactly(int(length)))["models"]))
    writer.close()
    assert seen == [["shop-faces"], ["mlp", "shop-faces"], ["shop-faces"]]
