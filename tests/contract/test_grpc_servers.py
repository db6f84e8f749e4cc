"""What both servers that listen for gRPC do alike under clients that are many, slow, gone or wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from cloud_core.app import Core
from penstock import AsyncClient
from penstock.rpc import codec
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc, oip_pb2, oip_pb2_grpc
from penstock.wire.inference import InferRequest
from tests import http2
from tests.cloud_core.rig import soon, start_core
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
INFER = "/inference.GRPCInferenceService/ModelInfer"
RESOURCE_EXHAUSTED = 8
CALLS = 1500  # grpcio by itself ends those beyond a thousand that wait for Python


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory, server: str) -> AsyncIterator[Core]:
    """Whose limits are small."""
    limits = {"max_message_bytes": 30_000, "max_metadata_bytes": 2048, "server": server}
    async with await start_core(tmp_path_factory.mktemp("servers"), grpc=limits) as running:
        assert running.grpc.server == server
        yield running


def message(**more: Any) -> oip_pb2.ModelInferRequest:
    return codec.encode_request(InferRequest(**{"model": "mlp", "inputs": {"x": rows(1)}, **more}))


def stub_of(channel: grpc.aio.Channel) -> Any:
    return oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def open_channel(core: Core) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}", options=[("grpc.use_local_subchannel_pool", 1)])


async def check_serves(core: Core) -> None:
    async with open_channel(core) as channel:
        assert (await stub_of(channel).ModelInfer(message(id="r"), timeout=20)).id == "r"


async def test_a_burst_beyond_every_limit_is_refused_with_a_reason_and_counted(tmp_path: Path, server: str) -> None:
    serving = {"max_delay_s": 20.0, "max_queue_rows": 2, "drain_s": 0.1}
    async with await start_core(tmp_path, grpc={"server": server}, serving=serving) as core:
        async with open_channel(core) as channel:
            stub = stub_of(channel)

            async def ask() -> tuple[str, str | None]:
                try:
                    await stub.ModelInfer(message(), timeout=60)
                except grpc.aio.AioRpcError as error:
                    return error.code().name, dict(error.trailing_metadata() or ()).get("x-penstock-reason")
                return "OK", None

            calls = [asyncio.create_task(ask()) for _ in range(CALLS)]
            await soon(lambda: sum(call.done() for call in calls) == CALLS - 2)
            ended = Counter(call.result() for call in calls if call.done())
            assert ended == {("RESOURCE_EXHAUSTED", "rejected-saturated"): CALLS - 2}
            assert core.plane.measures.refused["queue-full"] == CALLS - 2
            for call in calls:
                call.cancel()
        await soon(lambda: core.plane.measures.inflight == 0)


async def test_what_was_admitted_is_answered_while_the_core_stops(tmp_path: Path, server: str) -> None:
    core = await start_core(tmp_path, grpc={"server": server}, serving={"max_delay_s": 1.0})
    async with open_channel(core) as channel:
        stub = stub_of(channel)
        waiting = [asyncio.ensure_future(stub.ModelInfer(message(id=str(n)), timeout=20)) for n in range(12)]
        await soon(lambda: core.plane.measures.inflight == 12)
        stopping = asyncio.create_task(core.stop())
        answers = await asyncio.gather(*waiting)
        assert [answer.id for answer in answers] == [str(n) for n in range(12)]
        assert await stopping


async def test_a_client_that_never_reads_holds_nobody_up(core: Core) -> None:
    body = message().SerializeToString()
    with http2.connect(("127.0.0.1", core.grpc_port), window=0) as silent:
        for number in range(50):
            silent.sendall(http2.request(1 + 2 * number, INFER, body))
        await check_serves(core)
        await soon(lambda: core.plane.measures.inflight == 0)
    await check_serves(core)


async def test_a_client_that_is_gone_without_a_word_is_noticed_and_its_work_leaves_the_queue(
    tmp_path: Path, server: str
) -> None:
    patience = {"server": server, "keepalive_s": 1.0, "keepalive_timeout_s": 0.2}
    serving = {"max_delay_s": 20.0, "drain_s": 0.1}
    async with await start_core(tmp_path, grpc=patience, serving=serving) as core:
        (served,) = core.plane.served()
        with http2.connect(("127.0.0.1", core.grpc_port)) as gone:  # answers no ping
            gone.sendall(http2.request(1, INFER, message().SerializeToString()))
            await soon(lambda: served.queues[0].queue_rows == 1)
            await soon(lambda: served.queues[0].queue_rows == 0)
        assert core.plane.measures.routes["mlp", "v1"].requests == {"cancelled": 1}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 100,
        http2.PREFACE + b"\xff" * 64,
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.HEADERS, 4, 0, b"\x82"),
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"),
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.DATA, 1, 1, b"\0" * 9),
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + http2.frame(http2.PING, 0, 0, b"short"),
    ],
    ids=["HTTP/1.1", "zeros", "no frame", "headers of no stream", "no HPACK", "data of no stream", "a short ping"],
)
async def test_what_is_no_http2_costs_its_connection_only(core: Core, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", core.grpc_port), timeout=20) as connection:
        connection.sendall(sent)
        await check_serves(core)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0", struct.pack(">BI", 0, 50) + b"cut", struct.pack(">BI", 1, 4) + b"gzip", struct.pack(">BI", 7, 0)],
    ids=["no message", "half a head", "a cut message", "compressed as nobody said", "an unknown flag"],
)
async def test_messages_that_break_grpc_never_run_and_cost_nobody_else_anything(core: Core, body: bytes) -> None:
    before = sum(batch.rows.total for batch in core.plane.measures.batches.values())
    with http2.connect(("127.0.0.1", core.grpc_port)) as connection:
        # some of them grpcio never answers, and forgets with the connection: nobody waits for that here
        connection.sendall(http2.request(1, INFER, body, framed=True))
        await check_serves(core)
    assert sum(batch.rows.total for batch in core.plane.measures.batches.values()) == before + 1


async def test_a_size_over_the_limit_is_refused_when_announced_or_when_read(core: Core, server: str) -> None:
    """The native library reads a message whole before anybody sees it: adr/0068."""
    announced = struct.pack(">BI", 0, 4_000_000_000)
    whole = struct.pack(">BI", 0, 30_001) + bytes(30_001)
    with http2.connect(("127.0.0.1", core.grpc_port)) as connection:
        connection.sendall(http2.request(1, INFER, announced if server == "grpcio" else whole, is_whole=False))
        if server == "native":
            connection.sendall(http2.frame(http2.DATA, 1, 1))
        found = await asyncio.to_thread(http2.trailers, connection)
    assert int(found["grpc-status"]) == RESOURCE_EXHAUSTED
    assert "30000" in found["grpc-message"]


async def test_metadata_over_the_limit_are_refused(core: Core) -> None:
    async with open_channel(core) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_of(channel).ModelInfer(message(), metadata=[("x-large", "a" * 8000)], timeout=20)
        assert caught.value.code() != grpc.StatusCode.OK
        assert (await stub_of(channel).ModelInfer(message(id="r"), timeout=20)).id == "r"


async def test_two_hundred_connections_are_served(core: Core) -> None:
    channels = [open_channel(core) for _ in range(200)]
    try:
        calls = [stub_of(channel).ModelInfer(message(id=str(n)), timeout=60) for n, channel in enumerate(channels)]
        assert [answer.id for answer in await asyncio.gather(*calls)] == [str(n) for n in range(200)]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def test_connections_beyond_a_limit_are_closed_and_those_before_go_on(tmp_path: Path) -> None:
    async with await start_core(tmp_path, grpc={"max_connections": 2}) as core:
        assert core.grpc.server == "grpcio"  # which alone can count them
        channels = [open_channel(core) for _ in range(3)]
        try:
            for channel in channels[:2]:
                await stub_of(channel).ServerLive(oip_pb2.ServerLiveRequest(), timeout=20)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub_of(channels[2]).ServerLive(oip_pb2.ServerLiveRequest(), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            await stub_of(channels[0]).ServerLive(oip_pb2.ServerLiveRequest(), timeout=20)
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))


async def test_what_killed_cores_left_is_removed_and_what_others_use_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sockets = {}
    for name in ("left", "used", "young"):
        (tmp_path / f"penstock-grpc-{name}").mkdir()
        sockets[name] = socket.socket(socket.AF_UNIX)
        sockets[name].bind(str(tmp_path / f"penstock-grpc-{name}" / "behind"))
        if name != "young":
            os.utime(tmp_path / f"penstock-grpc-{name}" / "behind", (1.0, 1.0))
    sockets["used"].listen()
    core = await start_core(tmp_path, grpc={"server": "native"}, serving={"drain_s": 0.1})
    await core.stop()
    left = {name for name in os.listdir(tmp_path) if name.startswith("penstock-grpc-")}
    assert left == {"penstock-grpc-used", "penstock-grpc-young"}
    for one in sockets.values():
        one.close()


async def test_the_sdk_coalesces_and_an_agent_reports(core: Core) -> None:
    async with AsyncClient(f"grpc://127.0.0.1:{core.grpc_port}") as client:
        answers = await asyncio.gather(*(client.infer("mlp", rows(n)) for n in range(64)))
    assert all(answer.outputs["logits"].shape == (1, 3) for answer in answers)
    assert len({answer.outputs["logits"].tobytes() for answer in answers}) == 64
    async with open_channel(core) as channel:
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]
        await fleet.Heartbeat(fleet_pb2.HeartbeatRequest(device_id="d1", instance="i1"), timeout=20)
        listed = await fleet.ListDevices(fleet_pb2.ListDevicesRequest(), timeout=20)
    assert [device.device_id for device in listed.devices] == ["d1"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent
async def test_tritonclient_calls_with_deadlines_ids_and_compression(core: Core) -> None:
    import tritonclient.grpc as triton

    def ask() -> Any:
        given = triton.InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(rows(1, 2))
        with triton.InferenceServerClient(f"127.0.0.1:{core.grpc_port}") as client:
            return client.infer(
                "mlp", [given], request_id="r7", client_timeout=20, compression_algorithm="gzip", headers={"a": "b"}
            )

    answer = await asyncio.to_thread(ask)
    assert answer.get_response().id == "r7"
    assert np.isfinite(answer.as_numpy("logits")).all()
