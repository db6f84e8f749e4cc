"""Operators' commands, and the repository calls of clients that others made, against a whole core."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

from cloud_core.app import Core
from cloud_core.commands.core import command
from penstock.cli.main import command as umbrella
from penstock.registry.transfer import RegistryClient, push
from tests.cloud_core.rig import core_in_a_thread, onnx_layout, write_mlp
from tests.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tritonclient and gevent

X = np.ones((1, 4), np.float32)
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    directory = tmp_path_factory.mktemp("traffic")
    with core_in_a_thread(directory) as running:
        with RegistryClient(f"http://127.0.0.1:{running.http_port}") as client:
            for number in (2, 3):
                push(client, onnx_layout(directory, f"v{number}", seed=number))
        wait_until("loaded", lambda: all(state.state == "READY" for state in running.plane.index()))
        yield running


@pytest.fixture
def run(core: Core) -> Run:
    def call(*words: str, codes: tuple[int, ...] = (0,)) -> Result:
        core_address = f"http://127.0.0.1:{core.http_port},grpc://127.0.0.1:{core.grpc_port}"
        result = CliRunner().invoke(command, [*words, "--core", core_address], env={"PENSTOCK_OPERATOR": "anna"})
        assert result.exit_code in codes, (result.output, result.exception)
        return result

    return call


def infer(
    core: Core,
    *,
    model: str = "mlp",
    headers: dict[str, str] | None = None,
    parameters: dict[str, Any] | None = None,
) -> Any:
    """Ask as plainly as the express lane wants it: one head, and a body of a known length."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X.ravel().tolist()}
    body = json.dumps({"inputs": [tensor], "parameters": parameters or {}})
    connection = http.client.HTTPConnection("127.0.0.1", core.http_port, timeout=10)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, headers or {})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        return json.load(answer)
    finally:
        connection.close()


def metrics(core: Core) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{core.http_port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def states(run: Run) -> dict[str, str]:
    shown = json.loads(run("models", "mlp", "-o", "json").stdout)
    return {state["version"]: state["state"] for state in shown["states"]}


def test_a_split_is_said_shown_counted_and_ended(core: Core, run: Run) -> None:
    shown = run("split", "mlp", "v2=50", "--sticky", "header", "--reason", "a trial").stdout
    assert "50%" in shown
    by_key = {}
    for key in map(str, range(24)):
        answers = [infer(core, headers={"x-sticky-key": key}) for _ in range(3)]
        (by_key[key],) = {(one["model_version"], one["parameters"]["arm"]) for one in answers}
    assert set(by_key.values()) == {("v1", "base"), ("v2", "v2")}
    count = 3 * sum(arm == "v2" for _, arm in by_key.values())
    assert f'penstock_arm_requests_total{{arm="v2",code="ok",model="mlp"}} {count:.1f}' in metrics(core)
    assert 'penstock_arm_percent{arm="v2",model="mlp"} 50.0' in metrics(core)
    listed = run("models").stdout
    assert "default" in listed
    assert "a trial" in run("models", "mlp").stdout
    ended = json.loads(run("split", "mlp", "--end", "-o", "json").stdout)
    assert ended["split"] is None
    assert ended["notes"][-1]["who"] == "anna"
    assert {infer(core)["model_version"] for _ in range(20)} == {"v1"}
    address = f"grpc://127.0.0.1:{core.grpc_port}"
    history = CliRunner().invoke(umbrella, ["fleet", "history", "--core", address]).stdout
    assert "mlp: split: 50% to v2" in history
    assert "a trial" in history


def test_the_key_may_come_over_grpc_and_in_a_parameter(core: Core, run: Run) -> None:
    import tritonclient.grpc as triton

    run("split", "mlp", "v2=50", "--sticky", "header")
    wanted = triton.InferInput("x", X.shape, "FP32")
    wanted.set_data_from_numpy(X)
    with triton.InferenceServerClient(f"127.0.0.1:{core.grpc_port}") as client:
        for key in map(str, range(8)):
            over_http = infer(core, headers={"x-sticky-key": key})["model_version"]
            answer = client.infer("mlp", [wanted], headers={"x-sticky-key": key}).get_response()
            assert answer.model_version == over_http
            assert answer.parameters["arm"].string_param == {"v1": "base"}.get(over_http, over_http)
    run("split", "mlp", "v2=50", "--sticky", "parameter:user")
    of_user = [{infer(core, parameters={"user": str(n)})["model_version"] for _ in range(3)} for n in range(12)]
    assert all(len(versions) == 1 for versions in of_user)
    assert set.union(*of_user) == {"v1", "v2"}
    run("split", "mlp", "--end")


def test_steps_go_on_by_an_operators_word_and_the_last_moves_the_default(core: Core, run: Run) -> None:
    run("split", "mlp", "v2", "--steps", "5,100", "--bake", "3600")
    assert run("split", "mlp", "v3", "--steps", "5,4", codes=(2, 1)).exit_code in (1, 2)
    moved = json.loads(run("split", "mlp", "--advance", "--reason", "it is fine", "-o", "json").stdout)
    assert (moved["default"], moved["split"]) == ("v2", None)
    assert infer(core)["model_version"] == "v2"
    run("default", "mlp", "v1")
    assert infer(core)["model_version"] == "v1"


def test_a_shadow_is_counted_by_arm(core: Core, run: Run) -> None:
    run("shadow", "mlp", "v3", "--share", "1")
    for _ in range(20):
        assert infer(core)["model_version"] == "v1"
    wait_until("compared", lambda: 'arm="base"' in metrics(core) and "penstock_shadow_rows_total" in metrics(core))
    counts = json.loads(run("models", "mlp", "-o", "json").stdout)["arms"]["base"]["shadow"]
    assert sum(counts.values()) <= 20
    assert "copied to v3" in run("models", "mlp").stdout
    run("shadow", "mlp", "--end")


def test_versions_are_unloaded_loaded_pinned_and_kept_by_a_policy(core: Core, run: Run) -> None:
    run("unload", "mlp", "v3", "--reason", "unused")
    assert states(run)["v3"] == "UNAVAILABLE"
    run("load", "mlp", "v3")
    run("pin", "mlp", "v3")
    assert "pinned" in run("models", "mlp").stdout
    assert "is pinned" in str(run("unload", "mlp", "v3", codes=(1, 3)).exception)
    run("pin", "mlp", "v3", "--off")
    run("versions", "mlp", "latest", "1")
    wait_until("left out", lambda: states(run) == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "READY"})
    run("versions", "mlp", "--as-set")
    wait_until("all", lambda: set(states(run).values()) == {"READY"})


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_tritonclient_loads_unloads_and_lists(core: Core, transport: str) -> None:
    if transport == "http":
        import tritonclient.http as triton

        address = f"127.0.0.1:{core.http_port}"
    else:
        import tritonclient.grpc as triton

        address = f"127.0.0.1:{core.grpc_port}"
    client = triton.InferenceServerClient(address)
    client.unload_model("mlp")
    assert not client.is_model_ready("mlp")
    client.load_model("mlp")
    assert client.is_model_ready("mlp")
    index = client.get_model_repository_index()
    listed = index if transport == "http" else [
        {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason} for one in index.models
    ]  # fmt: skip
    assert {one["version"]: one["state"] for one in listed} == {"v1": "READY", "v2": "READY", "v3": "READY"}
    (default,) = [one for one in listed if one.get("is_default") or one["reason"].startswith("default")]
    assert default["version"] == "v1"
    with pytest.raises(Exception, match="no model named 'nobody'"):
        client.load_model("nobody")
    with pytest.raises(Exception, match="a version is pushed"):
        client.load_model("mlp", config="{}")
    metadata = client.get_model_metadata("mlp")
    if transport == "http":
        assert metadata["properties"].pop("digest").startswith("sha256:")
        assert metadata["properties"] == {"default_version": "v1", "certified": "false"}
    client.close()


def test_wrong_words_are_told_with_what_would_do(run: Run) -> None:
    for words, expected in (
        (("split", "mlp"), "which versions"),
        (("split", "mlp", "v2"), "such as v2=10"),
        (("split", "mlp", "v2=10", "--end"), "stand alone"),
        (("shadow", "mlp"), "name a version"),
        (("versions", "mlp"), "which versions"),
    ):
        assert expected in run(*words, codes=(2,)).output
    assert "it has v3, v2, v1" in str(run("pin", "mlp", "v9", codes=(1,)).exception)


def test_a_plain_model_is_pushed_served_and_flagged(core: Core, run: Run, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "some model.onnx", seed=5)
    registry = ("--registry", f"http://127.0.0.1:{core.http_port}")
    pushed = [
        CliRunner().invoke(command, ["push", str(model), "--name", "plain", "-o", "json", *registry]) for _ in range(2)
    ]
    assert [json.loads(one.stdout)["tag"] for one in pushed] == ["v1", "v2"]
    assert "nothing is promised" in pushed[0].stderr
    wait_until("loaded", lambda: core.plane.model_state("plain").state == "READY")
    answer = infer(core, model="plain")
    assert answer["parameters"]["certified"] is False
    expected = onnxruntime.InferenceSession(str(model)).run(None, {"x": X})[0]
    assert np.allclose(answer["outputs"][0]["data"], expected.ravel(), atol=1e-5)
    assert "not certified" in run("models", "plain").stdout
    assert core.plane.metadata("plain").properties["certified"] == "false"


def test_a_file_beside_the_graph_is_pushed_with_it(core: Core, tmp_path: Path) -> None:
    model = tmp_path / "large.onnx"
    graph = onnx.load(write_mlp(tmp_path / "small.onnx", hidden=64))
    onnx.save(graph, model, save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    registry = ("--registry", f"http://127.0.0.1:{core.http_port}")
    pushed = CliRunner().invoke(command, ["push", str(model), "--name", "large", *registry])
    assert pushed.exit_code == 0, (pushed.output, pushed.exception)
    wait_until("loaded", lambda: core.plane.model_state("large").state == "READY")
    assert infer(core, model="large")["model_version"] == "v1"


def test_what_is_no_model_is_not_pushed(core: Core, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"not a model")
    registry = ("--registry", f"http://127.0.0.1:{core.http_port}")
    for words, expected in (
        ([str(wrong), "--name", "wrong"], "wrong.onnx"),
        ([str(write_mlp(tmp_path / "m.onnx")), "--name", "Not A Name"], "Not A Name"),
    ):
        refused = CliRunner().invoke(command, ["push", *words, *registry])
        assert refused.exit_code == 1
        assert expected in str(refused.exception)
    assert "wrong" not in {state.model for state in core.plane.index()}


def test_no_request_fails_while_the_default_moves_to_what_is_not_loaded_yet(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("moving")
    with core_in_a_thread(directory, serving={"max_loaded_models": 1}) as core:
        with RegistryClient(f"http://127.0.0.1:{core.http_port}") as client:
            push(client, onnx_layout(directory, "v2", seed=2))
        seen: list[list[str]] = [[] for _ in range(3)]
        failures: list[BaseException] = []
        stop = threading.Event()

        def call(versions: list[str]) -> None:
            try:
                while not stop.is_set():
                    versions.append(infer(core)["model_version"])
            except BaseException as error:
                failures.append(error)

        callers = [threading.Thread(target=call, args=(versions,)) for versions in seen]
        for caller in callers:
            caller.start()
        address = f"http://127.0.0.1:{core.http_port},grpc://127.0.0.1:{core.grpc_port}"
        for version in ("v2", "v1", "v2"):
            moved = CliRunner().invoke(command, ["default", "mlp", version, "--core", address])
            assert moved.exit_code == 0, (moved.output, moved.exception)
            wait_until(f"{version} answers", lambda version=version: failures or all(v[-1:] == [version] for v in seen))
        stop.set()
        for caller in callers:
            caller.join()
        assert failures == []
        assert all(set(versions) == {"v1", "v2"} for versions in seen)


def test_kserves_form_of_a_load_names_the_model_in_its_only_field(core: Core) -> None:
    from penstock.rpc.pb import oip_pb2 as pb

    with grpc.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
        for method, request in (
            ("Unload", pb.RepositoryModelUnloadRequest(repository_name="mlp")),
            ("Load", pb.RepositoryModelLoadRequest(repository_name="mlp")),
        ):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/RepositoryModel{method}")
            call(request.SerializeToString(), timeout=20)
            assert (core.plane.model_state("mlp").state == "READY") == (method == "Load")


def test_a_client_may_ask_models_and_not_load_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    tenants = [
        {"name": "ops", "token": "operators-secret"},
        {"name": "shop", "token": "a-clients-secret", "role": "client"},
    ]
    with core_in_a_thread(tmp_path_factory.mktemp("tenants"), tenants=tenants) as core:
        base = f"http://127.0.0.1:{core.http_port}"
        for words in (("unload", "mlp"), ("split", "mlp", "--end"), ("models",)):
            refused = CliRunner().invoke(command, [*words, "--core", base, "--token", "a-clients-secret"])
            assert "may not" in str(refused.exception), refused.exception
        with grpc.insecure_channel(f"127.0.0.1:{core.grpc_port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", metadata=(("authorization", "Bearer a-clients-secret"),), timeout=20)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        done = CliRunner().invoke(
            command, ["pin", "mlp", "v1", "--core", base, "--token", "operators-secret", "-o", "json"]
        )
        assert json.loads(done.stdout)["notes"][-1]["who"].endswith("(tenant ops)")
