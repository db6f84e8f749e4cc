"""Bad input gets a clear error and a hint, over every wire, from real processes; and nothing is lost by it.

What this suite shows of whole processes, unit tests of the room in question show in detail.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from examples.digits.processes import penstock
from penstock import Client
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import CERTIFICATE
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.rpc.fleet import FleetClient
from penstock.rpc.pb import fleet_pb2, oip_pb2_grpc
from tests.contract.wire import ROW_BYTES, Answer, Ask, connection, grpc_message, http_message, send
from tests.processes import AGENT_CONFIG, AgentProcess, CoreProcess, DigitsBuild, digits_served
from tests.waiting import PATIENCE_S, wait_until

LIMIT_BYTES = 65_536
SMALL_CORE = f"""
[http]
max_body_bytes = {LIMIT_BYTES}
[grpc]
max_message_bytes = {LIMIT_BYTES}
"""
SMALL_AGENT = AGENT_CONFIG + f"\n[limits]\nmax_body_bytes = {LIMIT_BYTES}\n"
SLOW_CORE = """
[serving]
max_delay_s = 5.0
replicas = 1
max_queue_rows = 1
"""
TENANT_CORE = """
[[tenants]]
name = "shop"
token = "a long random secret"
rate_rows_per_s = 0.01
burst_rows = 2
"""


@dataclass
class World:
    """A core with digits:v1 and an agent that runs it, shared by tests that leave no trace."""

    core: CoreProcess
    agent: AgentProcess

    def target(self, wire: str) -> str:
        if wire == "agent unix":
            return self.agent.target
        if wire == "agent tcp":
            return f"http://{self.agent.endpoints['tcp']}"
        return self.core.grpc_target if wire == "core grpc" else self.core.http_url


@pytest.fixture(scope="module")
def world(digits_build: DigitsBuild) -> Iterator[World]:
    with digits_served(
        digits_build, core_config=SMALL_CORE, agent_config=SMALL_AGENT, arguments=("--tcp", "127.0.0.1:0")
    ) as agent:
        yield World(agent.core, agent)


@pytest.fixture(scope="module")
def uncertified(digits_build: DigitsBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits:v1 compiled for a promise that its calibration samples cannot carry, packed all the same."""
    recipe = digits_build.models / "strict.toml"
    text = (digits_build.models / "v1.toml").read_text()
    recipe.write_text(re.sub(r"max_harm = \S+", "max_harm = 0.001", text))
    layout = tmp_path_factory.mktemp("uncertified") / "v1"
    refused = penstock("compile", recipe, "-o", layout, check=False)
    assert refused.returncode == 3
    assert "450 certifying examples are too few" in refused.stderr
    assert "2995 are needed" in refused.stderr
    assert not layout.exists()
    penstock("compile", recipe, "-o", layout, "--without-certificate")
    return layout


# --- the table of statuses ---------------------------------------------------------------------------------------

EVERY_WIRE = ("core grpc", "core http", "agent unix", "agent tcp")
GRPC = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED", 504: "DEADLINE_EXCEEDED"}

BAD = {
    "wrong name": (Ask(name="y"), 400, "invalid-input", r"'y'.* x FP32\[-1, 64\]"),
    "wrong shape": (Ask(shape=(1, 63), raw=bytes(63 * 4)), 400, "invalid-input", r"\[1, 63\].*\[-1, 64\]"),
    "wrong rank": (Ask(shape=(64,)), 400, "invalid-input", r"\[64\].*\[-1, 64\]"),
    "wrong datatype": (Ask(datatype="INT32"), 400, "invalid-input", "INT32.*FP32"),
    "unknown datatype": (Ask(datatype="FLOAT"), 400, "invalid-input", "'FLOAT'.*FP32"),
    "negative shape": (Ask(shape=(-1, 64)), 400, "invalid-input", "x"),
    "no rows": (Ask(shape=(0, 64), raw=b""), 400, "invalid-input", "no rows"),
    "truncated raw bytes": (Ask(raw=bytes(ROW_BYTES - 1)), 400, "invalid-input", "inputs.x.*25[56]"),
    "too many raw bytes": (Ask(raw=bytes(ROW_BYTES + 4)), 400, "invalid-input", "inputs.x.*2(56|60)"),
    "unknown output": (Ask(output="nope"), 400, "invalid-input", "'nope'.*logits"),
    "timeout that is none": (Ask(parameters={"timeout": "soon"}), 400, "invalid-input", "parameters.timeout"),
    "unknown model": (Ask(model="nope"), 404, "not-found", "'nope'.*digits"),
    "unknown version": (Ask(version="v9"), 404, "not-found", "'v9'.*v1"),
    "expired deadline": (
        Ask(headers={"x-request-timeout-ms": "0"}), 504, "deadline-exceeded", "deadline.*nothing was executed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wire", EVERY_WIRE)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_is_wrong_and_what_was_expected(world: World, case: str, wire: str) -> None:
    ask, status, code, says = BAD[case]
    answer = send(world.target(wire), ask)
    assert answer.status == (GRPC[status] if wire == "core grpc" else status), answer
    assert answer.code == code
    assert re.search(says, answer.message), answer.message
    if code == "deadline-exceeded":
        assert answer.hints["x-penstock-reason"] == "rejected-deadline"
    assert send(world.target(wire), Ask()).status in (200, "OK")


@pytest.mark.parametrize("wire", EVERY_WIRE)
def test_too_large_names_the_limit(world: World, wire: str) -> None:
    rows = 300
    answer = send(world.target(wire), Ask(shape=(rows, 64), raw=bytes(rows * ROW_BYTES)))
    assert answer.status == (GRPC[413] if wire == "core grpc" else 413)
    assert str(LIMIT_BYTES) in answer.message
    if wire != "core grpc":  # gRPC refuses by itself, before our code could add a trailer
        assert answer.code == "too-large"
        assert answer.hints["x-penstock-limit-bytes"] == str(LIMIT_BYTES)


@pytest.mark.parametrize("wire", ["core http", "agent unix", "agent tcp"])
def test_a_body_that_grows_too_large_without_saying_so_is_refused(world: World, wire: str) -> None:
    path, _, _ = http_message(Ask())
    link = connection(world.target(wire))
    try:
        link.request("POST", path, iter([bytes(30_000)] * 4), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        response = link.getresponse()
        assert response.status == 413
        assert response.headers["x-penstock-limit-bytes"] == str(LIMIT_BYTES)
    finally:
        link.close()


@pytest.mark.parametrize("wire", ["core http", "agent unix", "agent tcp"])
@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"", {}, "body"),
        (b'{"inputs": [', {}, "body: .*truncated"),
        (b"[]", {}, "body: .*object"),
        (b"{}", {}, "inputs"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [NaN]}]}', {}, "body: .*JSON"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, "Inference-Header-Content-Length: 99 .*2 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "x"}, "Inference-Header-Content-Length: 'x'"),
        (b"{}", {"Content-Encoding": "gzip"}, "body"),
        (
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,64],"parameters":{"binary_data_size":256}}]}1234',
            {"Inference-Header-Content-Length": "96"},
            "binary_data_size is 256, but only 4 bytes are left",
        ),
    ],
    ids=["empty", "cut", "no object", "no inputs", "NaN", "long head", "no number", "not gzip", "cut raw"],
)
def test_a_body_that_is_no_request_is_bad_input(
    world: World, wire: str, body: bytes, headers: dict[str, str], says: str
) -> None:
    link = connection(world.target(wire))
    try:
        link.request("POST", "/v2/models/digits/infer", body, headers)
        response = link.getresponse()
        message = json.loads(response.read())["error"]
        assert (response.status, response.headers["x-penstock-code"]) == (400, "invalid-input")
        assert re.search(says, message), message
    finally:
        link.close()


@pytest.mark.parametrize("wire", EVERY_WIRE)
def test_no_answer_without_numbers_passes_for_one(world: World, wire: str) -> None:
    """The teacher makes NaN of NaN; an agent that escalated does not take that for the cloud's answer."""
    with Client(world.target(wire)) as client:
        result = client.infer("digits", np.full((1, 64), np.nan, np.float32), timeout=PATIENCE_S)
    if wire.startswith("core"):
        assert np.isnan(result.outputs["logits"]).all()
    else:
        assert (result.served_by, result.reason) == ("edge", "not_finite")
        assert np.isfinite(result.outputs["logits"]).all()


def test_bad_requests_leave_no_traceback_in_the_logs(world: World) -> None:
    for wire in EVERY_WIRE:
        for ask, *_ in BAD.values():
            send(world.target(wire), ask)
    for target in (world.core.http_url, world.target("agent tcp")):
        host, port = target.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as link:
            link.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n")
            assert link.recv(64).startswith(b"HTTP/1.0 400")
    assert "Traceback" not in world.core.log + world.agent.log


# --- busy, stopping, gone ----------------------------------------------------------------------------------------


@pytest.fixture
def slow(core_factory: Callable[..., CoreProcess], digits_build: DigitsBuild) -> CoreProcess:
    """A core that keeps a lone row waiting for company for five seconds, and lets one row wait."""
    core = core_factory(SLOW_CORE)
    core.push(digits_build.layout("v1"))
    return core


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def waiting(core: CoreProcess, pool: ThreadPoolExecutor) -> Future[Answer]:
    """A request that waits in the core's queue."""
    asked = pool.submit(send, core.http_url, Ask())
    wait_until("a row in the queue", lambda: metric(core, "penstock_queue_rows") == 1)
    return asked


def metric(core: CoreProcess, name: str, labels: str = "") -> float:
    """The sum of a metric's samples whose labels contain ``labels``."""
    link = connection(core.http_url)
    try:
        link.request("GET", "/metrics")
        text = link.getresponse().read().decode()
    finally:
        link.close()
    samples = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.M)
    return sum(float(value) for found, value in samples if labels in found)


def test_a_full_queue_pushes_back_and_what_was_admitted_is_answered(
    slow: CoreProcess, pool: ThreadPoolExecutor
) -> None:
    admitted = waiting(slow, pool)
    over_http, over_grpc = send(slow.http_url, Ask()), send(slow.grpc_target, Ask())
    assert (over_http.status, over_grpc.status) == (503, "RESOURCE_EXHAUSTED")
    for answer in (over_http, over_grpc):
        assert (answer.code, answer.hints["x-penstock-reason"]) == ("queue-full", "rejected-saturated")
    assert int(over_http.hints["retry-after"]) >= 1
    assert over_grpc.pushback_ms >= 0
    assert admitted.result(PATIENCE_S).status == 200


def test_a_draining_core_is_unavailable_says_when_to_come_back_and_finishes(
    slow: CoreProcess, pool: ThreadPoolExecutor
) -> None:
    admitted = waiting(slow, pool)
    os.kill(slow.pid, signal.SIGTERM)
    wait_until("draining", lambda: "draining" in slow.log)
    over_http, over_grpc = send(slow.http_url, Ask()), send(slow.grpc_target, Ask())
    assert (over_http.status, over_grpc.status) == (503, "UNAVAILABLE")
    assert over_http.code == over_grpc.code == "unavailable"
    assert int(over_http.hints["retry-after"]) >= 1
    assert over_grpc.pushback_ms > 0
    assert admitted.result(PATIENCE_S).status == 200


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_work_of_a_client_that_went_away_leaves_the_queue_and_is_not_run(
    slow: CoreProcess, pool: ThreadPoolExecutor, wire: str
) -> None:
    if wire == "http":
        link = connection(slow.http_url)
        path, body, headers = http_message(Ask())
        link.request("POST", path, body, headers)
        wait_until("a row in the queue", lambda: metric(slow, "penstock_queue_rows") == 1)
        link.close()
    else:
        with grpc.insecure_channel(slow.grpc_address) as channel:
            stub = oip_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            call = stub.ModelInfer.future(grpc_message(Ask()))
            wait_until("a row in the queue", lambda: metric(slow, "penstock_queue_rows") == 1)
            call.cancel()
            assert call.code() == grpc.StatusCode.CANCELLED
    wait_until("an empty queue", lambda: metric(slow, "penstock_queue_rows") == 0)
    wait_until("the request counted", lambda: metric(slow, "penstock_requests_total", 'code="cancelled"') == 1)
    assert metric(slow, "penstock_batch_rows_count") == 0


def test_an_agent_with_all_rows_in_flight_pushes_back(
    slow: CoreProcess, agent_factory: Callable[..., AgentProcess], pool: ThreadPoolExecutor
) -> None:
    # what would miss its deadline by waiting does not wait
    patient = f"default_timeout_s = {PATIENCE_S}\n[escalation]\ntimeout_s = {PATIENCE_S}\n"
    config = f"{AGENT_CONFIG}\n[limits]\nmax_queue_rows = 1\n{patient}"
    agent = agent_factory(slow, config=config)
    slow.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    unsure = Ask(raw=np.full((1, 64), np.nan, np.float32).tobytes())  # goes up, and waits there
    admitted = pool.submit(send, agent.target, unsure)

    def is_queued() -> bool:
        nonlocal admitted
        if admitted.done():  # by the device itself: on a busy machine the core may not be within its reach yet
            admitted = pool.submit(send, agent.target, unsure)
        return metric(slow, "penstock_queue_rows") == 1

    wait_until("a row in the queue", is_queued)
    answer = send(agent.target, Ask())
    assert (answer.status, answer.code) == (503, "queue-full")
    assert answer.hints["x-penstock-reason"] == "rejected-saturated"
    assert int(answer.hints["retry-after"]) >= 1
    assert "limits.max_queue_rows" in answer.message
    assert admitted.result(PATIENCE_S).status == 200


def test_tenants_need_their_token_and_keep_to_their_rate(
    core_factory: Callable[..., CoreProcess], digits_build: DigitsBuild
) -> None:
    core = core_factory(TENANT_CORE)
    with RegistryClient(core.http_url, token="a long random secret") as registry:
        transfer.push(registry, Layout(digits_build.layout("v1")))
    with pytest.raises(Exception, match="401|credential|token"), RegistryClient(core.http_url) as registry:
        registry.tags("digits")
    known = {"authorization": "Bearer a long random secret"}
    for target, refused, over in (
        (core.http_url, 401, 429),
        (core.grpc_target, "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
            answers = {send(target, Ask(model=model, headers=headers)).message for model in ("digits", "nope")}
            nobody = send(target, Ask(headers=headers))
            assert (nobody.status, nobody.code) == (refused, "unauthenticated")
            assert len(answers) == 1, "the answer depends on what exists"
            assert "digits" not in nobody.message
        if target == core.http_url:
            assert nobody.hints["www-authenticate"] == "Bearer"
            wait_until("the model", lambda: send(core.http_url, Ask(headers=known)).status == 200)
        for _ in range(3):  # the bucket is shared by both wires
            answer = send(target, Ask(headers=known))
        assert (answer.status, answer.code) == (over, "quota-exceeded")
        assert answer.hints["x-penstock-reason"] == "rejected-quota"
        assert answer.hints["x-ratelimit-limit"] == "2"
        assert answer.hints["x-ratelimit-remaining"] == "0"
        assert float(answer.hints["x-ratelimit-reset"]) > 0
        assert "'shop'" in answer.message


# --- artifacts ---------------------------------------------------------------------------------------------------


def test_without_a_certificate_everything_is_escalated_and_says_so(
    core_process: CoreProcess,
    agent_factory: Callable[..., AgentProcess],
    digits_build: DigitsBuild,
    uncertified: Path,
) -> None:
    shown = penstock("artifact", "inspect", uncertified).stdout
    assert "certificate  none: agents escalate every answer" in shown
    core_process.push(uncertified)
    agent = agent_factory(core_process)
    core_process.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    x, _ = digits_build.test_split()
    with Client(agent.target) as client:
        result = client.infer("digits", x[:32], timeout=PATIENCE_S)
        assert (result.served_by, result.reason, result.certificate) == ("cloud", "uncertified", "")
        assert result.parameters["rows_escalated"] == 32
        told = penstock("agent", "status", "--socket", agent.socket).stdout
        assert "escalate_all" in told.replace("-", "_")
        assert "certificate" in told
        core_process.kill()
        alone = client.infer("digits", x[:32], timeout=PATIENCE_S)
        assert (alone.served_by, alone.reason) == ("edge", "cloud_unreachable")


def test_a_certificate_for_other_digests_fits_nothing_and_is_not_pushed(
    world: World, digits_build: DigitsBuild, tmp_path: Path
) -> None:
    other = Layout(digits_build.layout("v2"))
    [referrer] = other.referrers(CERTIFICATE)
    mixed = tmp_path / "mixed"
    shutil.copytree(digits_build.layout("v1"), mixed)
    Layout(mixed).attach(CERTIFICATE, other.blobs.read(referrer.content.digest), title="certificate.json")
    verified = penstock("artifact", "verify", mixed, check=False)
    assert verified.returncode == 1
    assert "certificate" in verified.stdout
    pushed = penstock("artifact", "push", mixed, "--registry", world.core.http_url, check=False)
    assert pushed.returncode == 1
    assert "nothing was pushed" in pushed.stderr
    assert "certificate" in pushed.stderr


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "missing", "tampered manifest", "index that is none"])
def test_a_damaged_layout_is_found_out_and_never_pushed(
    world: World, digits_build: DigitsBuild, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_build.layout("v1"), copy)
    artifact = Layout(copy).artifact()
    digest = artifact.digest if damage == "tampered manifest" else artifact.variants[0].weights.digest
    blob = copy / "blobs" / "sha256" / digest.removeprefix("sha256:")
    data = blob.read_bytes()
    if damage == "missing":
        blob.unlink()
    elif damage == "truncated":
        blob.write_bytes(data[:-1])
    elif damage == "index that is none":
        (copy / "index.json").write_bytes(b"{")
    else:
        blob.write_bytes(data.replace(b"v1", b"v7") if damage == "tampered manifest" else data[:-1] + b"x")
    done = penstock("artifact", "push", copy, "--registry", world.core.http_url, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ("index" if damage == "index that is none" else digest) in done.stderr


def test_a_registry_takes_nothing_under_a_digest_that_is_not_its_own(world: World) -> None:
    link = connection(world.core.http_url)
    digest = "sha256:" + "0" * 64
    try:
        for method, path in (
            ("POST", f"/v2/digits/blobs/uploads/?digest={digest}"),
            ("PUT", f"/v2/digits/manifests/{digest}"),
        ):
            kind = "application/vnd.oci.image.manifest.v1+json" if method == "PUT" else "application/octet-stream"
            link.request(method, path, b"{}", {"Content-Type": kind})
            response = link.getresponse()
            body = response.read().decode()
            assert response.status in (400, 404), body
            assert "DIGEST_INVALID" in body or "MANIFEST_INVALID" in body, body
        link.request("HEAD", f"/v2/digits/blobs/{digest}")
        response = link.getresponse()
        response.read()
        assert response.status == 404
    finally:
        link.close()


def test_weights_that_were_changed_in_the_registry_are_refused_and_the_old_version_serves_on(
    core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> None:
    core_process.push(digits_build.layout("v1"))
    agent = agent_factory(core_process)
    core_process.release("digits:v1")
    agent.wait_until_runs("digits", "v1")
    core_process.push(digits_build.layout("v2"))
    edge = next(v for v in Layout(digits_build.layout("v2")).artifact().variants if v.spec.role == "edge")
    stored = core_process.data_dir / "registry" / "blobs" / "sha256" / edge.weights.digest.removeprefix("sha256:")
    data = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with FleetClient(core_process.grpc_target) as fleet:
        gate = fleet_pb2.GateSettings(min_audited=0, bake_s=0)
        plan = fleet.plan(fleet_pb2.PlanRolloutRequest(model="digits", version="v2", waves=[1.0], gate=gate))
        fleet.apply(plan.rollout_id)

    def refused() -> bool:
        return "corrupt, truncated or tampered with" in json.dumps(agent.status())

    wait_until("the refusal", refused)
    assert agent.runs("digits", "v1", phase="FAILED")
    with Client(agent.target) as client:
        assert client.infer("digits", digits_build.test_split()[0][:4], timeout=PATIENCE_S).version == "v1"


# --- disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """A data directory on a file system of 1 MiB."""
    disk = short_dir / "a1"  # where the agent of that name keeps its data
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "penstock-test", str(disk)], capture_output=True, text=True
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip() if mounted else 'there is no mount'}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_while_pulling_is_reported_and_the_pull_ends_when_there_is_room(
    small_disk: Path, core_process: CoreProcess, agent_factory: Callable[..., AgentProcess], digits_build: DigitsBuild
) -> None:
    config = (
        AGENT_CONFIG.replace("[update]", "[update]\nretry_base_s = 0.2\nretry_max_s = 0.5")
        + "\n[fetch]\nreserve_bytes = 0\n"
    )
    agent = agent_factory(core_process, config=config)
    junk = small_disk / "junk"
    with junk.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    core_process.push(digits_build.layout("v1"))
    core_process.release("digits:v1", is_awaited=False)
    wait_until("the report", lambda: any("disk is full; free some" in m["error"] for m in agent.status()["models"]))
    assert [m["phase"] for m in agent.status()["models"]] == ["FAILED"]
    assert not agent.runs("digits", "v1")
    junk.unlink()
    agent.wait_until_runs("digits", "v1")


# --- starting ----------------------------------------------------------------------------------------------------


def test_what_keeps_a_core_from_starting_is_one_clear_line(world: World, tmp_path: Path) -> None:
    file = tmp_path / "core.toml"
    file.write_text("[serving]\nmax_delay = 1\n")
    http_port, grpc_port = (address.rpartition(":")[2] for address in (world.core.http_url, world.core.grpc_target))
    free = ("--http-port", "0", "--grpc-port", "0")
    elsewhere = ("--data-dir", str(tmp_path / "data"))
    for arguments, code, says in (
        (("--config", str(file)), 2, "unknown setting 'serving.max_delay'; did you mean 'max_delay_s'?"),
        ((*elsewhere, "--http-port", http_port, "--grpc-port", "0"), 2, f"127.0.0.1:{http_port}.*in use"),
        ((*elsewhere, "--grpc-port", grpc_port, "--http-port", "0"), 2, f"127.0.0.1:{grpc_port}.*in use"),
        ((*free, "--data-dir", "/proc/penstock"), 1, "/proc/penstock"),
        ((*free, "--data-dir", str(world.core.data_dir)), 1, "in use by another core"),
    ):
        done = penstock("core", "serve", *arguments, check=False)
        assert done.returncode == code, done.stderr
        assert re.search(says, done.stderr), done.stderr
        assert "Traceback" not in done.stderr


def test_what_keeps_an_agent_from_starting_is_one_clear_line(world: World, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("[cascade]\naudit_shar = 0.5\n")
    own = ("--data-dir", str(tmp_path / "data"))
    taken = world.agent.endpoints["tcp"]
    for arguments, code, says in (
        (("--config", str(file), *own), 2, "unknown setting 'cascade.audit_shar'; did you mean 'audit_share'?"),
        ((*own, "--tcp", taken), 2, f"{taken}.*in use"),
        ((*own, "--socket", str(world.agent.socket)), 2, "another agent serves"),
        (("--data-dir", "/proc/penstock", "--socket", str(tmp_path / "s")), 1, "/proc/penstock"),
        (("--data-dir", str(world.agent.data_dir), "--socket", str(tmp_path / "s")), 1, "another agent uses"),
    ):
        done = penstock("agent", "run", *arguments, check=False)
        assert done.returncode == code, done.stderr
        assert re.search(says, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
