"""Clients that others wrote work unmodified: NVIDIA's tritonclient, grpcio's health and reflection clients, curl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from tests.processes import AgentProcess, CoreProcess, DigitsBuild, digits_served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent


@pytest.fixture(scope="module")
def agent(digits_build: DigitsBuild) -> Iterator[AgentProcess]:
    with digits_served(digits_build, arguments=("--tcp", "127.0.0.1:0")) as agent:
        yield agent


@pytest.fixture(scope="module")
def core(agent: AgentProcess) -> CoreProcess:
    return agent.core


def test_tritonclient_over_grpc(core: CoreProcess, digits_build: DigitsBuild) -> None:
    import tritonclient.grpc as triton

    x, y = digits_build.test_split()
    with triton.InferenceServerClient(core.grpc_address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        metadata = client.get_model_metadata("digits")
        assert [tensor.name for tensor in metadata.inputs] == ["x"]
        given = triton.InferInput("x", [64, 64], "FP32")
        given.set_data_from_numpy(x[:64])
        wanted = triton.InferRequestedOutput("logits")
        answer = client.infer("digits", [given], outputs=[wanted], request_id="r1", client_timeout=10)
        assert answer.get_response().id == "r1"
        assert np.mean(answer.as_numpy("logits").argmax(axis=1) == y[:64]) > 0.9


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_over_http(core: CoreProcess, digits_build: DigitsBuild, binary: bool) -> None:
    import tritonclient.http as triton

    _check_http(triton, core.http_address, digits_build, binary)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_over_http_against_an_agent(agent: AgentProcess, digits_build: DigitsBuild, binary: bool) -> None:
    import tritonclient.http as triton

    _check_http(triton, agent.endpoints["tcp"], digits_build, binary)


def _check_http(triton: object, address: str, digits_build: DigitsBuild, binary: bool) -> None:
    x, y = digits_build.test_split()
    client = triton.InferenceServerClient(address, network_timeout=10.0)  # type: ignore[attr-defined]
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        assert [tensor["name"] for tensor in client.get_model_metadata("digits")["inputs"]] == ["x"]
        given = triton.InferInput("x", [64, 64], "FP32")  # type: ignore[attr-defined]
        given.set_data_from_numpy(x[:64], binary_data=binary)
        wanted = triton.InferRequestedOutput("logits", binary_data=binary)  # type: ignore[attr-defined]
        answer = client.infer("digits", [given], outputs=[wanted], request_id="r1")
        assert answer.get_response()["id"] == "r1"
        assert np.mean(answer.as_numpy("logits").argmax(axis=1) == y[:64]) > 0.85
    finally:
        client.close()


@pytest.mark.parametrize("first", ["penstock", "tritonclient"])
def test_penstock_and_tritonclient_in_one_process_in_either_order(first: str) -> None:
    ours = "from penstock.rpc.pb import oip_pb2, fleet_pb2, oip_pb2_grpc, fleet_pb2_grpc; from penstock import Client"
    theirs = "import tritonclient.grpc, tritonclient.http"
    order = [ours, theirs] if first == "penstock" else [theirs, ours]
    subprocess.run([sys.executable, "-c", "; ".join(order)], check=True, timeout=60)


def test_grpc_health_and_reflection(core: CoreProcess) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(core.grpc_address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_over_the_agents_socket(agent: AgentProcess, digits_build: DigitsBuild) -> None:
    x, _ = digits_build.test_split()
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": x[0].tolist()}]}
    command = ["curl", "--silent", "--fail-with-body", "--max-time", "10", "--unix-socket", str(agent.socket)]
    done = subprocess.run(
        [*command, "--json", json.dumps(body), "http://localhost/v2/models/digits/infer"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    answer = json.loads(done.stdout)
    assert answer["model_name"] == "digits"
    assert answer["parameters"]["served_by"] in ("edge", "cloud")
    assert answer["parameters"]["certificate"].startswith("sha256:")
