"""The core over real sockets, HTTP: what each request gets back, bad ones above all."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from cloud_core.app import Core
from penstock.errors import ConfigError, StorageError
from penstock.rest import codec
from penstock.wire.inference import EXTENSIONS, InferRequest
from tests.cloud_core.rig import core_settings, soon, start_core
from tests.penstock.hosting.rig import rows, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
INFER = "/v2/models/mlp/infer"
Reply = tuple[int, dict[str, str], bytes]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def core(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Core]:
    async with await start_core(tmp_path_factory.mktemp("http"), http={"max_body_bytes": 100_000}) as running:
        yield running


@pytest.fixture
def ask(core: Core) -> Callable[..., Any]:
    return asking(core)


def asking(core: Core) -> Callable[..., Any]:
    def call(method: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", core.http_port, timeout=20)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    async def ask(method: str, path: str, body: Any = None, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(call, method, path, body, named)

    return ask


def json_body(x: Any = None, **more: Any) -> bytes:
    x = rows(1) if x is None else x
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def binary(x: Any) -> tuple[bytes, dict[str, str]]:
    encoded = codec.encode_request(InferRequest(model="mlp", inputs={"x": x}))
    return encoded.body, {codec.HEADER_LENGTH: str(encoded.header_length)}


async def test_json_and_binary_answers_agree_and_each_comes_as_it_was_asked(ask: Any) -> None:
    x = rows(1, -2, 3)
    status, headers, body = await ask("POST", INFER, json_body(x, id="r7"))
    assert (status, headers["content-type"]) == (200, "application/json")
    document = json.loads(body)
    assert (document["id"], document["model_version"]) == ("r7", "v1")
    assert document["parameters"]["variant"].startswith("sha256:")
    data, named = binary(x)
    status, headers, body = await ask("POST", "/v2/models/mlp/versions/v1/infer", data, **named)
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    answer = codec.decode_response(body, header_length=int(headers["inference-header-content-length"]))
    np.testing.assert_allclose(answer.outputs["logits"].ravel(), document["outputs"][0]["data"], rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, 400, "not a valid request"),
        (b"", {}, 400, "not a valid request"),
        (b"\xff\xfe", {}, 400, "not a valid request"),
        (json_body(np.zeros((1, 5), np.float32)), {}, 400, "expected [-1, 4]"),
        (json_body(), {"Inference_Header_Content_Length": "999999"}, 400, "does not fit"),
        (json_body(parameters={"priority": "high"}), {}, 400, "priority"),
        (b"not gzip", {"Content_Encoding": "gzip"}, 400, "body"),
    ],
)
async def test_bad_requests_get_a_status_and_a_reason_as_json(
    ask: Any, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    got, answer_headers, answer = await ask("POST", INFER, body, **headers)
    assert got == status, answer
    assert answer_headers["content-type"] == "application/json"
    assert says in json.loads(answer)["error"]


async def test_truncated_raw_bytes_are_refused(ask: Any) -> None:
    data, named = binary(rows(1, 2))
    status, _, answer = await ask("POST", INFER, data[:-1], **named)
    assert status == 400
    assert "binary_data_size" in json.loads(answer)["error"]


async def test_compressed_bodies_are_read(ask: Any) -> None:
    status, _, _ = await ask("POST", INFER, gzip.compress(json_body()), Content_Encoding="gzip")
    assert status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200), ("GET", "/v2/", 200), ("HEAD", "/v2/", 200), ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200), ("GET", "/v2/models/mlp", 200), ("GET", "/v2/models/mlp/versions/v1", 200),
        ("GET", "/v2/models/mlp/ready", 200), ("GET", "/v2/models/mlp/versions/v1/ready", 200),
        ("POST", "/v2/repository/index", 200), ("GET", "/metrics", 200), ("GET", "/v2/_catalog", 200),
        ("GET", "/v2/mlp/tags/list", 200), ("GET", "/v2/mlp/manifests/v1", 200),
        ("GET", "/v2/models/ghost", 404), ("GET", "/v2/models/ghost/ready", 404),
        ("GET", "/v2/models/mlp/versions/v9", 404), ("POST", "/v2/models/ghost/infer", 404),
        ("GET", "/", 200), ("GET", "/v3", 404), ("GET", "/v2/models/ghost/config", 404),
        ("GET", "/v2/ghost/tags/list", 404), ("GET", INFER, 405), ("POST", "/v2", 405), ("PATCH", "/metrics", 405),
        ("DELETE", "/v2/models/mlp", 405), ("GET", "/v2/repository/index", 200),
    ],
)  # fmt: skip
async def test_every_address(ask: Any, method: str, path: str, status: int) -> None:
    got, headers, body = await ask(method, path)
    assert got == status, body
    if status in (404, 405) and "manifests" not in path and "tags" not in path:
        assert "error" in json.loads(body)
    if status == 405:
        assert headers["allow"]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://x/v2/models/mlp?a=b HTTP/1.1", 200),  # the absolute form, which servers must take
        ("GET /v2/models/m%6cp HTTP/1.1", 200),
        ("GET /v2/models/mlp#part HTTP/1.1", 200),
        ("GET /v2/models/../models/mlp HTTP/1.1", 404),
        ("GET /v2/models/m%2Flp HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 404),
    ],
)
async def test_every_form_of_a_target_is_read(core: Core, line: str, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
    writer.write(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert f" {status} ".encode() in await reader.readline()
    writer.close()


async def test_unknown_models_name_those_that_exist(ask: Any) -> None:
    _, _, body = await ask("POST", "/v2/models/ghost/infer", json_body())
    assert "mlp" in json.loads(body)["error"]


async def test_both_protocols_are_welcome_at_v2(ask: Any) -> None:
    _, headers, body = await ask("GET", "/v2/")
    assert headers["docker-distribution-api-version"] == "registry/2.0"
    assert json.loads(body)["extensions"] == [*EXTENSIONS, "model_repository", "generate", "logging"]


async def test_the_index_lists_states_and_can_be_narrowed_to_what_is_ready(ask: Any) -> None:
    _, _, body = await ask("POST", "/v2/repository/index", b'{"ready": true}')
    facts = {"state": "READY", "reason": "", "is_default": True, "is_certified": False}
    assert json.loads(body) == [{"name": "mlp", "version": "v1", **facts}]
    status, _, _ = await ask("POST", "/v2/repository/index", b'{"ready": "perhaps"}')
    assert status == 400


async def test_a_body_that_is_too_large_is_refused_from_its_announcement(core: Core) -> None:
    status, _, headers = await raw(core, b"Content-Length: 100001\r\n\r\n")
    assert (status, headers[b"x-penstock-limit-bytes"]) == (413, b"100000")


async def test_a_chunked_body_is_refused_when_it_grows_too_large(core: Core) -> None:
    chunk = b"%x\r\n%s\r\n" % (50_000, b" " * 50_000)
    status, sent, _ = await raw(core, b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"1\r\n \r\n0\r\n\r\n")
    assert status == 413
    assert sent


async def test_a_decompressed_body_counts_by_its_real_size(ask: Any) -> None:
    status, _, _ = await ask("POST", INFER, gzip.compress(b" " * 10_000_000), Content_Encoding="gzip")
    assert status == 413


async def test_who_expects_to_be_asked_is_asked_only_after_admission(core: Core) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
    body = json_body()
    head = "POST {} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n"
    writer.write(head.format(INFER, len(body)).encode())
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    writer.write(body)
    assert await reader.readline() == b"\r\n"
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
    writer.write(head.format("/v2/models/ghost/infer", 1000).encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()


async def test_a_client_that_goes_away_takes_its_work_with_it(tmp_path: Path) -> None:
    async with await start_core(tmp_path, serving={"max_delay_s": 20.0}) as core:
        (served,) = core.plane.served()
        _, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
        body = json_body()
        writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await soon(lambda: served.queues[0].queue_rows > 0)
        writer.transport.abort()
        await soon(lambda: served.queues[0].queue_rows == 0)
        assert core.plane.measures.routes["mlp", "v1"].requests == {"cancelled": 1}


async def test_a_body_that_never_arrives_does_not_hold_its_place_for_ever(core: Core) -> None:
    status, sent, _ = await raw(core, b"x-request-timeout-ms: 50\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{")
    assert status == 504
    assert sent
    assert core.plane.measures.inflight == 0


async def test_a_full_queue_is_503_or_429_by_setting_with_hints(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "serving": {"max_delay_s": 20.0, "max_queue_rows": 2}, "http": {"queue_full_status": 429}
    }  # fmt: skip
    async with await start_core(tmp_path, **changes) as core:
        ask = asking(core)
        (served,) = core.plane.served()
        waiting = asyncio.create_task(ask("POST", INFER, json_body(rows(1, 2))))
        await soon(lambda: served.queues[0].queue_rows == 2)
        status, headers, _ = await ask("POST", INFER, json_body())
        assert (status, headers["x-penstock-reason"]) == (429, "rejected-saturated")
        assert int(headers["retry-after"]) >= 1
        await core.plane.controller.close(0.0)
        assert (await waiting)[0] == 503


async def test_a_body_that_does_not_fit_beside_those_in_flight_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with await start_core(tmp_path, serving={"max_inflight_bytes": 100_000}) as core:
        ask = asking(core)
        _, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"
        writer.write(head.encode())  # and no body: it is larger than the limit, and alone
        await soon(lambda: core.plane.measures.inflight_bytes == 300_000)
        status, headers, body = await ask("POST", INFER, json_body())
        assert (status, headers["x-penstock-code"], headers["x-penstock-reason"]) == (
            503, "memory-full", "rejected-memory",
        )  # fmt: skip
        assert int(headers["retry-after"]) >= 1
        assert "serving.max_inflight_bytes" in json.loads(body)["error"]
        assert core.plane.measures.refused == {"memory-full": 1}
        _, _, metrics = await ask("GET", "/metrics")
        assert b'penstock_refused_total{code="memory-full"} 1.0' in metrics
        assert b"penstock_inflight_bytes 300000.0" in metrics
        writer.close()
        await soon(lambda: core.plane.measures.inflight_bytes == 0)
        for compressed in (False, True):  # how large the second one is is known when it was read
            sent = gzip.compress(json_body()) if compressed else json_body()
            encoding = {"Content_Encoding": "gzip"} if compressed else {}
            assert (await ask("POST", INFER, sent, **encoding))[0] == 200
        assert core.plane.measures.inflight_bytes == 0


async def test_tenants_are_asked_for_their_token_everywhere_but_at_the_probes(tmp_path: Path) -> None:
    tenants = [{"name": "shop", "token": "shop-secret", "rate_rows_per_s": 1, "burst_rows": 2}]
    async with await start_core(tmp_path, tenants=tenants) as core:
        ask = asking(core)
        for method, path in (
            ("GET", "/v2"), ("GET", "/v2/models/mlp"), ("POST", INFER), ("POST", "/v2/models/ghost/infer"),
            ("GET", "/metrics"), ("POST", "/v2/repository/index"), ("GET", "/v2/_catalog"),
            ("POST", "/v2/a/blobs/uploads/"),
        ):  # fmt: skip
            status, headers, body = await ask(method, path, Authorization="Bearer wrong-secret")
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), path
            assert b"mlp" not in body
        for probe in ("live", "ready"):
            assert (await ask("GET", f"/v2/health/{probe}"))[0] == 200
        known = {"Authorization": "Bearer shop-secret"}
        assert (await ask("POST", INFER, json_body(rows(1, 2)), **known))[0] == 200
        status, headers, _ = await ask("POST", INFER, json_body(rows(1, 2)), **known)
        assert (status, headers["x-ratelimit-limit"], headers["x-penstock-reason"]) == (429, "2", "rejected-quota")
        assert (await ask("POST", INFER, json_body(rows(1, 2, 3)), **known))[0] == 400


async def test_draining_refuses_new_work_and_finishes_what_was_admitted(tmp_path: Path) -> None:
    core = await start_core(tmp_path, serving={"max_delay_s": 0.3, "drain_s": 20.0})
    ask = asking(core)
    (served,) = core.plane.served()
    admitted = asyncio.create_task(ask("POST", INFER, json_body()))
    await soon(lambda: served.queues[0].queue_rows > 0)
    stopping = asyncio.create_task(core.stop())
    await until(lambda: core.plane.is_draining)
    live, ready, infer, upload = await asyncio.gather(
        ask("GET", "/v2/health/live"),
        ask("GET", "/v2/health/ready"),
        ask("POST", INFER, json_body()),
        ask("POST", "/v2/other/blobs/uploads/"),
    )
    assert (live[0], ready[0], infer[0], upload[0]) == (200, 503, 503, 503)
    assert "retry-after" in infer[1]
    assert (await admitted)[0] == 200
    assert await stopping
    assert not (tmp_path / "core" / "endpoints.json").exists()


async def test_metrics_count_what_happened_and_parse(tmp_path: Path) -> None:
    async with await start_core(tmp_path) as core:
        await check_metrics(asking(core))


async def check_metrics(ask: Any) -> None:
    await ask("POST", INFER, json_body(rows(1, 2, 3)))
    await ask("POST", INFER, b"{")
    await ask("POST", "/v2/models/ghost/infer", json_body())
    _, headers, body = await ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain")
    text = body.decode()
    for line in (
        'penstock_requests_total{code="ok",model="mlp",version="v1"} 1.0',
        'penstock_requests_total{code="invalid-input",model="mlp",version="v1"} 1.0',
        'penstock_refused_total{code="not-found"} 1.0',
        'penstock_rows_total{model="mlp",version="v1"} 3.0',
        'penstock_request_duration_seconds_count{model="mlp",version="v1"} 2.0',
        "penstock_inflight_requests 0.0",
        "penstock_ready 1.0",
    ):
        assert line in text, text
    assert "ghost" not in text
    (batches,) = [line for line in text.splitlines() if line.startswith("penstock_batch_rows_count")]
    assert batches.endswith(" 1.0")
    openmetrics = await ask("GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics[2].rstrip().endswith(b"# EOF")


async def test_a_listener_says_what_is_in_its_way(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"{port}.*in use.*--http-port"):
            await Core.start(core_settings(tmp_path / "a", http={"port": port}))
        with pytest.raises(ConfigError, match=rf"{port}.*in use.*--grpc-port"):
            await Core.start(core_settings(tmp_path / "a", grpc={"port": port}))
    async with await Core.start(core_settings(tmp_path / "a")):
        with pytest.raises(StorageError, match="in use by another core"):
            await Core.start(core_settings(tmp_path / "a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file is where"):
        await Core.start(core_settings(tmp_path / "file"))


async def test_a_restart_serves_what_was_pushed_before(tmp_path: Path) -> None:
    core = await start_core(tmp_path)
    assert json.loads((tmp_path / "core" / "endpoints.json").read_text())["http"].endswith(f":{core.http_port}")
    await core.stop()
    async with await Core.start(core_settings(tmp_path / "core")) as again:
        status, _, _ = await asking(again)("POST", INFER, json_body())
        assert status == 200  # at once: it was loaded before it said that it is ready


async def test_a_restart_serves_where_the_file_that_says_where_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await start_core(tmp_path)).stop()
    (tmp_path / "core" / "endpoints.json" / "in the way").mkdir(parents=True)  # refused for root too, as a full disk is
    async with await Core.start(core_settings(tmp_path / "core")) as again:
        status, _, _ = await asking(again)("POST", INFER, json_body())
        assert status == 200
    assert "endpoints not written" in caplog.text


async def raw(core: Core, rest: bytes) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Send a head and part of a body by hand; status, status line and headers of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", core.http_port)
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode() + rest)
    async with asyncio.timeout(20):
        line = await reader.readline()
        headers = {}
        while (field := (await reader.readline()).strip()) != b"":
            name, _, value = field.partition(b": ")
            headers[name.lower()] = value
    writer.close()
    return int(line.split()[1]), line, headers


# --- looking around -------------------------------------------------------------------------------------------------


async def test_the_root_says_what_answers_here_and_where_to_go_on(ask: Callable[..., Any]) -> None:
    status, _, body = await ask("GET", "/")
    told = json.loads(body)
    assert (status, told["name"], told["ready"]) == (200, "penstock", True)
    for name in ("ready", "live", "models", "statistics", "openai", "metrics", "registry"):
        assert (await ask("GET", told["paths"][name]))[0] == 200, name


async def test_models_and_their_statistics_are_listed(ask: Callable[..., Any]) -> None:
    status, _, body = await ask("GET", "/v2/models")
    models = json.loads(body)["models"]
    assert status == 200
    assert json.loads((await ask("POST", "/v2/repository/index"))[2]) == models

    async def stats(path: str = "/v2/models/mlp/stats") -> Any:
        status, _, body = await ask("GET", path)
        assert status == 200, body
        return json.loads(body)["model_stats"]

    (before,) = [one for one in await stats() if one["version"] == "v1"]
    assert (await ask("POST", INFER, json_body(rows(1, 2, 3))))[0] == 200
    assert (await ask("POST", INFER, json_body(rows(1)[:, :1])))[0] == 400
    (after,) = await stats("/v2/models/mlp/versions/v1/stats")
    assert after["inference_count"] - before["inference_count"] == 3
    for name in ("success", "fail"):
        assert after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] == 1
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    assert [one["name"] for one in await stats("/v2/models/stats")] == [one["name"] for one in models]
    assert (await ask("GET", "/v2/models/none/stats"))[0] == 404
