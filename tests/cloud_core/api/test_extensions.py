"""Triton's extensions, as Triton's own clients ask for them over both transports; one model is called ``stats``."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as memory
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
    memory = {"max_regions": 2, "max_region_bytes": 4096}
    with core_in_a_thread(directory, shared_memory=memory) as running:
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


BOTH = pytest.mark.parametrize("transport", ["http", "grpc"])


@pytest.fixture
def asked(transport: str, over_http: Any, over_grpc: Any) -> tuple[Any, Any]:
    """Triton's module and client for one transport."""
    return (triton_http, over_http) if transport == "http" else (triton_grpc, over_grpc)


@BOTH
def test_outputs_are_answered_as_their_most_likely_classes(asked: tuple[Any, Any]) -> None:
    triton, client = asked
    scores = infer(triton, client, "stats").as_numpy("logits")
    told = infer(triton, client, "stats", class_count=2).as_numpy("logits")
    assert told.shape == (3, 2)
    for row, classes in zip(scores, told.tolist(), strict=True):
        first, second = (text.decode().split(":") for text in classes)
        order = np.argsort(-row)
        assert [int(first[1]), int(second[1])] == order[:2].tolist()
        assert float(first[0]) == pytest.approx(row[order[0]], abs=1e-6)
        assert first[2] == LABELS[order[0]]
    unnamed = infer(triton, client, "mlp", class_count=99).as_numpy("logits")
    assert unnamed.shape == (3, 3)
    assert all(text.count(b":") == 1 for text in unnamed.ravel())


def test_a_body_of_nothing_but_the_inputs_bytes(core: Core) -> None:
    x = rows(1, 2)
    request = urllib.request.Request(
        f"http://127.0.0.1:{core.http_port}/v2/models/mlp/infer",
        data=x.tobytes(),
        headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        length = int(answer.headers["Inference-Header-Content-Length"])
        body = answer.read()
    (output,) = json.loads(body[:length])["outputs"]
    assert (output["shape"], output["parameters"]) == ([2, 3], {"binary_data_size": 24})
    assert len(body) == length + 24
    request.data = x.tobytes()[:-1]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 400
    assert "needs 16" in json.load(refused.value)["error"]


@contextmanager
def shared(size: int) -> Iterator[tuple[str, Any]]:
    """An object of /dev/shm, with its name."""
    key = f"/test-{uuid.uuid4().hex[:12]}"
    handle = memory.create_shared_memory_region("mine", key, size)
    try:
        yield key, handle
    finally:
        memory.destroy_shared_memory_region(handle)


@BOTH
def test_tensors_travel_in_memory_that_is_shared(asked: tuple[Any, Any]) -> None:
    triton, client = asked
    x = rows(1, 2, 3)
    expected = infer(triton, client).as_numpy("logits")
    with shared(4096) as (key, handle):
        memory.set_shared_memory_region(handle, [x])
        client.register_system_shared_memory("mine", key, 2048)
        client.register_system_shared_memory("answers", key, 1024, offset=2048)
        try:
            status = client.get_system_shared_memory_status()
            names = [one["name"] for one in status] if triton is triton_http else sorted(status.regions)
            assert sorted(names) == ["answers", "mine"]
            given = triton.InferInput("x", [3, 4], "FP32")
            given.set_shared_memory("mine", x.nbytes)
            wanted = triton.InferRequestedOutput("logits")
            wanted.set_shared_memory("answers", 512, offset=64)
            answer = client.infer("mlp", [given], outputs=[wanted])
            output = answer.get_output("logits")
            assert (output["datatype"] if triton is triton_http else output.datatype) == "FP32"
            found = memory.get_contents_as_numpy(handle, np.float32, [3, 3], offset=2048 + 64)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            in_answer = client.infer("mlp", [given])  # only the input is shared
            np.testing.assert_allclose(in_answer.as_numpy("logits"), expected, rtol=1e-5)
            for size, offset, says in ((4096, 0, "not inside"), (16, 2040, "not inside")):
                given.set_shared_memory("mine", size, offset=offset)
                with pytest.raises(triton.InferenceServerException, match=says):
                    client.infer("mlp", [given])
            given = triton.InferInput("x", [3, 4], "FP32")  # Triton's client forgets no offset
            given.set_shared_memory("mine", x.nbytes)
            wanted = triton.InferRequestedOutput("logits")
            wanted.set_shared_memory("answers", 8)
            with pytest.raises(triton.InferenceServerException, match="give it more room"):
                client.infer("mlp", [given], outputs=[wanted])
        finally:
            client.unregister_system_shared_memory()
        with pytest.raises(triton.InferenceServerException, match="no shared memory region 'mine' is registered"):
            client.infer("mlp", [given])


@BOTH
def test_what_is_registered_is_bounded_and_lies_in_dev_shm_alone(asked: tuple[Any, Any]) -> None:
    triton, client = asked

    def refused(says: str, name: str, key: str, size: int = 64, offset: int = 0) -> None:
        with pytest.raises(triton.InferenceServerException, match=says):
            client.register_system_shared_memory(name, key, size, offset=offset)

    for key in ("/../etc/passwd", "//etc/passwd", "..", "", "/a/b", "/.hidden"):
        refused("names no object of /dev/shm", "mine", key)
    refused("No such file", "mine", f"/nobody-{uuid.uuid4().hex}")
    with shared(256) as (key, _):
        link = f"link-{uuid.uuid4().hex}"
        os.symlink("/etc/passwd", f"/dev/shm/{link}")
        try:
            refused("cannot be opened", "mine", link)
        finally:
            os.unlink(f"/dev/shm/{link}")
        refused("has 256 bytes", "mine", key, 256, 1)
        refused("byte_size is 0", "mine", key, 0)
        refused("4096", "mine", key, 5000)
        try:
            client.register_system_shared_memory("one", key, 64)
            refused("registered already", "one", key)
            client.register_system_shared_memory("two", key, 64)
            refused("the limit", "three", key)
        finally:
            client.unregister_system_shared_memory()
        client.unregister_system_shared_memory("never-there")


def test_an_object_that_is_cut_short_costs_its_client_an_answer_and_nobody_else(over_http: Any) -> None:
    with shared(4096) as (key, _):
        over_http.register_system_shared_memory("mine", key, 2048)
        try:
            os.truncate(f"/dev/shm{key}", 8)
            given = triton_http.InferInput("x", [1, 4], "FP32")
            given.set_shared_memory("mine", 16)
            with pytest.raises(triton_http.InferenceServerException, match="was cut short"):
                over_http.infer("mlp", [given])
            os.truncate(f"/dev/shm{key}", 4096)  # the client's own map of it would not survive
        finally:
            over_http.unregister_system_shared_memory()
    assert over_http.is_server_live()


@BOTH
def test_cuda_shared_memory_is_refused_in_words_and_may_be_forgotten(asked: tuple[Any, Any]) -> None:
    triton, client = asked
    client.unregister_cuda_shared_memory()  # what every example of Triton's begins with
    status = client.get_cuda_shared_memory_status()
    assert not (status if triton is triton_http else status.regions)
    with pytest.raises(triton.InferenceServerException, match="CUDA shared memory is not served"):
        client.register_cuda_shared_memory("mine", b"AAAA", 0, 64)


@BOTH
def test_how_much_is_logged_can_be_told_and_changed(asked: tuple[Any, Any]) -> None:
    triton, client = asked

    def settings(answer: Any) -> dict[str, Any]:
        if triton is triton_http:
            return dict(answer)
        return {name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in answer.settings.items()}

    before = logging.root.level
    try:
        assert settings(client.update_log_settings({"log_verbose_level": 1}))["log_verbose_level"] == 1
        assert logging.root.level == logging.DEBUG
        told = settings(client.update_log_settings({"log_info": False, "log_verbose_level": 0}))
        assert told == {"log_info": False, "log_warning": True, "log_error": True, "log_verbose_level": 0}
        assert logging.root.level == logging.WARNING
        with pytest.raises(triton.InferenceServerException, match="log_file: cannot be set here"):
            client.update_log_settings({"log_file": "/tmp/anything"})
        assert settings(client.get_log_settings()) == told
    finally:
        logging.root.setLevel(before)


@BOTH
def test_what_is_traced_is_told_and_cannot_be_changed_where_nothing_traces(asked: tuple[Any, Any]) -> None:
    triton, client = asked
    told = client.get_trace_settings(as_json=True) if triton is triton_grpc else client.get_trace_settings()
    level = told["settings"]["trace_level"]["value"] if triton is triton_grpc else told["trace_level"]
    assert level == ["OFF"]
    with pytest.raises(triton.InferenceServerException, match="observing.traces.endpoint"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})


def test_the_extensions_that_are_listed_are_those_that_work(over_http: Any, over_grpc: Any) -> None:
    listed = over_http.get_server_metadata()["extensions"]
    assert {"classification", "system_shared_memory", "logging", "statistics"} <= set(listed)
    assert not {"cuda_shared_memory", "trace"} & set(listed)  # nothing traces in this core
    assert set(over_grpc.get_server_metadata().extensions) == set(listed) - {"generate"}


def test_kserves_first_protocol(core: Core, over_http: Any) -> None:
    base = f"http://127.0.0.1:{core.http_port}/v1/models"

    def call(path: str, document: Any = None) -> Any:
        data = None if document is None else json.dumps(document).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, data=data), timeout=20) as answer:
            return json.load(answer)

    expected = infer(triton_http, over_http).as_numpy("logits").tolist()
    told = call("/mlp:predict", {"instances": rows(1, 2, 3).tolist()})
    np.testing.assert_allclose(told["predictions"], expected, rtol=1e-5)
    assert told["parameters"]["variant"].startswith("sha256:")
    told = call("/mlp/versions/v1:predict", {"inputs": {"x": rows(1, 2, 3).tolist()}})
    np.testing.assert_allclose(told["outputs"], expected, rtol=1e-5)
    assert (call("")["object"], call("")["models"]) == ("list", ["mlp", "stats"])
    assert call("/mlp") == {"name": "mlp", "ready": True}
    for path, document, status in (
        ("/ghost", None, 404), ("/ghost:predict", {"instances": [1]}, 404), ("/mlp:predict", {"instances": [1]}, 400),
        ("/mlp:explain", {"instances": [1]}, 405),
    ):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as refused:
            call(path, document)
        assert refused.value.code == status
        assert "error" in json.load(refused.value)


def test_a_stream_takes_all_that_its_client_can_ask_for(over_grpc: Any) -> None:
    answers: list[Any] = []
    given = triton_grpc.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(rows(1, 2))
    over_grpc.start_stream(lambda result, error: answers.append(error if result is None else result))
    for count in (0, 2):
        wanted = triton_grpc.InferRequestedOutput("logits", class_count=count)
        over_grpc.async_stream_infer(
            "stats", [given], outputs=[wanted], request_id=f"r{count}", enable_empty_final_response=True, priority=1,
            timeout=20_000_000, parameters={"mine": "x"},
        )  # fmt: skip
    over_grpc.async_stream_infer("stats", [given], sequence_id=7, sequence_start=True)
    over_grpc.stop_stream()
    plain, classes, refused = answers
    assert (plain.get_response().id, plain.as_numpy("logits").shape) == ("r0", (2, 3))
    assert plain.get_response().parameters["triton_final_response"].bool_param
    assert (classes.as_numpy("logits").shape, classes.as_numpy("logits").dtype) == ((2, 2), np.object_)
    assert "sequences are not served" in str(refused)
