"""``penstock fleet`` and ``penstock artifact`` as processes, against real sockets."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud_core.api.rpc.fleet_grpc import FleetServicer
from cloud_core.fleet.service import FleetService
from penstock.cli.fleet.view import rollouts_text
from penstock.errors import Conflict, InvalidInput, NotFound, Unavailable
from penstock.rpc.fleet import FleetClient, as_data, state_name
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.rpc.pb import fleet_pb2_grpc
from tests.cloud_core.releases import certificate_of, released
from tests.waiting import until

PLAN = ("--wave", "0.5", "--wave", "1", "--bake", "10", "--min-audited", "50", "--max-silence", "1000",
        "--max-wave", "3000")  # fmt: skip


class Core:
    """A fleet service behind gRPC, with devices moved by hand."""

    def __init__(self, service: FleetService, target: str, registry_url: str, clock: Any, digests: dict[str, str]):
        self.service, self.target, self.registry_url = service, target, registry_url
        self.clock, self.digests = clock, digests
        self.registry: Any = None

    async def penstock(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run the command line; returns stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"PENSTOCK_CORE": self.target, "PENSTOCK_REGISTRY": self.registry_url, "PATH": "/usr/bin:/bin",
                 "COLUMNS": "80"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, f"{process.returncode}\n{out.decode()}\n{err.decode()}"
        return out.decode(), err.decode()

    async def beat(self, name: str, version: str, phase: pb.UpdatePhase = pb.COMMITTED, error: str = "") -> str:
        request = pb.HeartbeatRequest(
            device_id=name,
            target="any",
            labels={"site": "lab"},
            subscriptions=["*"],
            models=[
                pb.ReportedModel(
                    model="digits", active_digest=self.digests[version], active_version=version, phase=phase,
                    mode=pb.CASCADE, certificate_digest=certificate_of(self.registry, self.digests[version]),
                    error=error,
                )
            ],
        )  # fmt: skip
        reply = await self.call("Heartbeat", request)
        return str(reply.models[0].version)

    async def audit(self, name: str, sequence: int, version: str, harm: int) -> None:
        counts = pb.OutcomeCounts(requests=100, kept=100, audited=100, audit_harm=harm)
        record = pb.OutcomeRecord(
            sequence=sequence, model="digits", artifact_digest=self.digests[version], counts=counts
        )
        reply = await self.call("DeliverOutcomes", pb.DeliverOutcomesRequest(device_id=name, records=[record]))
        assert reply.durable_sequence == sequence

    async def call(self, method: str, request: Any) -> Any:
        async with grpc.aio.insecure_channel(self.target.removeprefix("grpc://")) as channel:
            return await getattr(fleet_pb2_grpc.FleetStub(channel), method)(request, timeout=10)


@pytest.fixture
async def core(served: Any, database: Any, clock: Any, make_layout: Any, put: Any) -> AsyncIterator[Core]:
    digests = {tag: await put(served.registry, make_layout(tag)) for tag in ("v1", "v2", "v3")}
    released(database, served.registry, "digits", digests["v1"])
    service = FleetService.open(database, served.registry, now=clock)
    server = grpc.aio.server()
    fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(service), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = Core(service, f"grpc://127.0.0.1:{port}", served.url, clock, digests)
    found.registry = served.registry
    yield found
    await server.stop(None)


async def test_plan_apply_wait_and_undo_from_the_command_line(core: Core) -> None:
    for name in ("cam-1", "cam-2"):
        assert await core.beat(name, "v1") == "v1"
    out, _ = await core.penstock("fleet", "devices")
    assert "cam-1" in out
    assert "digits:v1" in out
    out, _ = await core.penstock("fleet", "devices", "--wide")
    assert "site=lab" in out
    out, _ = await core.penstock("fleet", "plan", "digits:v2", "-o", "json", *PLAN)
    plan = json.loads(out)
    assert plan["rollout_id"] == "digits-v2-1"
    assert plan["gate"]["min_audited"] == 50
    assert plan["promised_harm"] == 0.03
    waiting = asyncio.create_task(
        core.penstock("fleet", "apply", "digits-v2-1", "--plan-digest", plan["plan_digest"], "--wait")
    )
    await until("another process acts", lambda: core.service.rollout().rollout.state != "planned")
    for wave in range(2):
        name = plan["devices"][wave]["device_id"]
        assert await core.beat(name, "v1") == "v2"
        await core.beat(name, "v2")
        await core.audit(name, 1, "v2", harm=0)
        core.clock.advance(11)
        await core.service.reconcile()
    out, err = await waiting
    assert "succeeded" in out
    assert "wave 2 of 2 released to 1 device" in err
    _, err = await core.penstock("fleet", "undo", "--yes", code=2)
    assert "name the rollout to take back: penstock fleet undo digits-v2-1 --yes" in err
    out, err = await core.penstock("fleet", "undo", "digits-v2-1", "--reason", "too slow", "-o", "json")
    assert "digits:v2" in err
    assert "devices go back: 2 to digits:v1" in err.replace("\n", " ")
    undone = json.loads(out)
    assert (undone["state"], undone["events"][-1]["reason"]) == ("UNDONE", "too slow")
    assert undone["events"][-1]["at"].startswith("2026-01-01T00:00:")
    assert await core.beat("cam-1", "v2") == "v1"
    _, err = await core.penstock("fleet", "undo", code=1)
    assert "no rollout to undo" in err


async def test_a_zero_that_is_given_is_a_zero_and_what_is_left_out_is_the_default(core: Core) -> None:
    await core.beat("cam-1", "v1")
    out, _ = await core.penstock("fleet", "plan", "digits:v2", "--bake", "0", "--min-audited", "0", "-o", "json")
    gate, defaults = json.loads(out)["gate"], core.service.settings.gate
    assert (gate["bake_s"], gate["min_audited"]) == (0, 0)
    assert (gate["alpha"], gate["max_silence_s"]) == (defaults.alpha, defaults.max_silence_s)
    _, err = await core.penstock("fleet", "plan", "digits:v2", "--alpha", "0", code=2)
    assert "alpha" in err


async def test_a_rollout_that_its_gate_stops_exits_with_5_and_shows_the_evidence(core: Core) -> None:
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v1")
    waiting = asyncio.create_task(core.penstock("fleet", "apply", "digits:v3", "--yes", "--wait", *PLAN, code=5))
    await until("another process acts", lambda: core.service.rollouts() and core.service.rollout().rollout.waves)
    (first,) = core.service.rollout().waves[0].devices
    await core.beat(first.device_id, "v3")
    await core.audit(first.device_id, 1, "v3", harm=20)
    await core.service.reconcile()
    out, err = await waiting
    assert "stopped by gate" in out
    assert "20 of 100 audited rows harmful (20.0%), promised at most 3.00%" in " ".join(out.split())
    assert "gate of wave 1: fail" in out
    assert "stopped by its gate" in err
    assert {await core.beat(name, "v3") for name in ("cam-1", "cam-2")} == {"v1"}


async def test_nobody_confirms_means_nothing_runs(core: Core) -> None:
    await core.beat("cam-1", "v1")
    _, err = await core.penstock("fleet", "apply", "digits:v2", *PLAN, code=2)
    assert "penstock fleet apply digits-v2-1" in err
    assert core.service.rollout().rollout.state == "planned"


async def test_refusals_on_the_command_line(core: Core) -> None:
    _, err = await core.penstock("fleet", "plan", "digits:v2", *PLAN, code=3)
    assert "no device has reported yet; an agent appears with its first heartbeat" in err
    _, err = await core.penstock("fleet", "plan", "digits", code=2)
    assert "name the version" in err
    _, err = await core.penstock("fleet", "plan", "digits:v2", "--wave", "0.5", code=2)
    assert "must increase and end with 1" in err
    _, err = await core.penstock("fleet", "status", code=1)
    assert "there is no rollout yet; make one with 'penstock fleet plan'" in err
    _, err = await core.penstock("fleet", "devices", "--core", "grpc://127.0.0.1:1", code=4)
    assert "penstock:" in err


async def test_pause_resume_abort_and_listing(core: Core) -> None:
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v1")
    await core.penstock("fleet", "apply", "digits:v2", "--yes", *PLAN)
    assert "paused by the operator" in (await core.penstock("fleet", "pause"))[0]
    assert "running" in (await core.penstock("fleet", "resume"))[0]
    assert "nothing moves any more" in (await core.penstock("fleet", "abort", "--keep"))[0]
    out, _ = await core.penstock("fleet", "status", "--all")
    assert "digits-v2-1" in out
    assert (await core.penstock("fleet", "status", "--exit-code", code=7))[0].startswith("digits-v2-1  aborted")
    _, err = await core.penstock("fleet", "pause", "digits-v2-1", code=3)
    assert "it is aborted" in err


async def test_resuming_names_what_failed_and_goes_on_when_that_is_accepted_by_name(core: Core) -> None:
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v1")
    await core.penstock("fleet", "apply", "digits:v2", "--yes", "--wave", "1", *PLAN[4:])
    for name in ("cam-1", "cam-2"):
        assert await core.beat(name, "v1") == "v2"  # told; cam-2 is never heard of again
    await core.penstock("fleet", "pause")
    core.clock.advance(1001)
    await core.beat("cam-1", "v2")
    out, err = await core.penstock("fleet", "resume", "-o", "json", code=3)
    assert "1 of 2 devices of this wave failed (50.0%), tolerated 5.0%: cam-2 silent for 1001 s" in err
    assert "penstock fleet resume digits-v2-1 --accept cam-2" in err
    assert json.loads(out)["error"]["code"] == "conflict"
    _, err = await core.penstock("fleet", "resume", "--accept", "cam-1", code=3)
    assert "cam-1: not failed, and not waited for" in err
    out, _ = await core.penstock("fleet", "resume", "--accept", "cam-2", "--reason", "it was stolen", "-o", "json")
    resumed = json.loads(out)
    assert (resumed["state"], resumed["acknowledged"]) == ("RUNNING", ["cam-2"])
    assert resumed["events"][-1]["text"] == "resumed by the operator; accepted failures: cam-2"


async def test_one_re_attaches_to_a_rollout_and_leaves_with_its_verdict(core: Core) -> None:
    """Whoever lost the terminal in which 'apply --wait' ran asks again, and gets the same end."""
    await core.beat("cam-1", "v1")
    await core.penstock("fleet", "plan", "digits:v2", *PLAN)
    _, err = await core.penstock("fleet", "status", "--watch", code=2)
    assert "is a plan that was not applied" in err
    await core.penstock("fleet", "apply", "digits-v2-1")
    await core.penstock("fleet", "status", "--exit-code", code=8)
    await core.penstock("fleet", "plan", "digits:v3", *PLAN)  # it hides nothing
    watching = [
        asyncio.create_task(core.penstock("fleet", "status", "--watch", "--exit-code", code=6)),
        asyncio.create_task(core.penstock("fleet", "apply", "digits-v2-1", "--wait", code=6)),
    ]
    await core.penstock("fleet", "pause", "--reason", "lunch", "--who", "alice")
    for out, _ in await asyncio.gather(*watching):
        assert out.startswith("digits-v2-1  paused")
        assert "not applied: digits-v3-2 ('penstock fleet plans')" in out
    assert "digits-v3-2" in (await core.penstock("fleet", "plans"))[0]
    await core.penstock("fleet", "delete", "digits-v3-2")
    assert "no plans are waiting" in (await core.penstock("fleet", "plans"))[0]
    _, err = await core.penstock("fleet", "apply", "digits-v2-1", "--plan-digest", "sha256:1", "--wait", code=3)
    assert "not sha256:1" in err


async def test_abort_and_undo_wait_until_devices_are_back_and_name_those_that_are_silent(core: Core) -> None:
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v1")
    await core.penstock("fleet", "apply", "digits:v2", "--yes", "--wave", "1", *PLAN[4:])
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v2")
    aborting = asyncio.create_task(core.penstock("fleet", "abort", "--wait", code=1))
    await until("the abort", lambda: core.service.rollout().rollout.state == "aborted")
    assert not aborting.done()
    await core.beat("cam-1", "v1")
    core.clock.advance(1001)
    await core.beat("cam-1", "v1")
    _, err = await aborting
    assert "silent, and not back yet: cam-2" in err


async def test_who_did_what_when_and_why_is_told(core: Core) -> None:
    await core.beat("cam-1", "v1")
    await core.penstock("fleet", "apply", "digits:v2", "--yes", "--who", "alice", "--reason", "ticket 17", *PLAN)
    await core.penstock("fleet", "pause", "--who", "bob")
    out, _ = await core.penstock("fleet", "history")
    assert [line.split()[2:6] for line in out.splitlines()[1:]] == [
        ["alice", "fleet", "plan", "digits-v2-1:"], ["alice", "fleet", "apply", "digits-v2-1:"],
        ["bob", "fleet", "pause", "digits-v2-1"],
    ]  # fmt: skip
    assert out.splitlines()[1].startswith("2026-01-01 00:00Z  alice")
    out, _ = await core.penstock("fleet", "history", "digits-v2-1", "-o", "json")
    events = json.loads(out)
    assert [(one["text"], one["who"]) for one in events] == [
        ("planned", "alice"), ("wave 1 of 1 released to 1 device", "alice"), ("paused by the operator", "bob"),
    ]  # fmt: skip
    assert events[0]["at"] == "2026-01-01T00:00:00.000Z"


async def test_devices_are_counted_forgotten_and_not_found_in_words(core: Core) -> None:
    assert "no devices yet" in (await core.penstock("fleet", "devices"))[0]
    for name in ("cam-1", "cam-2"):
        await core.beat(name, "v1")
    out, _ = await core.penstock("fleet", "devices", "--by", "version", "-o", "json")
    assert json.loads(out) == [{"name": "digits:v1", "devices": 2, "silent": 0, "phases": {"COMMITTED": 2}}]
    assert "2 in all" in (await core.penstock("fleet", "devices", "--by", "label:site"))[0]
    out, _ = await core.penstock("fleet", "devices", "--selector", "site=lba")
    assert "none of 2 devices has these labels; there are: site=lab" in out
    out, _ = await core.penstock("fleet", "devices", "--limit", "1")
    assert "1 of 2 devices" in out
    assert "--after cam-1" in out
    core.clock.advance(500)
    await core.penstock("fleet", "forget", "cam-2", "--reason", "stolen")
    out, _ = await core.penstock("fleet", "devices", "-o", "json")
    (left,) = json.loads(out)
    assert (left["device_id"], left["runs_since"]) == ("cam-1", {"digits": "2026-01-01T00:00:00.000Z"})


async def test_screens_fit_into_80_columns_and_a_plan_says_what_would_stop_it(core: Core) -> None:
    for number in range(4):
        await core.beat(f"line-7-camera-{number}", "v1")
    out, _ = await core.penstock("fleet", "plan", "digits:v2", "--at-once")
    screens = [out]
    assert ["1", "4", "3", "failures,", "or", "all"] in [line.split()[:6] for line in out.splitlines()]
    assert "at most 2 points of all rows" in out
    assert "at most 3.00% of audited rows" in out
    assert "digits:v1 (" in out
    await core.penstock("fleet", "apply", "digits-v2-1")
    await core.beat("line-7-camera-9-came-later", "v1")
    error = "golden output 3 of 5 differs by 0.4 from what the compiler measured, allowed is 0.001"
    await core.beat("line-7-camera-0", "v1", pb.REVERTED, error=error)
    screens += [
        (await core.penstock("fleet", *command))[0]
        for command in (("status",), ("status", "--all"), ("devices",), ("devices", "--by", "wave"), ("history",),
                        ("history", "digits-v2-1"), ("evidence",), ("plans",))
    ]  # fmt: skip
    assert "0 of 4 devices on v2, 1 new" in screens[1]
    week = rollouts_text([pb.Rollout(plan=pb.RolloutPlan(rollout_id="digits-v3-2"), status="why it stopped; " * 20)])
    assert len(week.splitlines()) < 12, "a row of a list is cut, and says where the whole of it is"
    assert "'penstock fleet status ROLLOUT' has the whole of it" in week
    assert "new      line-7-camera-9-came-later: came after the plan was made" in screens[1]
    for screen in screens:
        assert [line for line in screen.splitlines() if len(line) > 80] == []


async def test_the_client_raises_errors_of_ours(core: Core) -> None:
    with FleetClient(core.target) as client:
        with pytest.raises(NotFound):
            await asyncio.to_thread(client.rollout, "nothing")
        with pytest.raises(Conflict):
            await asyncio.to_thread(client.plan, pb.PlanRolloutRequest(model="digits", version="v2"))
        await core.beat("cam-1", "v1")
        made = await asyncio.to_thread(client.plan, pb.PlanRolloutRequest(model="digits", version="v2"))
        assert made.gate.bake_s == core.service.settings.gate.bake_s
        rollout = await asyncio.to_thread(client.apply, made.rollout_id)
        assert state_name(rollout) == "RUNNING"
        data = as_data(rollout)
        assert data["waves"][0]["devices"][0]["phase"] == "COMMITTED"
        assert data["waves"][0]["devices"][0]["counts"]["audited"] == 0
        assert json.dumps(data)
    with FleetClient("grpc://127.0.0.1:1", timeout_s=0.2) as nobody, pytest.raises(Unavailable):
        await asyncio.to_thread(nobody.devices)


async def test_a_device_newer_than_the_core_is_understood_as_far_as_possible(core: Core) -> None:
    request = pb.HeartbeatRequest(device_id="new", target="riscv-9000", subscriptions=["*"])
    model = request.models.add(model="digits", active_digest=core.digests["v1"])
    model.MergeFromString(b"\x30\x63\x38\x63\xf2\x07\x03abc")  # phase 99, mode 99, an unknown field
    reply = await core.call("Heartbeat", request)
    assert [desired.version for desired in reply.models] == ["v1"]


@pytest.mark.parametrize("name", ["", "x" * 10_240, "cam\n1", "line/cam-1", "k\u00fchlung", "..", "no spaces"])
async def test_the_front_door_refuses_a_hostile_device_id(core: Core, name: str) -> None:
    requests = {
        "Heartbeat": pb.HeartbeatRequest(device_id=name),
        "DeliverOutcomes": pb.DeliverOutcomesRequest(device_id=name),
        "PlanRollout": pb.PlanRolloutRequest(model="digits", version="v2", device_ids=[name]),
    }
    for method, request in requests.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await core.call(method, request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, method
        assert "is not a device id; it must be 1 to 128 letters, digits and . _ : -" in (refused.value.details() or "")


async def test_artifacts_from_the_command_line(core: Core, make_layout: Any, tmp_path: Path) -> None:
    layout = make_layout("v4", model="letters")
    out, _ = await core.penstock("artifact", "inspect", str(layout.root))
    assert "letters" in out
    assert "with 95% confidence" in out
    assert ["fits", "yes"] in [line.split() for line in out.splitlines()]
    out, err = await core.penstock("artifact", "push", str(layout.root), "-o", "json")
    assert json.loads(out)["digest"] == layout.digest
    assert "(100%)" in err
    out, _ = await core.penstock("artifact", "list", "-o", "json")
    assert {"model": "letters", "tag": "v4", "digest": layout.digest} in json.loads(out)
    out, _ = await core.penstock("artifact", "inspect", "letters:v4", "-o", "json")
    assert json.loads(out)["certificate"]["max_harm"] == 0.02
    await core.penstock("artifact", "pull", "letters:v4", str(tmp_path / "copy"))
    assert "good" in (await core.penstock("artifact", "verify", str(tmp_path / "copy")))[0]
    assert "good" in (await core.penstock("artifact", "verify", "letters:v4"))[0]
    weights = layout.artifact().variants[0].weights.digest
    (tmp_path / "copy" / "blobs" / "sha256" / weights.removeprefix("sha256:")).write_bytes(b"other")
    out, _ = await core.penstock("artifact", "verify", str(tmp_path / "copy"), code=1)
    assert weights in out
    _, err = await core.penstock("artifact", "push", str(tmp_path / "copy"), code=1)
    assert "nothing was pushed" in err
    _, err = await core.penstock("artifact", "list", "--registry", "nonsense", code=2)
    assert "is not a URL" in err
    _, err = await core.penstock("artifact", "verify", str(tmp_path / "nothing"), code=1)
    assert f"{tmp_path / 'nothing'}: no such directory" in err


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput):
        FleetClient("http://127.0.0.1:8000")
