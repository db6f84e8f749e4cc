"""Triton's extensions, as Triton's own clients ask for them over both transports; one model is called ``stats``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict

from cloud_core.app import Core
from penstock.registry.transfer import RegistryClient, push
from tests import waiting
from tests.cloud_core.rig import core_in_a_thread, onnx_layout
from tests.penstock.hosting.rig import rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent
LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    """``mlp`` without names for its classes, ``stats`` with them. In a thread: tritonclient's HTTP stays in its own."""
    directory = tmp_path_factory.mktemp("extensions")
    layout = onnx_layout(directory, "v1", model="stats", seed=1, labels=LABELS)
    with core_in_a_thread(directory) as running:
        with RegistryClient(f"http://127.0.0.1:{running.http_port}") as client:
            push(client, layout)
        waiting.wait_until("the model", lambda: running.plane.model_state("stats").state == "READY")
        yield running


@pytest.fixture
def over_http(core: Core) -> Iterator[Any]:
    client = triton_http.InferenceServerClient(f"127.0.0.1:{core.http_port}", network_timeout=20.0)
    yield client
    client.close()


@pytest.fixture
def over_grpc(core: Core) -> Iterator[Any]:
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{core.grpc_port}") as client:
        yield client


def infer(triton: Any, client: Any, model: str = "mlp", values: tuple[float, ...] = (1, 2, 3), **wanted: Any) -> Any:
    x = rows(*values)
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    outputs = [triton.InferRequestedOutput("logits", **wanted)] if wanted else None
    return client.infer(model, [given], outputs=outputs)


def test_a_models_config_is_one_over_both_transports(over_http: Any, over_grpc: Any) -> None:
    told = over_http.get_model_config("mlp")
    assert (told["max_batch_size"], told["platform"], told["backend"]) == (16, "onnxruntime_onnx", "onnxruntime")
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [4]}]
    assert told["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [3]}]
    assert told["instance_group"][0]["kind"] == "KIND_CPU"
    config = over_grpc.get_model_config("mlp", "v1").config
    for key in ("name", "max_batch_size", "backend", "parameters", "instance_group"):
        assert MessageToDict(config, preserving_proto_field_name=True)[key] == told[key]
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([4], [3])
    with pytest.raises(triton_grpc.InferenceServerException, match="models here: mlp, stats"):
        over_grpc.get_model_config("ghost")


def test_statistics_count_requests_rows_runs_and_batches(over_http: Any, over_grpc: Any) -> None:
    def stats() -> Any:
        (told,) = over_http.get_inference_statistics("mlp")["model_stats"]
        return told

    before = stats()
    infer(triton_http, over_http)
    infer(triton_grpc, over_grpc)
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    assert after["last_inference"] > 1.6e12
    for stage in ("success", "queue", "compute_infer"):
        assert after["inference_stats"][stage]["count"] - before["inference_stats"][stage]["count"] == 2, stage
    sizes = {one["batch_size"]: one["compute_infer"]["count"] for one in after["batch_stats"]}
    assert sizes[3] - sum(one["compute_infer"]["count"] for one in before["batch_stats"]) == 2
    (message,) = over_grpc.get_inference_statistics("mlp").model_stats
    assert (message.inference_count, message.execution_count) == (after["inference_count"], after["execution_count"])
    assert message.inference_stats.compute_infer.ns == after["inference_stats"]["compute_infer"]["ns"] > 0
    assert message.batch_stats[-1].batch_size == 3


def test_a_model_called_stats_can_be_looked_at(over_http: Any, over_grpc: Any) -> None:
    metadata = over_http.get_model_metadata("stats")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["x"]
    everything = over_http.get_inference_statistics()
    assert {one["name"] for one in everything["model_stats"]} == {"mlp", "stats"}
    (own,) = over_http.get_inference_statistics("stats")["model_stats"]
    assert own["name"] == "stats"
    both = over_grpc.get_inference_statistics()
    assert {one.name for one in both.model_stats} == {"mlp", "stats"}
    assert over_grpc.get_model_metadata("stats").name == "stats"
