"""When counts are written and delivered, on a virtual clock: after an outage, and over a link that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from edge_agent.reporting.delivery import Delivery
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.reporting.heartbeat import Heartbeats, Local
from edge_agent.reporting.outbox import Outbox
from edge_agent.serving.counts import IntervalCounts, Outcomes
from edge_agent.settings import HeartbeatSettings, OutboxSettings
from penstock.errors import Unavailable
from penstock.rpc.pb import fleet_pb2
from tests.edge_agent.reporting.test_heartbeat import DEVICE
from tests.penstock.hosting.rig import run_virtual
from tests.waiting import running

DIGEST = "sha256:" + "a" * 64
FLUSH_S, LONGEST_HEARTBEAT_S = OutboxSettings().flush_s, HeartbeatSettings().max_s


class _AtOnce(ThreadPoolExecutor):
    """Does disk work where it is asked for: on a virtual clock it takes no time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Cloud:
    """A fleet service behind a link that is up or down.

    Attributes:
        delivery_s: how long a delivery takes, also one that fails.
        beats: when heartbeats were answered.
        arrivals: when records came, with the rows in them.
    """

    is_up: bool = True
    delivery_s: float = 0.0
    beats: list[float] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    async def heartbeat(self, request: fleet_pb2.HeartbeatRequest) -> fleet_pb2.HeartbeatResponse:
        if not self.is_up:
            raise Unavailable("the cloud is out of reach")
        self.beats.append(now())
        return fleet_pb2.HeartbeatResponse(counts_instances=True, next_heartbeat_s=5.0)

    async def deliver(self, request: fleet_pb2.DeliverOutcomesRequest) -> int:
        was_up = self.is_up
        await asyncio.sleep(self.delivery_s)
        if not was_up:
            raise Unavailable("the cloud is out of reach")
        self.arrivals += [(now(), record.counts.requests) for record in request.records]
        return max(record.sequence for record in request.records)

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.arrivals)


class CountingOutbox(Outbox):
    appends = 0

    def append(self, intervals: Sequence[IntervalCounts]) -> None:
        super().append(intervals)
        self.appends += 1


def made(outcomes: Outcomes, link: FleetLink, outbox: Outbox) -> Delivery:
    return Delivery(outcomes, lambda: outbox, link, "d1", OutboxSettings(), now=now, random=lambda: 1.0)


def heard_by(delivery: Delivery) -> Local:
    return Local(
        reported=list,
        desire=lambda model, release: None,
        judge=lambda model, release, is_distrusted, trusted_at: None,
        remove=lambda model: None,
        queued=lambda: delivery.queued,
        reached=delivery.retry,
        instance=lambda: delivery.instance,
        learn=lambda counts, must_renew: delivery.learn(counts_instances=counts, must_renew=must_renew),
    )


@asynccontextmanager
async def reporting(cloud: Cloud, directory: Path) -> AsyncIterator[tuple[Delivery, CountingOutbox]]:
    """The agent's reports with its default settings; it answers one request a second."""
    asyncio.get_running_loop().set_default_executor(_AtOnce())
    link = cast(FleetLink, cloud)
    outbox = CountingOutbox(directory / "o.sqlite", OutboxSettings(), now=now)
    outcomes = Outcomes(now=now)
    delivery = made(outcomes, link, outbox)
    heartbeats = Heartbeats(link, DEVICE, heard_by(delivery), HeartbeatSettings(), random=lambda: 1.0)

    async def serve() -> None:
        tally = outcomes.open("toy", DIGEST)
        while True:
            await asyncio.sleep(1.0)
            tally.record(kept=1)

    async with running(serve()), running(delivery.run()), running(heartbeats.run()):
        yield delivery, outbox
    await delivery.close()


def test_records_go_up_with_the_first_heartbeat_after_an_outage(tmp_path: Path) -> None:
    async def outage() -> None:
        cloud = Cloud()
        async with reporting(cloud, tmp_path):
            await asyncio.sleep(600.5)
            cloud.is_up = False
            await asyncio.sleep(3600)
            cloud.is_up, back_at, before = True, now(), cloud.rows
            await asyncio.sleep(LONGEST_HEARTBEAT_S + 1)
            first_beat = next(at for at in cloud.beats if at >= back_at)
            first, *_ = (at for at, _ in cloud.arrivals if at >= back_at)
            assert first == first_beat
            assert cloud.rows - before >= 3600 - FLUSH_S

    run_virtual(outage)


def test_a_delivery_that_fails_while_the_cloud_comes_back_is_made_again_at_once(tmp_path: Path) -> None:
    async def outage() -> None:
        cloud = Cloud(delivery_s=4.0)
        async with reporting(cloud, tmp_path) as (delivery, _):
            await asyncio.sleep(FLUSH_S - 1)
            cloud.is_up = False
            await asyncio.sleep(2)  # the delivery of this minute is on its way, to nowhere
            cloud.is_up = True
            delivery.retry()  # what the first heartbeat that is answered again does
            await asyncio.sleep(2 * cloud.delivery_s)  # the end of the one that fails, and another one
            assert cloud.rows > 0

    run_virtual(outage)


def test_a_link_that_comes_and_goes_does_not_wear_the_disk(tmp_path: Path) -> None:
    async def flapping() -> None:
        cloud = Cloud()
        async with reporting(cloud, tmp_path) as (delivery, outbox):
            for _ in range(360):
                delivery.retry()
                await asyncio.sleep(10)
            assert outbox.appends <= 3600 / FLUSH_S + 1

    run_virtual(flapping)


@pytest.mark.parametrize("steps", range(8))
def test_a_stop_is_heard_also_in_the_moment_in_which_something_changes(tmp_path: Path, steps: int) -> None:
    """asyncio.wait_for of Python 3.11 forgets a cancellation that comes while what it waits for is done."""

    async def stop() -> None:
        cloud = Cloud()
        asyncio.get_running_loop().set_default_executor(_AtOnce())
        link, outcomes = cast(FleetLink, cloud), Outcomes(now=now)
        delivery = made(outcomes, link, Outbox(tmp_path / "o.sqlite", OutboxSettings(), now=now))
        heartbeats = Heartbeats(link, DEVICE, heard_by(delivery), HeartbeatSettings(), random=lambda: 1.0)
        await heartbeats._beat()
        for task, change in (
            (asyncio.create_task(delivery.run()), delivery.retry),
            (asyncio.create_task(heartbeats.run()), heartbeats.changed),
        ):
            await asyncio.sleep(1.0)
            change()
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=86_400)
            assert task.cancelled()
        await delivery.close()

    run_virtual(stop)


def test_counts_survive_a_stop_while_another_call_has_the_outbox(tmp_path: Path) -> None:
    async def stop() -> None:
        asyncio.get_running_loop().set_default_executor(_AtOnce())
        outcomes = Outcomes(now=now)
        delivery = made(outcomes, cast(FleetLink, Cloud()), Outbox(tmp_path / "o.sqlite", OutboxSettings(), now=now))
        outcomes.open("toy", DIGEST).record(kept=5)
        async with delivery._one_call, running(delivery.run()):
            await asyncio.sleep(1)
        await delivery.close()
        kept = Outbox(tmp_path / "o.sqlite", OutboxSettings(), now=now)
        assert kept.totals("toy", DIGEST).kept == 5
        kept.close()

    run_virtual(stop)
