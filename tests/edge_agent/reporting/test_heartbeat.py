"""The conversation with the fleet service over real gRPC: heartbeats, wishes, and records that arrive exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.policy.model_state import Release, Slot
from edge_agent.reporting.heartbeat import Delivery, Device, FleetLink, Heartbeats, Local, bounded, reported
from edge_agent.reporting.outbox import Outbox
from edge_agent.serving.counts import IntervalCounts, OutcomeCounts, Outcomes
from edge_agent.settings import HeartbeatSettings, OutboxSettings
from edge_agent.updates.fetch import Transferred
from edge_agent.updates.reported import Report
from penstock.errors import StorageError
from penstock.rpc.pb import fleet_pb2
from tests.edge_agent.cloud import FakeFleet
from tests.waiting import until

DEVICE = Device(device_id="d1", agent_version="0.1", labels={"site": "x"}, target="any", subscriptions=("*",))
FAST = HeartbeatSettings(interval_s=0.05, min_s=0.01, max_s=0.2, timeout_s=2.0)
OUTBOX = OutboxSettings(flush_s=0.02, max_batch=3)
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    async with FakeFleet().serve() as found:
        yield found


@pytest.fixture
async def link(fleet: FakeFleet) -> AsyncIterator[FleetLink]:
    found = FleetLink(fleet.target, timeout_s=2.0)
    yield found
    await found.close()


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Wishes:
    """Stands for the updater."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Release]] = []
        self.reports: list[Report] = []
        self.times_reached = 0

    def heartbeats(self, link: FleetLink, settings: HeartbeatSettings = FAST) -> Heartbeats:
        def reached() -> None:
            self.times_reached += 1

        local = Local(
            reports=lambda: self.reports,
            desire=lambda model, release: self.taken.append((model, release)),
            queued=lambda: 7,
            reached=reached,
        )
        return Heartbeats(link, DEVICE, local, settings, random=lambda: 0.5)


def report(**changes: Any) -> Report:
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
    return Report(**{**known, **changes})


async def test_a_heartbeat_says_what_is(fleet: FakeFleet, link: FleetLink) -> None:
    wishes = Wishes()
    wishes.reports = [report()]
    async with running(wishes.heartbeats(link).run()):
        await until("a heartbeat", lambda: fleet.heartbeats)
    beat = fleet.heartbeats[0]
    assert (beat.device_id, beat.target, dict(beat.labels), list(beat.subscriptions)) == (
        "d1", "any", {"site": "x"}, ["*"],
    )  # fmt: skip
    assert beat.outbox_records == 7
    model = beat.models[0]
    assert (model.active_digest, model.active_version, model.phase) == (DIGEST, "v1", fleet_pb2.COMMITTED)
    assert model.certificate_digest == "sha256:" + "f" * 64, "the certificate that is used, not the one asked for"
    assert (model.fetched_bytes, model.total_bytes) == (3, 9)


@pytest.mark.parametrize("phase", ["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"])
def test_every_phase_has_a_name_on_the_wire(phase: str) -> None:
    message = reported(report(phase=phase, active=None, failed_digest=DIGEST, error="x"))
    assert fleet_pb2.UpdatePhase.Name(message.phase) == phase.upper()
    assert message.active_digest == ""


async def test_wishes_come_down(fleet: FakeFleet, link: FleetLink) -> None:
    wishes = Wishes()
    release = Release(version="v2", artifact_digest=DIGEST)
    fleet.desired["toy"] = release
    async with running(wishes.heartbeats(link).run()):
        await until("a wish", lambda: wishes.taken)
    assert wishes.taken[0] == ("toy", release)


@pytest.mark.parametrize(
    ("model", "digest"), [("../etc", DIGEST), ("toy", "sha256:../../x"), ("toy", ""), ("models", DIGEST)]
)
async def test_a_wish_that_could_become_a_path_is_dropped(
    fleet: FakeFleet, link: FleetLink, model: str, digest: str
) -> None:
    wishes = Wishes()
    fleet.desired[model] = Release(version="v2", artifact_digest=digest)
    fleet.desired["good"] = Release(version="v2", artifact_digest=DIGEST)
    async with running(wishes.heartbeats(link).run()):
        await until("the good wish", lambda: wishes.taken)
    assert {name for name, _ in wishes.taken} == {"good"}


async def test_a_change_is_reported_at_once(fleet: FakeFleet, link: FleetLink) -> None:
    fleet.next_heartbeat_s = 3600.0
    heartbeats = Wishes().heartbeats(link, msgspec.structs.replace(FAST, max_s=3600.0))
    async with running(heartbeats.run()):
        await until("the first heartbeat", lambda: len(fleet.heartbeats) == 1)
        heartbeats.changed()
        await until("a second one", lambda: len(fleet.heartbeats) == 2)


async def test_the_service_sets_the_pace_within_bounds(fleet: FakeFleet, link: FleetLink) -> None:
    heartbeats = Wishes().heartbeats(link, msgspec.structs.replace(FAST, min_s=1.0, max_s=60.0))
    for asked_s, at_least, at_most in [(0.001, 0.9, 1.0), (1e9, 54.0, 60.0), (10.0, 9.0, 10.0)]:
        fleet.next_heartbeat_s = asked_s
        assert at_least <= await heartbeats._beat() <= at_most


async def test_an_outage_backs_off_within_bounds_and_ends(fleet: FakeFleet, link: FleetLink) -> None:
    wishes = Wishes()
    heartbeats = wishes.heartbeats(link)
    await fleet.stop()
    delays = [await heartbeats._beat() for _ in range(6)]
    assert not heartbeats.is_reachable
    assert heartbeats.error
    assert delays == [pytest.approx(0.5 * min(0.05 * 2**i, 0.2)) for i in range(6)]
    await fleet.start()
    async with running(heartbeats.run()):
        await until("reached again", lambda: heartbeats.is_reachable)
    assert wishes.times_reached == 1
    assert heartbeats.error == ""


class Wall:
    """Wall clock of the tests."""

    now = 1_800_000_000.0


@asynccontextmanager
async def delivering(
    link: FleetLink, path: Path, open_outbox: Callable[[], Outbox] | None = None
) -> AsyncIterator[tuple[Delivery, Outcomes]]:
    outcomes = Outcomes(now=lambda: Wall.now)
    opened = open_outbox or (lambda: Outbox(path, OUTBOX, now=lambda: Wall.now))
    delivery = Delivery(outcomes, opened, link, "d1", OUTBOX, now=asyncio.get_running_loop().time, random=lambda: 0.0)
    try:
        yield delivery, outcomes
    finally:
        await delivery.close()


async def test_counts_arrive_once_and_leave_the_disk(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        tally = outcomes.open("toy", DIGEST)
        async with running(delivery.run()):
            for i in range(1, 6):
                tally.record(kept=i, escalated=1)
                await until("delivered", lambda i=i: fleet.rows() == sum(range(1, i + 1)) + i)  # type: ignore[misc]
            await until("acknowledged", lambda: delivery.queued == 0)
    assert {record.model for record in fleet.records.values()} == {"toy"}
    assert sum(record.counts.escalated for record in fleet.records.values()) == 5


async def test_an_outage_costs_nothing_but_time(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
    await fleet.stop()
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        tally = outcomes.open("toy", DIGEST)
        async with running(delivery.run()):
            for expected in range(1, 9):
                tally.record(unreachable=10)
                await until("queued", lambda expected=expected: delivery.queued >= expected)  # type: ignore[misc]
            assert delivery.error
            await fleet.start()
            delivery.retry()
            await until("delivered", lambda: delivery.queued == 0 and delivery.error == "")
    assert fleet.rows() == 80


async def test_lost_replies_do_not_count_twice(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
    fleet.loses_replies = True
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        tally = outcomes.open("toy", DIGEST)
        async with running(delivery.run()):
            for i in range(1, 7):
                tally.record(kept=1)
                await until("tried", lambda i=i: delivery.queued == i and fleet.deliveries >= i)  # type: ignore[misc]
            fleet.loses_replies = False
            await until("delivered", lambda: delivery.queued == 0)
    assert fleet.rows() == 6


async def test_records_of_an_earlier_life_are_delivered(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
    async with delivering(link, tmp_path / "o.sqlite") as (_, outcomes):
        outcomes.open("toy", DIGEST).record(kept=5)
    assert fleet.rows() == 0
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, _):
        assert await delivery.counted("toy", DIGEST) == OutcomeCounts(kept=5)
        async with running(delivery.run()):
            await until("delivered", lambda: fleet.rows() == 5)


async def test_a_lost_queue_under_a_known_device_id_is_not_taken_for_duplicates(
    fleet: FakeFleet, link: FleetLink, tmp_path: Path
) -> None:
    fleet.durable["d1"] = 500
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        outcomes.open("toy", DIGEST).record(kept=5)
        async with running(delivery.run()):
            await until("delivered", lambda: fleet.rows() == 5)
            await until("acknowledged", lambda: delivery.queued == 0)
    assert fleet.durable["d1"] == 501


async def test_counts_stay_in_memory_while_the_disk_refuses(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
    is_full = True

    def open_outbox() -> Outbox:
        if is_full:
            raise StorageError("the disk is full")
        return Outbox(tmp_path / "o.sqlite", OUTBOX, now=lambda: Wall.now)

    async with delivering(link, tmp_path, open_outbox) as (delivery, outcomes):
        tally = outcomes.open("toy", DIGEST)
        assert await delivery.counted("toy", DIGEST) == OutcomeCounts()
        async with running(delivery.run()):
            tally.record(kept=3)
            await until("held", lambda: delivery.queued == 1 and "disk is full" in delivery.error)
            tally.record(kept=4)
            await until("held", lambda: delivery.queued == 2)
            is_full = False
            delivery.retry()
            await until("delivered", lambda: fleet.rows() == 7)


def test_counts_in_memory_are_bounded_by_summing() -> None:
    many = [
        IntervalCounts(
            model="m", artifact_digest="ab"[i % 2], requests=1, kept=1, escalated=0, unreachable=0, failed=0, audited=0,
            audit_harm=0, started_at=float(i), ended_at=float(i + 1),
        )
        for i in range(300)
    ]  # fmt: skip
    assert bounded(many[:256], 256) == many[:256]
    first, second = bounded(many, 256)
    assert first.requests == second.requests == 150
    assert (first.started_at, first.ended_at) == (0.0, 299.0)
