"""Deadlines over gRPC that no sane client sends: answered clearly, and nothing runs for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from cloud_core.app import Core
from penstock.rpc import codec
from penstock.rpc.pb import oip_pb2_grpc
from penstock.wire.inference import InferRequest
from tests import http2
from tests.cloud_core.rig import start_core
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
INFER = "/inference.GRPCInferenceService/ModelInfer"
OK, DEADLINE_EXCEEDED, INTERNAL = 0, 4, 13


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory, server: str) -> AsyncIterator[Core]:
    async with await start_core(tmp_path_factory.mktemp("deadlines"), grpc={"server": server}) as running:
        yield running


def executed(core: Core) -> float:
    """Rows that ran, for whomever."""
    return sum(batch.rows.total for batch in core.plane.measures.batches.values())


async def ask(core: Core, timeout: str) -> tuple[int, str]:
    message = codec.encode_request(InferRequest(model="mlp", inputs={"x": rows(1)})).SerializeToString()
    address = ("127.0.0.1", core.grpc_port)
    return await asyncio.to_thread(http2.call, address, INFER, message, {"grpc-timeout": timeout})


@pytest.mark.parametrize("timeout", ["-1S", "-0S", "-1H", "1", "S", "1X", "1.5S", "+5S", "0x1S", ""])
async def test_a_deadline_that_is_none_is_refused_or_the_cores_own_holds(core: Core, server: str, timeout: str) -> None:
    before = executed(core)
    status, said = await ask(core, timeout)
    if server == "native":  # its library takes what it cannot read for no deadline, and does not tell
        assert (status, executed(core)) == (OK, before + 1)
    else:
        assert (status, "grpc-timeout" in said) == (INTERNAL, True)  # its answer to whatever breaks its own protocol
        assert executed(core) == before


@pytest.mark.parametrize("timeout", ["0S", "0m", "1n"])
async def test_a_deadline_that_is_over_is_told_so_and_nothing_runs(core: Core, timeout: str) -> None:
    before = executed(core)
    assert (await ask(core, timeout))[0] == DEADLINE_EXCEEDED
    assert executed(core) == before


@pytest.mark.parametrize("timeout", ["99999999H", "1000000000H"])
async def test_a_deadline_of_centuries_is_one_of_an_hour(core: Core, timeout: str) -> None:
    assert (await ask(core, timeout))[0] == OK


@pytest.mark.parametrize("timeout_s", [-1.0, -1e9])  # 0.0 is a millisecond to it, in which a quick core answers
async def test_grpcs_own_client_asks_nothing_that_is_over(core: Core, timeout_s: float) -> None:
    before = executed(core)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer(
            codec.encode_request(InferRequest(model="mlp", inputs={"x": rows(1)})), timeout=timeout_s
        )
        assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert executed(core) == before
