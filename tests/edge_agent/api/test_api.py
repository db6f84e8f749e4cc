"""The agent's HTTP interface over real sockets, with aiohttp's client, NVIDIA's client and bare bytes."""

from __future__ import annotations

import asyncio
import json
import os
import socket as sockets
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edge_agent.api.routes import http_server
from edge_agent.settings import LimitsSettings
from penstock.errors import ConfigError, StorageError
from penstock.http.listen import parse_address
from penstock.http.server import HttpServer
from penstock.rest import codec
from penstock.wire.inference import EXTENSIONS, InferRequest
from tests.edge_agent.datapath import (
    DIGEST,
    FROM_CLOUD,
    MODEL,
    SURE,
    UNSURE,
    Cloud,
    DataPath,
    data_path,
    planes_of,
    rows,
    running_cloud,
)
from tests.waiting import until

INFER = f"/v2/models/{MODEL}/infer"


@dataclass(frozen=True)
class Served:
    """An agent's interface that listens, with a client of its unix socket."""

    http: HttpServer
    path: DataPath
    cloud: Cloud
    client: aiohttp.ClientSession
    socket: Path
    tcp_address: str

    async def stop(self, drain_s: float) -> None:
        """As the agent does it."""
        self.path.dataplane.in_flight.begin_drain()
        await self.path.dataplane.in_flight.drained(drain_s)
        await self.http.stop(1.0)

    async def call(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        async with self.client.request(method, f"http://agent{target}", data=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    async def infer(
        self, x: Any, *, slow: bool = False, headers: Mapping[str, str] | None = None, **parameters: Any
    ) -> Any:
        """Through the express lane, or (``slow``) through aiohttp."""
        encoded = codec.encode_request(InferRequest(model=MODEL, inputs={"x": x}, parameters=parameters))
        sent = {**encoded.headers, **({"TE": "trailers"} if slow else {}), **(headers or {})}
        status, received, body = await self.call("POST", INFER, encoded.body, sent)
        if status != 200:
            return status, received, json.loads(body)
        length = received.get(codec.HEADER_LENGTH)
        return status, received, codec.decode_response(body, header_length=int(length) if length else None)


@asynccontextmanager
async def served(
    directory: Path, *, limits: LimitsSettings | None = None, is_certified: bool = True
) -> AsyncIterator[Served]:
    async with (
        running_cloud() as cloud,
        data_path(directory, cloud.target, limits=limits, is_certified=is_certified) as path,
    ):
        http = http_server(*planes_of(path.dataplane), lambda: {"device_id": "d1"}, lambda model: None, body_s=10.0)
        socket = directory / "a.sock"
        await http.listen_unix(socket)
        tcp_address = await http.listen_tcp("127.0.0.1", 0, setting="--tcp")
        connector = aiohttp.UnixConnector(str(socket))
        async with aiohttp.ClientSession(connector=connector) as client:
            agent = Served(http, path, cloud, client, socket, tcp_address)
            try:
                yield agent
            finally:
                await agent.stop(0.5)


BOTH_WAYS = pytest.mark.parametrize("slow", [False, True], ids=["express", "aiohttp"])


# --- inference ----------------------------------------------------------------------------------------------------


@BOTH_WAYS
async def test_binary_inference_says_who_answered(short_dir: Path, slow: bool) -> None:
    async with served(short_dir) as agent:
        status, headers, answer = await agent.infer(rows(SURE, UNSURE), slow=slow)
        assert status == 200
        assert headers["Content-Type"] == codec.BINARY
        expected = rows(SURE, UNSURE)
        expected[1] += FROM_CLOUD
        np.testing.assert_allclose(answer.outputs["logits"], expected)
        assert (answer.model, answer.version) == (MODEL, "v1")
        assert (answer.parameters["served_by"], answer.parameters["rows_escalated"]) == ("mixed", 1)
        assert answer.parameters["artifact"] == DIGEST


@BOTH_WAYS
async def test_json_inference_as_curl_does_it(short_dir: Path, slow: bool) -> None:
    document = {
        "id": "42",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": SURE}],
        "parameters": {"explain": True},
    }
    async with served(short_dir) as agent:
        headers = {"TE": "trailers"} if slow else None
        for target in (INFER, f"/v2/models/{MODEL}/versions/v1/infer", f"/v2/models/{MODEL}/versions/{DIGEST}/infer"):
            status, received, body = await agent.call("POST", target, json.dumps(document).encode(), headers)
            assert (status, received["Content-Type"]) == (200, codec.JSON)
            answer = json.loads(body)
            assert answer["id"] == "42"
            by_name = {output["name"]: output for output in answer["outputs"]}
            assert by_name["logits"]["data"] == SURE
            assert by_name["penstock_served_by"]["data"] == ["edge"]
            assert by_name["penstock_reason"]["data"] == ["confident"]
            assert answer["parameters"]["reason"] == "confident"


async def test_without_a_cloud_and_with_nan_the_answer_is_still_valid_json(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        agent.cloud.answer = lambda x: x * np.nan
        body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": UNSURE}]})
        status, _, answer = await agent.call("POST", INFER, body.encode())
        assert status == 200
        assert json.loads(answer)["parameters"]["reason"] == "not_finite"


@BOTH_WAYS
async def test_bad_requests_get_the_status_of_the_table_and_a_readable_error(short_dir: Path, slow: bool) -> None:
    async with served(short_dir, limits=LimitsSettings(max_rows_per_request=4)) as agent:
        extra = {"TE": "trailers"} if slow else {}
        good = codec.encode_request(InferRequest(model=MODEL, inputs={"x": rows(SURE)}))
        cases: list[tuple[str, bytes, dict[str, str], int, str]] = [
            (INFER, b"{", {}, 400, "not a valid request"),
            (INFER, b"", {}, 400, "not a valid request"),
            (INFER, b"\xff\xfe", {}, 400, "not a valid request"),
            (INFER, b'{"inputs": []}', {}, 400, "the request has none"),
            (INFER, good.body[:-4], good.headers, 400, "x"),
            (INFER, good.body, {codec.HEADER_LENGTH: "-1"}, 400, codec.HEADER_LENGTH),
            (INFER, good.body, {codec.HEADER_LENGTH: "99999"}, 400, codec.HEADER_LENGTH),
            ("/v2/models/cat/infer", good.body, good.headers, 404, "no model named 'cat'"),
            (f"/v2/models/{MODEL}/versions/v9/infer", good.body, good.headers, 404, "no version 'v9'"),
            (f"/v2/models/{MODEL}/generate", good.body, good.headers, 400, "not JSON"),
            (f"/v2/models/{MODEL}/generate", b'{"text_input": "a"}', {}, 400, "answers with arrays"),
            (f"/v2/models/{MODEL}/explain", good.body, good.headers, 404, "nothing is served at"),
            ("/v2/models/", good.body, good.headers, 404, "nothing is served at"),
            ("/v3", good.body, good.headers, 404, "nothing is served at"),
        ]
        for target, body, headers, expected, message in cases:
            status, received, answer = await agent.call("POST", target, body, {**headers, **extra})
            assert (status, received["Content-Type"]) in ((expected, codec.JSON), (405, codec.JSON)), (target, answer)
            if status != 405:
                assert message in json.loads(answer)["error"], target
                assert received["x-penstock-code"]
        status, _, error = await agent.infer(np.zeros((5, 3), "f4"), slow=slow)
        assert (status, "5 rows" in error["error"]) == (400, True)
        status, _, error = await agent.infer(np.zeros((1, 3), "f8"), slow=slow)
        assert (status, "FP64" in error["error"]) == (400, True)
        assert agent.path.hosted.counts.requests == 0


@BOTH_WAYS
async def test_the_earliest_time_limit_wins(short_dir: Path, slow: bool) -> None:
    async with served(short_dir) as agent:
        agent.cloud.gate.clear()
        headers = {"x-request-timeout-ms": "80"}
        status, _, answer = await agent.infer(rows(UNSURE), slow=slow, headers=headers, timeout=60_000_000)
        assert (status, answer.parameters["reason"]) == (200, "deadline")
        assert agent.cloud.remaining_s[0] is not None
        assert agent.cloud.remaining_s[0] < 0.08
        status, _, answer = await agent.infer(
            rows(UNSURE), slow=slow, headers={"x-request-timeout-ms": "60000"}, timeout=80_000
        )
        assert (status, answer.parameters["reason"]) == (200, "deadline")


@BOTH_WAYS
async def test_id_trace_and_priority_go_up_with_the_rows(short_dir: Path, slow: bool) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    async with served(short_dir) as agent:
        headers = {"x-request-id": "r-1", "traceparent": trace}
        _, received, _ = await agent.infer(rows(UNSURE), slow=slow, headers=headers, priority=3)
        assert received["x-request-id"] == "r-1"
        assert (agent.cloud.metadata[0]["x-request-id"], agent.cloud.metadata[0]["traceparent"]) == ("r-1", trace)
        assert agent.cloud.calls[0].parameters["priority"].int64_param == 3
        await agent.infer(rows(UNSURE), slow=slow, headers={"traceparent": "00-none"})
        assert not {"x-request-id", "traceparent"} & agent.cloud.metadata[1].keys()


async def test_a_full_queue_is_refused_before_the_body_is_decoded(short_dir: Path) -> None:
    async with served(short_dir, limits=LimitsSettings(max_queue_rows=2)) as agent:
        agent.cloud.gate.clear()
        waiting = asyncio.create_task(agent.infer(rows(UNSURE, UNSURE)))
        await until("the request is under way", lambda: len(agent.cloud.calls) == 1)
        for headers in ({}, {"TE": "trailers"}):
            status, received, _ = await agent.call("POST", INFER, b"not even JSON", headers)
            assert status == 503
            assert received["x-penstock-reason"] == "rejected-saturated"
            assert int(received["Retry-After"]) >= 1
            assert int(received["retry-after-ms"]) < 1000
        agent.cloud.gate.set()
        assert (await waiting)[0] == 200


@pytest.mark.parametrize("is_announced", [True, False])
async def test_an_oversized_body_is_refused_while_it_is_read(short_dir: Path, is_announced: bool) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    async with served(short_dir, limits=LimitsSettings(max_body_bytes=16 * 1024)) as agent:
        body: Any = b"x" * 65536 if is_announced else endless()
        status, headers, answer = await agent.call("POST", INFER, body)
        assert status == 413
        assert headers["x-penstock-limit-bytes"] == "16384"
        assert "16384" in json.loads(answer)["error"]
        assert (agent.path.dataplane.load.requests, agent.path.dataplane.load.body_bytes) == (0, 0)
        assert (await agent.infer(rows(SURE)))[0] == 200


async def test_a_body_larger_than_the_express_lane_takes_is_served_all_the_same(short_dir: Path) -> None:
    async with served(short_dir, limits=LimitsSettings(max_rows_per_request=40_000, max_queue_rows=40_000)) as agent:
        x = np.repeat(rows(SURE), 30_000, axis=0)
        status, _, answer = await agent.infer(x)
        assert status == 200
        np.testing.assert_array_equal(answer.outputs["logits"], x)


@BOTH_WAYS
async def test_a_client_that_disconnects_takes_its_rows_out_of_every_queue(short_dir: Path, slow: bool) -> None:
    async with served(short_dir) as agent:
        agent.cloud.gate.clear()
        task = asyncio.create_task(agent.infer(rows(UNSURE), slow=slow))
        await until("the request is under way", lambda: len(agent.cloud.calls) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until("the cloud sees it", lambda: agent.cloud.cancelled == 1)
        await until("nothing is in flight", lambda: agent.path.dataplane.load.rows == 0)
        assert agent.path.hosted.counts.failed == 1
        assert agent.path.dataplane.in_flight.answers == {"cancelled": 1}


async def test_compressed_and_chunked_bodies_are_read(short_dir: Path) -> None:
    import gzip

    document = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": SURE}]}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        yield document[:10]
        yield document[10:]

    async with served(short_dir) as agent:
        status, _, _ = await agent.call("POST", INFER, gzip.compress(document), {"Content-Encoding": "gzip"})
        assert status == 200
        chunked: Any = chunks()
        assert (await agent.call("POST", INFER, chunked))[0] == 200
        status, _, body = await agent.call("POST", INFER, b"not gzip", {"Content-Encoding": "gzip"})
        assert status == 400, body


# --- everything else ----------------------------------------------------------------------------------------------


async def test_health_metadata_index_and_status(short_dir: Path) -> None:
    async with served(short_dir, is_certified=False) as agent:
        assert (await agent.call("GET", "/v2/health/live"))[0] == 200
        assert (await agent.call("GET", "/v2/health/ready"))[0] == 200
        for target in ("/v2", "/v2/"):
            status, _, body = await agent.call("GET", target)
            assert (status, json.loads(body)["extensions"]) == (200, [*EXTENSIONS, "generate"])
        status, _, body = await agent.call("GET", f"/v2/models/{MODEL}")
        assert json.loads(body) == {
            "name": MODEL,
            "versions": ["v1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
        }
        assert (await agent.call("GET", f"/v2/models/{MODEL}/ready"))[0] == 200
        assert (await agent.call("GET", "/v2/models/cat/ready"))[0] == 404
        _, _, body = await agent.call("POST", "/v2/repository/index")
        assert json.loads(body) == [
            {"name": MODEL, "version": "v1", "state": "READY", "reason": "the artifact has no certificate"}
        ]
        assert json.loads((await agent.call("GET", "/status"))[2]) == {"device_id": "d1"}
        assert (await agent.call("HEAD", "/v2/health/live"))[0] == 200


async def test_a_wrong_method_names_the_right_ones(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        for method, target, allowed in (
            ("GET", INFER, "POST"),
            ("POST", f"/v2/models/{MODEL}", "GET, HEAD"),
            ("DELETE", "/v2", "GET, HEAD"),
            ("PUT", "/v2/repository/index", "POST, GET, HEAD"),
        ):
            status, headers, body = await agent.call(method, target)
            assert (status, headers["Allow"]) == (405, allowed)
            assert "use" in json.loads(body)["error"]


async def test_an_agent_without_models_is_alive_but_not_ready(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        await agent.path.hosting.retire(agent.path.hosted)
        assert (await agent.call("GET", "/v2/health/live"))[0] == 200
        assert (await agent.call("GET", "/v2/health/ready"))[0] == 503
        status, _, error = await agent.infer(rows(SURE))
        assert (status, "no model yet" in error["error"]) == (404, True)


async def test_metrics_account_for_every_row(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        await agent.infer(rows(SURE, SURE, UNSURE))
        await agent.infer(np.zeros((1, 9), "f4"))
        status, headers, body = await agent.call("GET", "/metrics")
        assert (status, headers["Content-Type"].startswith("text/plain")) == (200, True)
        lines = body.decode().splitlines()
        for expected in (
            'penstock_agent_rows_total{model="toy",outcome="kept",version="v1"} 2.0',
            'penstock_agent_rows_total{model="toy",outcome="escalated",version="v1"} 1.0',
            'penstock_agent_responses_total{status="200"} 1.0',
            'penstock_agent_responses_total{status="400"} 1.0',
            'penstock_agent_request_duration_seconds_bucket{le="+Inf"} 2.0',
            "penstock_agent_request_duration_seconds_count 2.0",
            'penstock_agent_cascade_mode{mode="cascade",model="toy",version="v1"} 1.0',
            "penstock_agent_escalation_calls_total 1.0",
            "penstock_agent_escalation_rows_total 1.0",
            "penstock_agent_cloud_reachable 1.0",
            "penstock_agent_rows_in_flight 0.0",
        ):
            assert expected in lines, expected


def _with_triton(address: str) -> None:
    client = triton.InferenceServerClient(address)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert not client.is_model_ready("cat")
        assert client.get_server_metadata()["name"] == "penstock-agent"
        assert client.get_model_metadata(MODEL)["platform"] == "onnxruntime_onnx"
        assert [entry["name"] for entry in client.get_model_repository_index()] == [MODEL]
        for is_binary in (True, False):
            given = triton.InferInput("x", [2, 3], "FP32")
            given.set_data_from_numpy(rows(SURE, UNSURE), binary_data=is_binary)
            wanted = [triton.InferRequestedOutput("logits", binary_data=is_binary)]
            for outputs in (wanted, None):
                answer = client.infer(MODEL, [given], outputs=outputs, request_id="7", timeout=5_000_000)
                expected = rows(SURE, UNSURE)
                expected[1] += FROM_CLOUD
                np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-6)
                response = answer.get_response()
                assert (response["id"], response["parameters"]["served_by"]) == ("7", "mixed")
        with pytest.raises(InferenceServerException, match="no model named 'cat'"):
            client.infer("cat", [given])
    finally:
        client.close()


async def test_nvidias_client_works_unmodified_over_tcp(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        await asyncio.to_thread(_with_triton, agent.tcp_address)


# --- sockets ------------------------------------------------------------------------------------------------------


async def test_the_socket_is_for_owner_and_group_and_goes_with_the_agent(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o660
    assert not agent.socket.exists()


async def test_a_socket_left_behind_by_a_killed_agent_is_replaced(short_dir: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(short_dir / "a.sock"))
    async with served(short_dir) as agent:
        assert (await agent.infer(rows(SURE)))[0] == 200


async def test_what_cannot_be_listened_on_is_named(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        other = http_server(*planes_of(agent.path.dataplane), dict, lambda model: None, body_s=10.0)
        with pytest.raises(ConfigError, match="another agent serves"):
            await other.listen_unix(agent.socket)
        with pytest.raises(ConfigError, match=f"{agent.tcp_address}.*in use.*--tcp"):
            await other.listen_tcp(*parse_address(agent.tcp_address, setting="tcp"), setting="--tcp")
        for address in ("localhost", "127.0.0.1:99999", ":1", "host:port"):
            with pytest.raises(ConfigError, match="tcp: .* is not host:port"):
                parse_address(address, setting="tcp")
        (short_dir / "file").write_text("")
        with pytest.raises(ConfigError, match="not a socket"):
            await other.listen_unix(short_dir / "file")
        with pytest.raises(StorageError, match="cannot create"):
            await other.listen_unix(short_dir / "file" / "a.sock")
        assert (await agent.infer(rows(SURE)))[0] == 200
        await other.stop(0)
        assert agent.socket.exists()


async def test_another_agents_socket_is_not_removed(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        os.unlink(agent.socket)
        agent.socket.write_text("somebody else's")
    assert agent.socket.exists()


async def test_a_stopping_agent_refuses_new_requests_and_finishes_those_it_has(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        agent.cloud.gate.clear()
        waiting = asyncio.create_task(agent.infer(rows(UNSURE)))
        await until("the request is under way", lambda: len(agent.cloud.calls) == 1)
        assert (await agent.call("GET", "/v2/health/live"))[0] == 200
        stopping = asyncio.create_task(agent.stop(5.0))
        await asyncio.sleep(0)
        assert (await agent.call("GET", "/v2/health/ready"))[0] == 503
        for slow in (False, True):
            status, headers, _ = await agent.infer(rows(SURE), slow=slow)
            assert (status, "Retry-After" in headers) == (503, True)
        agent.cloud.gate.set()
        status, _, answer = await waiting
        assert (status, answer.parameters["reason"]) == (200, "escalated")
        await stopping
        with pytest.raises(aiohttp.ClientError):
            await agent.call("GET", "/v2/health/live")


async def test_an_agent_tells_what_it_is_which_models_it_has_and_what_they_answered(short_dir: Path) -> None:
    async with served(short_dir) as agent:
        await agent.infer(rows(SURE, UNSURE))
        told = json.loads((await agent.call("GET", "/"))[2])
        assert (told["name"], told["ready"], told["paths"]["status"]) == ("penstock-agent", True, "/status")
        (model,) = json.loads((await agent.call("GET", "/v2/models"))[2])["models"]
        assert (model["name"], model["state"]) == (MODEL, "READY")
        for path in ("/v2/models/stats", f"/v2/models/{MODEL}/stats"):
            (stats,) = json.loads((await agent.call("GET", path))[2])["model_stats"]
            assert (stats["name"], stats["inference_count"], stats["rows"]["kept"]) == (MODEL, 2, 1)


async def test_an_agent_answers_the_extensions_that_cost_it_nothing(short_dir: Path) -> None:
    output = {"name": "logits", "parameters": {"classification": 1}}
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": SURE}
    async with served(short_dir) as agent:

        async def ask(target: str, document: Any = None, **headers: str) -> Any:
            method = "GET" if document is None else "POST"
            body = document if isinstance(document, bytes) or document is None else json.dumps(document).encode()
            status, received, answer = await agent.call(method, target, body, headers)
            length = int(received.get(codec.HEADER_LENGTH, len(answer)))
            return status, json.loads(answer[:length])

        status, answer = await ask(INFER, {"inputs": [x], "outputs": [output]})
        assert (status, answer["outputs"][0]["data"][0]) == (200, "9.000000:0")
        status, answer = await ask(INFER, rows(SURE).tobytes(), **{codec.HEADER_LENGTH: "0"})
        assert (status, answer["outputs"][0]["shape"]) == (200, [1, 3])
        status, answer = await ask(f"/v1/models/{MODEL}:predict", {"instances": [SURE]})
        assert (status, answer["predictions"], answer["parameters"]["served_by"]) == (200, [SURE], "edge")
        status, answer = await ask(f"/v2/models/{MODEL}/config")
        assert (status, answer["name"], answer["backend"]) == (200, MODEL, "onnxruntime")
        elsewhere = {**x, "parameters": {"shared_memory_region": "mine", "shared_memory_byte_size": 12}}
        del elsewhere["data"]
        status, answer = await ask(INFER, {"inputs": [elsewhere]})
        assert (status, "shared memory is not served" in answer["error"]) == (400, True)
        status, answer = await ask("/openapi.json")
        assert (status, answer["openapi"], "/status" in answer["paths"]) == (200, "3.1.0", True)
        assert [f"{row.method} {row.pattern}" for row in agent.http.routes if row.says is None] == []
