"""A core process that pools the audits of devices without any rollout: over gRPC, HTTP, the command line and a kill."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import grpc
import pytest

from examples.digits.processes import penstock, penstock_json
from penstock.artifact.layout import Layout
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.rpc.pb import fleet_pb2_grpc
from tests.processes import CoreProcess, DigitsBuild

ADMIN, SHARED, OWN = "admin-token-1", "kiosk-token-1", "camera-token-1"
CONFIG = f"""
[fleet.evidence]
demotes = true

[[tenants]]
name = "operators"
token = "{ADMIN}"

[[tenants]]
name = "kiosks"
token = "{SHARED}"
role = "device"

[[tenants]]
name = "camera"
token = "{OWN}"
role = "device"
device_id = "camera-1"
"""


@pytest.fixture
def core(
    core_factory: Callable[..., CoreProcess], digits_build: DigitsBuild, monkeypatch: pytest.MonkeyPatch
) -> CoreProcess:
    started = core_factory(CONFIG)
    monkeypatch.setenv("PENSTOCK_TOKEN", ADMIN)
    penstock("artifact", "push", digits_build.layout("v1"), "--registry", started.http_url)
    return started


def report(core: CoreProcess, layout: Layout, device_id: str, *, token: str = SHARED, sequence: int = 0) -> bool:
    """Report as a device that runs v1 and found harm in every fifth audited row; is it told to keep nothing?"""
    with grpc.insecure_channel(core.grpc_address) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        model = pb.ReportedModel(
            model="digits", active_digest=layout.digest, certificate_digest=layout.certificates()[0][0],
            phase=pb.COMMITTED, mode=pb.CASCADE,
        )  # fmt: skip
        beat = pb.HeartbeatRequest(
            device_id=device_id,
            target=layout.artifact().variant("edge").spec.target,
            subscriptions=["digits"],
            models=[model],
        )
        reply = stub.Heartbeat(beat, metadata=metadata, timeout=10)
        if sequence:
            counts = pb.OutcomeCounts(requests=20, kept=20, audited=20, audit_harm=4)
            record = pb.OutcomeRecord(sequence=sequence, model="digits", artifact_digest=layout.digest, counts=counts)
            delivery = pb.DeliverOutcomesRequest(device_id=device_id, records=[record])
            stub.DeliverOutcomes(delivery, metadata=metadata, timeout=10)
        return any(model.is_distrusted for model in reply.models)


def alarms(core: CoreProcess) -> list[dict[str, object]]:
    found = penstock("fleet", "evidence", "--core", core.grpc_target, "-o", "json")
    return [promise for promise in json.loads(found.stdout) if promise["has_alarm"]]


def test_a_fleet_that_sees_harm_is_heard_without_a_rollout_and_after_a_kill(
    core: CoreProcess, digits_build: DigitsBuild
) -> None:
    layout = Layout(digits_build.layout("v1"))
    names = [f"kiosk-{number}" for number in range(10)]
    assert not report(core, layout, names[0])
    core.release("digits:v1", is_awaited=False)
    assert not report(core, layout, names[0])
    assert alarms(core) == []
    for sequence in (1, 2, 3):
        for name in names:
            report(core, layout, name, sequence=sequence)
    (alarm,) = alarms(core)
    assert (alarm["model"], alarm["artifact_digest"]) == ("digits", layout.digest)
    asked = urllib.request.Request(f"{core.http_url}/metrics", headers={"Authorization": f"Bearer {ADMIN}"})
    with urllib.request.urlopen(asked, timeout=10) as response:
        metrics = response.read().decode()
    assert f'penstock_fleet_alarm{{artifact="{layout.digest}"' in metrics
    assert 'penstock_fleet_rollout_stops_total{model="digits"} 0.0' in metrics, "there before the first stop"
    assert report(core, layout, names[0])
    core.kill()
    core.start()
    assert alarms(core) == [alarm]
    assert report(core, layout, names[0])
    history = penstock_json("fleet", "history", "--core", core.grpc_target)
    assert [one["who"].partition(" (")[2] for one in history] == ["tenant operators)"] * 2, "plan and apply"
    table = penstock("fleet", "evidence", "--core", core.grpc_target).stdout
    assert "BROKEN: cloud only" in " ".join(table.split())


def test_a_device_with_a_credential_of_its_own_reports_for_itself_alone(
    core: CoreProcess, digits_build: DigitsBuild
) -> None:
    layout = Layout(digits_build.layout("v1"))
    report(core, layout, "camera-1", token=OWN, sequence=1)
    with pytest.raises(grpc.RpcError, match="belongs to device 'camera-1' and may not report for 'kiosk-1'") as caught:
        report(core, layout, "kiosk-1", token=OWN, sequence=1)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    known = json.loads(penstock("fleet", "devices", "--core", core.grpc_target, "-o", "json").stdout)
    assert [device["device_id"] for device in known] == ["camera-1"]
