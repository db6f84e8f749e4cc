"""Several agents under one device id: nothing is lost, nothing is mixed, and somebody is told."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest

from cloud_core.api.rpc.fleet_codec import encode_device, encode_rollout
from cloud_core.fleet.devices import Report, ReportedModel
from cloud_core.fleet.messages import DeviceStatus, PlanRequest
from cloud_core.fleet.outcome_totals import Record
from cloud_core.fleet.service import FleetService
from cloud_core.fleet.settings import EvidenceSettings, FleetSettings
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from penstock.cli.fleet.device_view import devices_text
from penstock.cli.fleet.view import rollout_text
from penstock.errors import InvalidInput, QueueFull
from penstock.rpc.pb.fleet_pb2 import ListDevicesResponse
from penstock.wire.outcomes import OutcomeCounts
from tests.cloud_core.releases import certificate_of, released

SETTINGS = FleetSettings(max_instances_per_device=3, evidence=EvidenceSettings(min_devices=2))
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=50, bake_s=10.0, max_silence_s=30.0, max_wave_s=600.0)


class Rig:
    """Agents that report as ``cam-1`` to a fleet service with digits:v1 (released) and v2."""

    def __init__(self, database: Database, registry: Registry, clock: Any, digests: dict[str, str]) -> None:
        self.database, self.registry, self.clock, self.digests = database, registry, clock, digests
        released(database, registry, "digits", digests["v1"])
        self.restart()

    def restart(self) -> None:
        """As after kill -9: only what is in the database survives."""
        self.service = FleetService.open(self.database, self.registry, SETTINGS, self.clock)

    async def beat(self, run: str, instance: str = "", version: str = "v1", name: str = "cam-1") -> bool:
        """Report; return whether the agent is told to take a new instance."""
        digest = self.digests[version]
        model = ReportedModel(
            model="digits", active_digest=digest, active_version=version, phase="committed",
            certificate_digest=certificate_of(self.registry, digest),
        )  # fmt: skip
        report = Report(device_id=name, target="any", subscriptions=("*",), models=(model,), instance=instance, run=run)
        self.clock.advance(1)
        return (await self.service.heartbeat(report)).must_renew_instance

    async def both(self, rounds: int = 3, *, second: str = "B") -> None:
        for _ in range(rounds):
            await self.beat("r1", "A")
            await self.beat("r2", second)

    async def deliver(
        self, instance: str, sequence: int, kept: int = 1, harm: int = 0, version: str = "v1", name: str = "cam-1"
    ) -> int:
        counts = OutcomeCounts(kept=kept, audited=kept, audit_harm=harm)
        record = Record(sequence=sequence, model="digits", artifact_digest=self.digests[version], counts=counts)
        return await self.service.deliver_outcomes(name, [record], instance=instance)

    def device(self) -> DeviceStatus:
        return next(one for one in self.service.devices() if one.report.device_id == "cam-1")

    def counted(self) -> dict[str, int]:
        return {one.instance: sum(c.kept for c in one.outcomes.values()) for one in self.device().instances}


@pytest.fixture
async def rig(database: Database, registry: Registry, clock: Any, make_layout: Any, put: Any) -> Rig:
    digests = {tag: await put(registry, make_layout(tag)) for tag in ("v1", "v2")}
    return Rig(database, registry, clock, digests)


async def test_each_instance_has_sequences_of_its_own(rig: Rig) -> None:
    await rig.both()
    for sequence in (1, 2, 3):
        assert await rig.deliver("A", sequence, kept=10) == sequence
        assert await rig.deliver("B", sequence, kept=1) == sequence
    assert await rig.deliver("A", 2, kept=10) == 3, "a redelivered record counts once"
    rig.restart()
    assert await rig.deliver("B", 3) == 3
    assert rig.counted() == {"A": 30, "B": 3}
    assert sum(counts.kept for counts in rig.device().outcomes.values()) == 33


async def test_an_older_agent_goes_on_where_it_was(rig: Rig) -> None:
    await rig.beat("")
    await rig.deliver("", 1, kept=5)
    await rig.deliver("", 2, kept=5)
    # it is updated: what it left behind is delivered as before, what comes later under its instance
    await rig.beat("r1", "A")
    assert await rig.deliver("", 2, kept=5) == 2
    assert await rig.deliver("", 3, kept=5) == 3
    assert await rig.deliver("A", 4, kept=7) == 4
    assert rig.counted() == {"": 15, "A": 7}
    assert not rig.device().is_duplicated


async def test_two_agents_are_seen_said_and_shown(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.beat("r1", "A")
    assert not rig.device().is_duplicated
    await rig.both()
    await rig.deliver("A", 1, kept=4)
    await rig.deliver("B", 1, kept=2)
    (told,) = [record for record in caplog.records if record.message.startswith("several agents report")]
    assert told.levelno == logging.ERROR
    assert rig.service.duplicated == 1
    status = rig.device()
    assert (status.is_duplicated, {one.instance: one.agents for one in status.instances}) == (True, {"A": 1, "B": 1})
    text = devices_text(ListDevicesResponse(devices=[encode_device(status)], matching=1, known=1))
    assert "2 agents under this id" in text
    assert "cam-1: 2 agents report under this id" in text
    assert "A: 4 rows, B: 2 rows" in text


async def test_it_is_over_when_one_of_them_is_gone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.both()
    rig.clock.advance(SETTINGS.gate.max_silence_s)
    await rig.beat("r1", "A")
    await rig.beat("r1", "A")
    assert not rig.device().is_duplicated
    assert rig.service.duplicated == 0
    assert any(record.message.startswith("one agent reports") for record in caplog.records)


async def test_a_restart_and_a_renewed_instance_are_no_second_agent(rig: Rig) -> None:
    for run, instance in (("r1", "A"), ("r2", "A"), ("r3", "A"), ("r3", "C"), ("r4", "C")):
        for _ in range(3):
            assert not await rig.beat(run, instance)
        assert not rig.device().is_duplicated, (run, instance)


async def test_of_two_that_cannot_tell_that_they_are_copies_one_takes_a_new_instance(rig: Rig) -> None:
    answers = [await rig.beat(run, "A") for run in ("r1", "r2", "r1", "r2", "r1", "r2", "r1")]
    assert answers == [False, False, False, False, False, True, False]
    assert not await rig.beat("r2", "B")
    assert rig.device().is_duplicated


async def test_a_harmful_copy_is_not_hidden_by_a_healthy_one(rig: Rig) -> None:
    """In one pot, 1 harmful of 100 rows would be below the promise of 3%."""
    for name in ("cam-1", "cam-2"):
        await rig.beat("r1", "A", name=name)
        await rig.beat("r2", "B", name=name)
    for sequence in range(1, 31):
        for instance, kept, harm in (("A", 1000, 0), ("B", 10, 8)):
            for name in ("cam-1", "cam-2"):
                await rig.deliver(instance, sequence, kept=kept, harm=harm, name=name)
    rig.restart()
    (promise,) = rig.service.promises()
    assert (promise.devices, promise.audited, promise.audit_harm) == (2, 2 * 30 * 1010, 2 * 30 * 8)
    assert promise.alarmed_at is not None


async def test_the_evidence_of_an_instance_is_under_the_certificate_that_it_uses(rig: Rig) -> None:
    await rig.beat("r1", "A", "v1")
    await rig.beat("r2", "B", "v2")
    await rig.deliver("A", 1, kept=10, version="v1")
    await rig.deliver("B", 1, kept=20, version="v2")
    found = {promise.artifact_digest: promise.audited for promise in rig.service.promises()}
    assert found == {rig.digests["v1"]: 10, rig.digests["v2"]: 20}


async def test_a_rollout_waits_tells_and_keeps_rows_apart(rig: Rig) -> None:
    await rig.both()
    await rig.deliver("A", 1, kept=100, version="v2")  # before the wave: does not count for it
    request = PlanRequest(model="digits", version="v2", selection=Selection(labels={}), waves=(1.0,), gate=GATE)
    made = await rig.service.plan(request)
    await rig.service.apply(made.rollout.plan.rollout_id)
    rig.clock.advance(20)
    for _ in range(3):
        await rig.beat("r1", "A", "v2")
        await rig.beat("r2", "B", "v2")
    await rig.deliver("A", 2, kept=30, version="v2")
    await rig.deliver("B", 1, kept=40, version="v2")
    await rig.service.reconcile()
    view = rig.service.rollout()
    assert view.rollout.state == "running"
    assert view.waves[0].gate is not None
    assert "waiting for cam-1 (several agents report under this id)" in view.waves[0].gate.reason
    (device,) = view.waves[0].devices
    assert (device.is_duplicated, device.counts.audited) == (True, 70)
    text = rollout_text(encode_rollout(view))
    assert "several agents report under this id ('penstock fleet devices')" in text
    rig.clock.advance(SETTINGS.gate.max_silence_s)
    await rig.beat("r1", "A", "v2")
    await rig.beat("r1", "A", "v2")
    await rig.service.reconcile()
    view = rig.service.rollout()
    assert view.rollout.state == "succeeded", view.rollout.status
    assert any("one agent reports under this id again" in event.text for event in view.rollout.events)


async def test_a_harmful_copy_stops_a_rollout_that_the_other_would_pass(rig: Rig) -> None:
    await rig.both()
    request = PlanRequest(model="digits", version="v2", selection=Selection(labels={}), waves=(1.0,), gate=GATE)
    made = await rig.service.plan(request)
    await rig.service.apply(made.rollout.plan.rollout_id)
    for _ in range(3):
        await rig.beat("r1", "A", "v2")
        await rig.beat("r2", "B", "v2")
    await rig.deliver("A", 1, kept=10_000, version="v2")
    await rig.deliver("B", 1, kept=40, harm=20, version="v2")
    await rig.service.reconcile()
    view = rig.service.rollout()
    assert view.rollout.state == "stopped_by_gate", view.rollout.status


async def test_instances_are_bounded_and_no_live_one_is_forgotten(rig: Rig) -> None:
    for sequence, instance in enumerate("ABCD", start=1):
        await rig.beat("r1", instance)
        await rig.deliver(instance, sequence, kept=sequence)
    assert rig.counted() == {"B": 2, "C": 3, "D": 4}
    rig.restart()
    assert rig.counted() == {"B": 2, "C": 3, "D": 4}
    for run, instance in itertools.chain(*[[("b", "B"), ("c", "C"), ("d", "D")]] * 3):
        await rig.beat(run, instance)
    with pytest.raises(QueueFull, match="max_instances_per_device"):
        await rig.deliver("E", 1)
    assert rig.counted() == {"B": 2, "C": 3, "D": 4}


@pytest.mark.parametrize("key", ["x" * 65, "a/b", "a\nb", "\u00e4", " "])
async def test_an_instance_that_no_agent_makes_is_refused(rig: Rig, key: str) -> None:
    with pytest.raises(InvalidInput, match="instance: "):
        await rig.beat("r1", key)
    with pytest.raises(InvalidInput, match="instance: "):
        await rig.deliver(key, 1)
    with pytest.raises(InvalidInput, match="run: "):
        await rig.beat(key, "A")
