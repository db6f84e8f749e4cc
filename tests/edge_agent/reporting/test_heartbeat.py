"""Heartbeats over real gRPC: what is reported goes up, what is desired comes down."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_agent.policy.model_state import Release, Slot
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.reporting.heartbeat import Device, Heartbeats, Local, heartbeat_request
from edge_agent.settings import HeartbeatSettings
from edge_agent.updates.fetch import Transferred
from edge_agent.updates.reported import ReportedModel
from penstock.rpc.pb import fleet_pb2
from tests.edge_agent.cloud import FakeFleet
from tests.waiting import running, until

DEVICE = Device(device_id="d1", agent_version="0.1", labels={"site": "x"}, target="any", subscriptions=("*",), run="r1")
FAST = HeartbeatSettings(interval_s=0.05, min_s=0.01, max_s=0.2, timeout_s=2.0)
DIGEST = "sha256:" + "a" * 64


class Models:
    """Stands for the updater."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Release]] = []
        self.removed: list[str] = []
        self.reported: list[ReportedModel] = []
        self.times_reached = 0
        self.distrusted: list[bool] = []
        self.learned: list[tuple[bool, bool]] = []

    def heartbeats(self, link: FleetLink, settings: HeartbeatSettings = FAST) -> Heartbeats:
        def reached() -> None:
            self.times_reached += 1

        local = Local(
            reported=lambda: self.reported,
            desire=lambda model, release: self.taken.append((model, release)),
            judge=lambda model, release, is_distrusted, trusted_at: self.distrusted.append(is_distrusted),
            remove=self.removed.append,
            queued=lambda: 7,
            reached=reached,
            instance=lambda: "i1",
            learn=lambda counts, must_renew: self.learned.append((counts, must_renew)),
        )
        return Heartbeats(link, DEVICE, local, settings, random=lambda: 0.5)


def reported(**changes: Any) -> ReportedModel:
    release = Release(version="v1", artifact_digest=DIGEST, certificate_digest="sha256:" + "c" * 64)
    known: dict[str, Any] = {
        "model": "toy",
        "active": Slot(release=release, variant_digest="sha256:" + "e" * 64, certificate_digest="sha256:" + "f" * 64),
        "previous": None,
        "desired": release,
        "phase": "committed",
        "error": "",
        "failed_digest": "",
        "transferred": Transferred(3, 9),
        "hosted": None,
    }
    return ReportedModel(**{**known, **changes})


async def test_a_heartbeat_says_what_is(fleet: FakeFleet, link: FleetLink) -> None:
    models = Models()
    models.reported = [reported()]
    async with running(models.heartbeats(link).run()):
        await until("a heartbeat", lambda: fleet.heartbeats)
    beat = fleet.heartbeats[0]
    assert (beat.device_id, beat.target, dict(beat.labels), list(beat.subscriptions)) == (
        "d1", "any", {"site": "x"}, ["*"],
    )  # fmt: skip
    assert beat.outbox_records == 7
    assert (beat.instance, beat.run) == ("i1", "r1")
    model = beat.models[0]
    assert (model.active_digest, model.active_version, model.phase) == (DIGEST, "v1", fleet_pb2.COMMITTED)
    assert model.certificate_digest == "sha256:" + "f" * 64, "the certificate that is used, not the one asked for"
    assert (model.fetched_bytes, model.total_bytes) == (3, 9)


@pytest.mark.parametrize("phase", ["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"])
def test_every_phase_has_a_name_on_the_wire(phase: str) -> None:
    models = [reported(phase=phase, active=None, failed_digest=DIGEST, error="x")]
    (message,) = heartbeat_request(DEVICE, models, queued=0).models
    assert fleet_pb2.UpdatePhase.Name(message.phase) == phase.upper()
    assert message.active_digest == ""


async def test_what_is_desired_comes_down(fleet: FakeFleet, link: FleetLink) -> None:
    models = Models()
    release = Release(version="v2", artifact_digest=DIGEST)
    fleet.desired["toy"] = release
    async with running(models.heartbeats(link).run()):
        await until("a desired model", lambda: models.taken)
    assert models.taken[0] == ("toy", release)


@pytest.mark.parametrize(
    ("model", "digest"), [("../etc", DIGEST), ("toy", "sha256:../../x"), ("toy", ""), ("models", DIGEST)]
)
async def test_a_desired_model_that_could_become_a_path_is_dropped(
    fleet: FakeFleet, link: FleetLink, model: str, digest: str
) -> None:
    models = Models()
    fleet.desired[model] = Release(version="v2", artifact_digest=digest)
    fleet.desired["good"] = Release(version="v2", artifact_digest=DIGEST)
    async with running(models.heartbeats(link).run()):
        await until("the good one", lambda: models.taken)
    assert {name for name, _ in models.taken} == {"good"}


async def test_a_change_is_reported_at_once(fleet: FakeFleet, link: FleetLink) -> None:
    fleet.next_heartbeat_s = 3600.0
    heartbeats = Models().heartbeats(link, msgspec.structs.replace(FAST, max_s=3600.0))
    async with running(heartbeats.run()):
        await until("the first heartbeat", lambda: len(fleet.heartbeats) == 1)
        heartbeats.changed()
        await until("a second one", lambda: len(fleet.heartbeats) == 2)


async def test_the_service_sets_the_pace_within_bounds(fleet: FakeFleet, link: FleetLink) -> None:
    heartbeats = Models().heartbeats(link, msgspec.structs.replace(FAST, min_s=1.0, max_s=60.0))
    for asked_s, at_least, at_most in [(0.001, 0.9, 1.0), (1e9, 54.0, 60.0), (10.0, 9.0, 10.0)]:
        fleet.next_heartbeat_s = asked_s
        assert at_least <= await heartbeats._beat() <= at_most


async def test_an_outage_backs_off_within_bounds_and_ends(fleet: FakeFleet, link: FleetLink) -> None:
    models = Models()
    heartbeats = models.heartbeats(link)
    await fleet.stop()
    delays = [await heartbeats._beat() for _ in range(6)]
    assert not heartbeats.is_reachable
    assert heartbeats.error
    assert delays == [pytest.approx(0.5 * min(0.05 * 2**i, 0.2)) for i in range(6)]
    await fleet.start()
    async with running(heartbeats.run()):
        await until("reached again", lambda: heartbeats.is_reachable)
    assert models.times_reached == 1
    assert heartbeats.error == ""


async def test_what_the_service_says_of_instances_is_passed_on(fleet: FakeFleet, link: FleetLink) -> None:
    models = Models()
    async with running(models.heartbeats(link).run()):
        await until("an answer", lambda: models.learned)
        assert models.learned[-1] == (True, False)
        fleet.must_renew = True
        await until("another one", lambda: models.learned[-1] == (True, True))
        fleet.counts_instances, fleet.must_renew = False, False
        await until("an older core", lambda: models.learned[-1] == (False, False))
