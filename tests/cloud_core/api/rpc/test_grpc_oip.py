"""The core over real sockets, gRPC: statuses and trailers, streams, health, reflection, and others' clients.

Every test runs against both servers that can listen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cloud_core.app import Core
from penstock.rpc import codec
from penstock.rpc.pb import fleet_pb2, fleet_pb2_grpc, oip_pb2, oip_pb2_grpc
from penstock.wire.inference import EXTENSIONS, InferRequest
from tests.cloud_core.rig import soon, start_core
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.asyncio(loop_scope="module")
TENANT = {"name": "shop", "token": "shop-secret", "rate_rows_per_s": 1, "burst_rows": 2}
PUSHBACK = {"grpcio": "grpc-retry-pushback-ms", "native": "x-penstock-retry-pushback-ms"}  # see adr/0068
BEARER = (("authorization", "Bearer shop-secret"),)


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory, server: str) -> AsyncIterator[Core]:
    limits = {"max_message_bytes": 100_000, "stream_window": 4, "server": server}
    async with await start_core(tmp_path_factory.mktemp("grpc"), grpc=limits) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def stub(core: Core) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        yield oip_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(x: Any = None, **more: Any) -> oip_pb2.ModelInferRequest:
    x = rows(1) if x is None else x
    return codec.encode_request(InferRequest(**{"model": "mlp", "inputs": {"x": x}, **more}))


async def failure(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return error.code(), error.details() or "", {k: str(v) for k, v in error.trailing_metadata()}


async def test_an_answer_is_raw_when_asked_raw_and_typed_otherwise(stub: Any) -> None:
    x = rows(1, -2)
    raw = await stub.ModelInfer(message(x, id="r1"), timeout=20)
    assert (raw.id, raw.model_name, raw.model_version) == ("r1", "mlp", "v1")
    assert raw.parameters["variant"].string_param.startswith("sha256:")
    typed = message(x)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend(x.ravel().tolist())
    answer = await stub.ModelInfer(typed, timeout=20)
    assert not answer.raw_output_contents
    np.testing.assert_allclose(
        answer.outputs[0].contents.fp32_contents, np.frombuffer(raw.raw_output_contents[0], np.float32), rtol=1e-5
    )


async def test_server_and_model_metadata_and_states(stub: Any) -> None:
    assert (await stub.ServerLive(oip_pb2.ServerLiveRequest(), timeout=20)).live
    assert (await stub.ServerReady(oip_pb2.ServerReadyRequest(), timeout=20)).ready
    server = await stub.ServerMetadata(oip_pb2.ServerMetadataRequest(), timeout=20)
    assert server.name == "penstock"
    assert list(server.extensions) == [*EXTENSIONS, "model_repository", "logging"]
    assert (await stub.ModelReady(oip_pb2.ModelReadyRequest(name="mlp"), timeout=20)).ready
    model = await stub.ModelMetadata(oip_pb2.ModelMetadataRequest(name="mlp", version="v1"), timeout=20)
    assert (model.versions, model.inputs[0].shape) == (["v1"], [-1, 4])
    index = await stub.RepositoryIndex(oip_pb2.RepositoryIndexRequest(), timeout=20)
    assert [(m.name, m.version, m.state) for m in index.models] == [("mlp", "v1", "READY")]


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (message(model="ghost"), grpc.StatusCode.NOT_FOUND, "mlp"),
        (message(version="v9"), grpc.StatusCode.NOT_FOUND, "v1"),
        (message(np.zeros((1, 5), np.float32)), grpc.StatusCode.INVALID_ARGUMENT, "[-1, 4]"),
        (message(rows(1).astype(np.float64)), grpc.StatusCode.INVALID_ARGUMENT, "FP32"),
        (message(outputs=("nothing",)), grpc.StatusCode.INVALID_ARGUMENT, "logits"),
        (oip_pb2.ModelInferRequest(model_name="mlp"), grpc.StatusCode.INVALID_ARGUMENT, "none"),
    ],
)
async def test_refusals_have_a_status_and_say_why(stub: Any, request_: Any, code: grpc.StatusCode, says: str) -> None:
    got, details, trailers = await failure(stub.ModelInfer(request_, timeout=20))
    assert got == code
    assert says in details
    assert trailers["x-penstock-code"]


async def test_truncated_raw_contents_are_refused(stub: Any) -> None:
    short = message(rows(1, 2))
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    assert (await failure(stub.ModelInfer(short, timeout=20)))[0] == grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_are_bad_input_not_a_defect(core: Core) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        for method in ("ModelInfer", "ModelReady", "ModelMetadata", "RepositoryIndex"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert (await failure(call(b"\xff\xff\xff", timeout=20)))[0] == grpc.StatusCode.INVALID_ARGUMENT
        unknown = channel.unary_unary("/inference.GRPCInferenceService/RepositoryFly")
        assert (await failure(unknown(b"", timeout=20)))[0] == grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused(stub: Any) -> None:
    code, _, _ = await failure(stub.ModelInfer(message(rows(*[1.0] * 10_000)), timeout=20))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_answers_in_order_and_survives_bad_requests(stub: Any) -> None:
    async def requests() -> AsyncIterator[oip_pb2.ModelInferRequest]:
        for number in range(20):
            yield message(rows(number), id=str(number), model="ghost" if number % 5 == 3 else "mlp")

    answers = [answer async for answer in stub.ModelStreamInfer(requests(), timeout=20)]
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(20)]
    for number, answer in enumerate(answers):
        if number % 5 == 3:
            assert "ghost" in answer.error_message
        else:
            assert not answer.error_message
            assert answer.infer_response.parameters["triton_final_response"].bool_param


async def test_requests_of_one_stream_run_together_up_to_the_window(tmp_path: Path, server: str) -> None:
    async with (
        await start_core(tmp_path, grpc={"stream_window": 4, "server": server}, serving={"max_delay_s": 20.0}) as core,
        grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel,
    ):
        (served,) = core.plane.served()

        async def requests() -> AsyncIterator[oip_pb2.ModelInferRequest]:
            for number in range(30):
                yield message(rows(number))

        call = oip_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())  # type: ignore[no-untyped-call]
        await soon(lambda: served.queues[0].queue_rows >= 4)
        await asyncio.sleep(0.05)
        assert served.queues[0].queue_rows <= 6
        call.cancel()
        await soon(lambda: not (served.queues[0].queue_rows or core.plane.measures.inflight))


async def test_a_cancelled_call_takes_its_work_out_of_the_queue(tmp_path: Path, server: str) -> None:
    async with (
        await start_core(tmp_path, grpc={"server": server}, serving={"max_delay_s": 20.0}) as core,
        grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel,
    ):
        (served,) = core.plane.served()
        call = oip_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message())  # type: ignore[no-untyped-call]
        waiting = asyncio.ensure_future(call)
        await soon(lambda: served.queues[0].queue_rows > 0)
        call.cancel()
        await soon(lambda: served.queues[0].queue_rows == 0)
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
        assert core.plane.measures.routes["mlp", "v1"].requests == {"cancelled": 1}


async def test_a_full_queue_pushes_back_by_trailer(tmp_path: Path, server: str) -> None:
    async with (
        await start_core(tmp_path, grpc={"server": server}, serving={"max_delay_s": 20.0, "max_queue_rows": 2}) as core,
        grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel,
    ):
        (served,) = core.plane.served()
        stub: Any = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        waiting = asyncio.ensure_future(stub.ModelInfer(message(rows(1, 2))))
        await soon(lambda: served.queues[0].queue_rows == 2)
        code, _, trailers = await failure(stub.ModelInfer(message(), timeout=20))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert trailers["x-penstock-reason"] == "rejected-saturated"
        assert int(trailers[PUSHBACK[server]]) >= 0
        await core.plane.controller.close(0.0)
        assert (await failure(waiting))[0] == grpc.StatusCode.UNAVAILABLE


async def test_a_message_that_does_not_fit_beside_those_in_flight_pushes_back(tmp_path: Path, server: str) -> None:
    limits = {"max_delay_s": 20.0, "max_inflight_bytes": 200}
    async with (
        await start_core(tmp_path, grpc={"server": server}, serving=limits) as core,
        grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel,
    ):
        (served,) = core.plane.served()
        stub: Any = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        waiting = asyncio.ensure_future(stub.ModelInfer(message(rows(1, 2))))
        await soon(lambda: served.queues[0].queue_rows == 2)
        assert core.plane.measures.inflight_bytes > 0
        code, details, trailers = await failure(stub.ModelInfer(message(rows(*range(12))), timeout=20))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "serving.max_inflight_bytes" in details
        assert (trailers["x-penstock-code"], trailers["x-penstock-reason"]) == ("memory-full", "rejected-memory")
        assert int(trailers[PUSHBACK[server]]) >= 0
        await core.plane.controller.close(0.0)
        assert (await failure(waiting))[0] == grpc.StatusCode.UNAVAILABLE
        assert core.plane.measures.inflight_bytes == 0


async def test_tenants_over_grpc(tmp_path: Path, server: str) -> None:
    async with (
        await start_core(tmp_path, grpc={"server": server}, tenants=[TENANT]) as core,
        grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel,
    ):
        stub: Any = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        fleet: Any = fleet_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]
        for call in (
            stub.ModelInfer(message(), timeout=20),
            stub.ModelInfer(message(model="ghost"), timeout=20),
            stub.ModelMetadata(oip_pb2.ModelMetadataRequest(name="mlp"), timeout=20),
            stub.RepositoryIndex(oip_pb2.RepositoryIndexRequest(), timeout=20),
            fleet.ListDevices(fleet_pb2.ListDevicesRequest(), timeout=20),
        ):
            code, details, _ = await failure(call)
            assert code == grpc.StatusCode.UNAUTHENTICATED
            assert "mlp" not in details
        assert (await stub.ServerLive(oip_pb2.ServerLiveRequest(), timeout=20)).live
        await fleet.ListDevices(fleet_pb2.ListDevicesRequest(), metadata=BEARER, timeout=20)
        await stub.ModelInfer(message(rows(1, 2)), metadata=BEARER, timeout=20)
        code, _, trailers = await failure(stub.ModelInfer(message(rows(1, 2)), metadata=BEARER, timeout=20))
        assert (code, trailers["x-penstock-reason"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected-quota")
        assert float(trailers["x-ratelimit-reset"]) > 0


async def test_health_follows_readiness(tmp_path: Path, server: str) -> None:
    core = await start_core(tmp_path, grpc={"server": server})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(core.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def test_of_two_watchers_the_one_that_stays_hears_on(tmp_path: Path, server: str) -> None:
    core = await start_core(tmp_path, grpc={"server": server})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", "", "none")]
        first, second, unknown = map(health.Watch, asked)
        for watch, state in ((first, "SERVING"), (second, "SERVING"), (unknown, "SERVICE_UNKNOWN")):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.ServingStatus.Value(state)
        first.cancel()
        code, _, _ = await failure(health.Check(health_pb2.HealthCheckRequest(service="none"), timeout=20))
        assert code == grpc.StatusCode.NOT_FOUND
        stopping = asyncio.create_task(core.stop())
        assert (await second.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stopping


async def test_reflection_describes_our_services_to_a_client_that_knows_nothing(core: Core) -> None:
    def ask() -> tuple[set[str], Any, Any, Any]:
        from google.protobuf.descriptor_pool import DescriptorPool

        with grpc.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            return (
                set(database.get_services()),
                pool.FindServiceByName("inference.GRPCInferenceService"),
                pool.FindServiceByName("penstock.v1.Fleet"),
                pool.FindServiceByName("grpc.reflection.v1.ServerReflection"),
            )

    names, inference, fleet, newer = await asyncio.to_thread(ask)
    assert names >= {"inference.GRPCInferenceService", "penstock.v1.Fleet", "grpc.health.v1.Health"}
    assert {"ModelInfer", "ModelStreamInfer"} <= {method.name for method in inference.methods}
    assert "Heartbeat" in {method.name for method in fleet.methods}
    assert newer.methods[0].input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"


async def test_reflection_answers_under_the_name_of_v1_too(core: Core) -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        for version in ("v1alpha", "v1"):
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )
            answers = [answer async for answer in call(iter([asked, asked]), timeout=20)]
            names = [one.name for one in answers[1].list_services_response.service]
            assert {"grpc.reflection.v1.ServerReflection", "inference.GRPCInferenceService"} <= set(names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent
async def test_tritonclients_stream_works_unmodified(core: Core) -> None:
    import tritonclient.grpc as triton

    def stream() -> list[Any]:
        answers: list[Any] = []
        given = triton.InferInput("x", [2, 4], "FP32")
        given.set_data_from_numpy(rows(1, 2))
        with triton.InferenceServerClient(f"127.0.0.1:{core.grpc_port}") as client:
            client.start_stream(lambda result, error: answers.append((result, error)))
            for number in range(5):
                client.async_stream_infer("ghost" if number == 2 else "mlp", [given], request_id=str(number))
            client.stop_stream()
        return answers

    answers = await asyncio.to_thread(stream)
    assert [error is None for _, error in answers] == [True, True, False, True, True]
    assert answers[0][0].as_numpy("logits").shape == (2, 3)
