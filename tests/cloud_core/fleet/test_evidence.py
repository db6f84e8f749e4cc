"""Audits of all devices, pooled in a real database: with and without a rollout, over restarts and against liars."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from cloud_core.fleet.devices import Report, ReportedModel
from cloud_core.fleet.outcome_totals import Record
from cloud_core.fleet.service import FleetService
from cloud_core.fleet.settings import EvidenceSettings, FleetSettings
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from penstock.wire.outcomes import OutcomeCounts
from tests.cloud_core.releases import released

SETTINGS = FleetSettings(evidence=EvidenceSettings(demotes=True, max_promises=2), max_artifacts_per_device=3)
NAMES = [f"cam-{number:02}" for number in range(12)]


class Fleet:
    """Twelve devices that run digits:v1 and report to a fleet service."""

    def __init__(self, database: Database, registry: Registry, clock: Any, digest: str) -> None:
        self.database, self.registry, self.clock, self.digest = database, registry, clock, digest
        certificate = registry.certificate_of(digest)
        assert certificate is not None
        self.certificate_digest = certificate[0]
        released(database, registry, "digits", digest)
        self.sequences = dict.fromkeys(NAMES, 0)
        self.start()

    def start(self, settings: FleetSettings = SETTINGS) -> None:
        """As after kill -9: only what is in the database survives."""
        self.service = FleetService.open(self.database, self.registry, settings, self.clock)

    async def beat(self, name: str, *, certificate_digest: str | None = None, **changes: Any) -> bool:
        """Report; return whether the device is told to keep nothing."""
        model = ReportedModel(
            model="digits",
            active_digest=self.digest,
            certificate_digest=self.certificate_digest if certificate_digest is None else certificate_digest,
            phase="committed",
            **changes,
        )
        report = Report(device_id=name, target="any", subscriptions=("*",), models=(model,))
        (desired,) = (await self.service.heartbeat(report)).models
        return desired.is_distrusted

    async def audit(self, name: str, audited: int, harm: int) -> None:
        self.sequences[name] += 1
        counts = OutcomeCounts(kept=audited, audited=audited, audit_harm=harm)
        record = Record(sequence=self.sequences[name], model="digits", artifact_digest=self.digest, counts=counts)
        await self.service.deliver_outcomes(name, [record])

    async def everybody(self, *, audited: int = 5, harm: int = 0) -> None:
        for name in NAMES:
            await self.beat(name)
            await self.audit(name, audited, harm)


@pytest.fixture
async def fleet(database: Database, registry: Registry, clock: Any, make_layout: Any, put: Any) -> Fleet:
    return Fleet(database, registry, clock, await put(registry, make_layout("v1")))


async def test_a_fleet_sees_harm_without_a_rollout_says_so_and_demotes(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        await fleet.everybody()
    (healthy,) = fleet.service.promises()
    assert (healthy.devices, healthy.audited, healthy.alarmed_at) == (12, 1200, None)
    assert not await fleet.beat(NAMES[0])
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            await fleet.everybody(harm=1)
    assert [record.message for record in caplog.records] == ["the fleet sees more harm than was certified"]
    (promise,) = fleet.service.promises()
    assert promise.alarmed_at == fleet.clock().timestamp()
    assert promise.is_distrusted
    assert await fleet.beat(NAMES[0])
    assert fleet.service.rollouts() == ()


async def test_evidence_and_an_alarm_outlive_kill_9(fleet: Fleet) -> None:
    for _ in range(3):
        await fleet.everybody(harm=1)
        before = fleet.service.promises()
        fleet.start()
        assert fleet.service.promises() == before
    await fleet.everybody(harm=5)
    assert await fleet.beat(NAMES[0])
    fleet.start()
    assert await fleet.beat(NAMES[0])


async def test_a_round_that_a_restart_interrupts_goes_on(fleet: Fleet) -> None:
    await fleet.everybody()
    for name in NAMES[:3]:  # the round ended with the eighth device: these join the last four of the twelve
        await fleet.audit(name, 5, 5)
    fleet.start()
    pool = next(iter(fleet.service._store.evidence._pools.values()))
    assert pool.votes == {*NAMES[8:], *NAMES[:3]}
    assert pool.devices[NAMES[0]][""].vote_harm == 5


async def test_nobody_is_demoted_unless_the_operator_wants_it(fleet: Fleet) -> None:
    fleet.start(FleetSettings())
    for _ in range(6):
        await fleet.everybody(harm=5)
    (promise,) = fleet.service.promises()
    assert promise.alarmed_at is not None
    assert not promise.is_distrusted
    assert not await fleet.beat(NAMES[0])


async def test_one_forged_record_and_one_heavy_device_hide_nothing(fleet: Fleet) -> None:
    await fleet.everybody()
    await fleet.audit(NAMES[0], 10**6, 0)
    for _ in range(10):
        for name in NAMES[1:]:
            await fleet.audit(name, 5, 1)
        await fleet.audit(NAMES[0], 10**6, 0)
    assert fleet.service.promises()[0].alarmed_at is not None


async def test_one_device_raises_no_alarm_for_all(fleet: Fleet) -> None:
    for _ in range(30):
        await fleet.everybody()
        await fleet.audit(NAMES[0], 10**6, 10**6)
    assert fleet.service.promises()[0].alarmed_at is None


async def test_another_certificate_is_another_promise_and_old_ones_make_room(fleet: Fleet) -> None:
    await fleet.everybody(harm=5)
    for number in range(3):
        await fleet.beat(NAMES[0], certificate_digest=f"sha256:{number}" * 1)
        await fleet.audit(NAMES[0], 5, 0)
    # certificates that the registry does not know promise nothing
    assert [promise.certificate_digest for promise in fleet.service.promises()] == [fleet.certificate_digest]
    await fleet.beat(NAMES[0], certificate_digest="")
    audited = fleet.service.promises()[0].audited
    await fleet.audit(NAMES[0], 5, 0)
    assert fleet.service.promises()[0].audited == audited


async def test_a_replayed_delivery_is_no_new_evidence(fleet: Fleet) -> None:
    await fleet.everybody(harm=1)
    before = fleet.service.promises()
    fleet.sequences = dict.fromkeys(NAMES, 0)
    await fleet.everybody(harm=1)
    assert fleet.service.promises() == before


async def test_what_a_device_makes_up_does_not_keep_the_core_from_starting(fleet: Fleet) -> None:
    await fleet.beat(NAMES[0], max_harm=float("nan"))
    await fleet.audit(NAMES[0], 5, 0)
    await fleet.service.close()
    fleet.start()
    assert fleet.service.promises()[0].bound == 0.03


async def test_a_forgotten_device_takes_its_evidence_along(fleet: Fleet) -> None:
    fleet.start(msgspec.structs.replace(SETTINGS, max_devices=12, forget_s=10.0))
    await fleet.everybody()
    fleet.clock.advance(100)
    await fleet.beat("new-1")
    assert fleet.service.promises()[0].devices == 0
    fleet.start()
    assert fleet.service.promises()[0].devices == 0
