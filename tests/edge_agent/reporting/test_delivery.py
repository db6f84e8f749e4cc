"""Delivering outcome counts over real gRPC: every record arrives, and is counted once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.reporting.delivery import Delivery, bounded
from edge_agent.reporting.ends import EndsFile
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.reporting.outbox import Outbox
from edge_agent.serving.counts import IntervalCounts, Outcomes
from edge_agent.settings import OutboxSettings
from penstock.errors import NewerState, StorageError
from penstock.wire.outcomes import OutcomeCounts
from tests.edge_agent.cloud import FakeFleet
from tests.waiting import running, until

OUTBOX = OutboxSettings(flush_s=0.02, max_batch=3)
DIGEST = "sha256:" + "a" * 64


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
    delivery.learn(counts_instances=True)
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
            await until("delivered, and said so", lambda: delivery.queued == 0 and not delivery.error)
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


async def test_records_from_before_a_restart_are_delivered(fleet: FakeFleet, link: FleetLink, tmp_path: Path) -> None:
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
    fleet.durable["d1", ""] = 500
    fleet.counts_instances = False
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        delivery.learn(counts_instances=False)
        outcomes.open("toy", DIGEST).record(kept=5)
        async with running(delivery.run()):
            await until("delivered", lambda: fleet.rows() == 5)
            await until("acknowledged", lambda: delivery.queued == 0)
    assert fleet.durable["d1", ""] == 501


async def test_nothing_goes_up_before_it_is_known_under_which_name(
    fleet: FakeFleet, link: FleetLink, tmp_path: Path
) -> None:
    outcomes = Outcomes(now=lambda: Wall.now)
    outbox = Outbox(tmp_path / "o.sqlite", OUTBOX, now=lambda: Wall.now)
    delivery = Delivery(
        outcomes, lambda: outbox, link, "d1", OUTBOX, now=asyncio.get_running_loop().time, random=lambda: 0.0
    )
    outcomes.open("toy", DIGEST).record(kept=5)
    async with running(delivery.run()):
        await until("queued", lambda: delivery.queued == 1)
        await delivery.flush()
        assert fleet.deliveries == 0
        delivery.learn(counts_instances=True)
        await until("delivered", lambda: fleet.rows() == 5)
    assert list(fleet.durable) == [("d1", outbox.instance)]
    await delivery.close()


async def test_an_agent_that_has_to_renew_its_instance_loses_nothing(
    fleet: FakeFleet, link: FleetLink, tmp_path: Path
) -> None:
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, outcomes):
        tally = outcomes.open("toy", DIGEST)
        async with running(delivery.run()):
            tally.record(kept=5)
            await until("delivered", lambda: fleet.rows() == 5)
            before = delivery.instance
            delivery.learn(counts_instances=True, must_renew=True)
            await until("renewed", lambda: delivery.instance != before)
            tally.record(kept=7)
            await until("delivered", lambda: fleet.rows() == 12)
            assert set(fleet.durable) == {("d1", before), ("d1", delivery.instance)}


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


@pytest.mark.parametrize("is_full", [False, True])
async def test_an_end_is_unclean_while_counts_are_in_memory_only(
    link: FleetLink, tmp_path: Path, is_full: bool
) -> None:
    def open_outbox() -> Outbox:
        if is_full:
            raise StorageError("the disk is full")
        return Outbox(tmp_path / "o.sqlite", OUTBOX, now=lambda: Wall.now)

    outcomes, loop = Outcomes(now=lambda: Wall.now), asyncio.get_running_loop()
    ends = EndsFile(tmp_path / "ends.json", OUTBOX.flush_s)
    delivery = Delivery(outcomes, open_outbox, link, "d1", OUTBOX, now=loop.time, random=lambda: 0.0, ends=ends)
    await delivery.open()
    outcomes.open("toy", DIGEST).record(kept=5)
    await delivery.close()
    assert EndsFile(tmp_path / "ends.json", OUTBOX.flush_s).ends.unclean == int(is_full)


def test_counts_in_memory_are_bounded_by_summing() -> None:
    many = [
        IntervalCounts(
            model="m",
            artifact_digest="ab"[i % 2],
            counts=OutcomeCounts(kept=1),
            started_at=float(i),
            ended_at=float(i + 1),
        )
        for i in range(300)
    ]
    assert bounded(many[:256], 256) == many[:256]
    first, second = bounded(many, 256)
    assert first.counts == second.counts == OutcomeCounts(kept=150)
    assert (first.started_at, first.ended_at) == (0.0, 299.0)


async def test_an_outbox_of_a_newer_release_is_found_at_the_start(link: FleetLink, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "o.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    async with delivering(link, tmp_path / "o.sqlite") as (delivery, _):
        with pytest.raises(NewerState, match="schema version 99"):
            await delivery.open()


async def test_a_full_disk_does_not_keep_the_agent_from_starting(link: FleetLink, tmp_path: Path) -> None:
    def open_outbox() -> Outbox:
        raise StorageError("the disk is full")

    async with delivering(link, tmp_path, open_outbox) as (delivery, _):
        await delivery.open()
        assert delivery.error == "the disk is full"
