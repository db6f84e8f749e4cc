"""A model whose answers are cached, as clients of both transports meet it, beside one whose are not."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from cloud_core.app import Core
from penstock.registry.transfer import RegistryClient, push
from tests import waiting
from tests.cloud_core.rig import core_in_a_thread, onnx_layout
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    directory = tmp_path_factory.mktemp("cache")
    models = {"mlp": {"cache_bytes": 1_000_000}}
    with core_in_a_thread(directory, serving={"models": models, "placement": "inline"}) as running:
        with RegistryClient(f"http://127.0.0.1:{running.http_port}") as client:
            push(client, onnx_layout(directory, "v1", model="plain"))
        waiting.wait_until("the model", lambda: running.plane.model_state("plain").state == "READY")
        yield running


@pytest.fixture(scope="module", params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, core: Core) -> Iterator[Any]:
    triton: Any = triton_http if request.param == "http" else triton_grpc
    port = core.http_port if request.param == "http" else core.grpc_port

    def infer(value: float, model: str = "mlp") -> tuple[Any, str]:
        x = rows(value)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        answer = client.infer(model, [given])
        said = answer.get_response()
        if request.param == "http":
            return answer.as_numpy("logits"), said["parameters"].get("cache", "")
        return answer.as_numpy("logits"), said.parameters["cache"].string_param

    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield infer, {"http": 1.0, "grpc": 2.0}[request.param]


def metric(core: Core, name: str, *labels: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{core.http_port}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith(name) and all(one in line for one in labels)]
    return sum(values)


def test_an_answer_says_that_it_was_given_before_and_is_the_same(core: Core, ask: Any) -> None:
    infer, value = ask
    runs, hits = (
        metric(core, "penstock_batch_rows_count", 'model="mlp"'),
        metric(core, "penstock_response_cache_requests_total", 'model="mlp"', 'outcome="hit"'),
    )
    first, source = infer(value)
    assert source == ""
    runs_after = metric(core, "penstock_batch_rows_count", 'model="mlp"')
    again, source_again = infer(value)
    assert source_again == "hit"
    np.testing.assert_array_equal(first, again)
    assert runs < runs_after == metric(core, "penstock_batch_rows_count", 'model="mlp"')
    assert metric(core, "penstock_response_cache_requests_total", 'model="mlp"', 'outcome="hit"') == hits + 1
    assert metric(core, "penstock_response_cache_bytes", 'model="mlp"') > 0


def test_statistics_tell_hits_and_misses_where_tritons_clients_look_for_them(core: Core, ask: Any) -> None:
    def counts() -> tuple[int, int]:
        with triton_http.InferenceServerClient(f"127.0.0.1:{core.http_port}") as client:
            (one,) = client.get_inference_statistics("mlp")["model_stats"]
        stages = one["inference_stats"]
        return stages["cache_hit"]["count"], stages["cache_miss"]["count"]

    infer, value = ask
    hits, misses = counts()
    for _ in range(3):
        infer(value + 100)
    assert counts() == (hits + 2, misses + 1)


def test_a_model_of_which_nothing_was_said_is_asked_each_time(core: Core, ask: Any) -> None:
    infer, value = ask
    assert [infer(value, model="plain")[1] for _ in range(2)] == ["", ""]
    assert metric(core, "penstock_response_cache", 'model="plain"') == 0
