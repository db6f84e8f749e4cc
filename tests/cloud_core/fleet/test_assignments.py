"""What is assigned is an artifact and a certificate; first versions, certificates and removals all travel by plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloud_core.fleet.devices import Report, ReportedModel
from cloud_core.fleet.messages import DesiredModel, PlanRequest, RolloutStatus
from cloud_core.fleet.service import FleetService
from cloud_core.fleet.settings import FleetSettings
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from cloud_core.state import fleet as rows
from penstock.artifact.layout import Layout
from penstock.errors import Conflict

GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=0, bake_s=0.0, max_silence_s=30.0, max_wave_s=600.0)
NAMES = ("cam-1", "cam-2")


class Fleet:
    """Two devices that do at once what they are told, and a core that can be started again from its database."""

    def __init__(self, database: Database, registry: Registry, clock: Any, layout: Layout, put: Any) -> None:
        self.database, self.registry, self.clock, self.layout, self._put = database, registry, clock, layout, put
        self.running = {name: ReportedModel(model="digits") for name in NAMES}
        self.restart()

    def restart(self) -> None:
        """As after kill -9: only what is in the database survives."""
        self.service = FleetService.open(self.database, self.registry, FleetSettings(), self.clock)

    async def push(self) -> None:
        await self._put(self.registry, self.layout)

    async def certify(self, serial: int) -> str:
        """``certify`` and ``push``: another certificate for the same variants."""
        (_, first), *_ = self.layout.certificates()
        digest = self.layout.attach_certificate(msgspec.structs.replace(first, serial=serial)).digest
        await self.push()
        return digest

    async def beat(self, name: str) -> DesiredModel | None:
        model = self.running[name]
        models = (model,) if model.active_digest else ()
        report = Report(device_id=name, target="any", subscriptions=("*",), models=models)
        desired = (await self.service.heartbeat(report)).models
        return desired[0] if desired else None

    async def follow(self, name: str) -> None:
        """Do what is desired, and report it."""
        self.clock.advance(1)
        desired = await self.beat(name)
        if desired is not None:
            self.running[name] = ReportedModel(
                model="digits",
                active_digest=desired.artifact_digest,
                active_version=desired.version,
                certificate_digest=desired.certificate_digest,
                desired_digest=desired.artifact_digest,
                desired_certificate_digest=desired.certificate_digest,
                phase="idle" if desired.is_removed else "committed",
            )
        await self.beat(name)
        await self.service.reconcile()

    async def follow_all(self) -> RolloutStatus:
        for name in (*NAMES, *NAMES):
            await self.follow(name)
        return self.service.rollout()

    async def start(
        self, version: str = "v1", waves: tuple[float, ...] = (), is_removal: bool = False
    ) -> RolloutStatus:
        request = PlanRequest(
            model="digits", version=version, selection=Selection(labels={}), waves=waves, gate=GATE,
            is_removal=is_removal,
        )  # fmt: skip
        planned = await self.service.plan(request)
        return await self.service.apply(planned.rollout.plan.rollout_id, planned.plan_digest)

    def on(self) -> dict[str, tuple[str, str]]:
        """What each device runs: artifact and certificate."""
        return {name: (model.active_digest, model.certificate_digest) for name, model in self.running.items()}


@pytest.fixture
async def fleet(database: Database, registry: Registry, clock: Any, make_layout: Any, put: Any) -> Fleet:
    found = Fleet(database, registry, clock, make_layout("v1"), put)
    await found.push()
    for name in NAMES:
        assert await found.beat(name) is None, "what was only pushed reaches no device"
    return found


async def test_a_first_version_reaches_devices_by_a_plan_of_one_wave_and_latecomers_when_it_succeeded(
    fleet: Fleet,
) -> None:
    view = await fleet.start()
    assert view.rollout.plan.wave_count == 1
    assert [device.base_digest for device in view.rollout.plan.devices] == ["", ""]
    report = Report(device_id="late", target="any", subscriptions=("*",))
    assert (await fleet.service.heartbeat(report)).models == ()
    assert (await fleet.follow_all()).rollout.state == "succeeded"
    first = fleet.layout.certificates()[0][0]
    assert fleet.on() == dict.fromkeys(NAMES, (fleet.layout.digest, first))
    (late,) = (await fleet.service.heartbeat(report)).models
    assert (late.artifact_digest, late.certificate_digest) == (fleet.layout.digest, first)


async def test_a_first_version_that_is_undone_leaves_devices_with_nothing(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    await fleet.service.undo(fleet.service.rollout().rollout.plan.rollout_id)
    fleet.restart()
    for name in NAMES:
        desired = await fleet.beat(name)
        assert desired is not None
        assert desired.is_removed
        await fleet.follow(name)
        assert await fleet.beat(name) is None


async def test_a_certificate_that_was_only_pushed_reaches_no_device(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    before = fleet.on()
    await fleet.certify(2)
    await fleet.follow_all()
    fleet.restart()
    await fleet.follow_all()
    assert fleet.on() == before


async def test_a_certificate_travels_in_waves_and_is_taken_back_by_undo(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    before = fleet.on()
    second = await fleet.certify(2)
    view = await fleet.start(waves=(0.5, 1.0))
    (first_name,) = [device.device_id for device in view.waves[0].devices]
    (other_name,) = [device.device_id for device in view.waves[1].devices]
    assert not view.waves[1].is_released, "the artifact alone does not make a device one that is done"
    await fleet.beat(other_name)
    await fleet.service.reconcile()
    await fleet.beat(first_name)
    await fleet.service.reconcile()
    assert not fleet.service.rollout().waves[1].is_released
    desired = await fleet.beat(other_name)
    assert desired is not None
    assert desired.certificate_digest == before[other_name][1]
    await fleet.follow(first_name)
    fleet.restart()
    assert (await fleet.follow_all()).rollout.state == "succeeded"
    assert {certificate for _, certificate in fleet.on().values()} == {second}
    await fleet.service.undo(fleet.service.rollout().rollout.plan.rollout_id)
    fleet.restart()
    await fleet.follow_all()
    assert fleet.on() == before
    # and a device that comes now gets what the fleet has, not the newest
    (late,) = (await fleet.service.heartbeat(Report(device_id="late", target="any", subscriptions=("*",)))).models
    assert late.certificate_digest == before[first_name][1]


async def test_an_aborted_certificate_goes_back_to_the_former_one(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    before = fleet.on()
    await fleet.certify(2)
    view = await fleet.start(waves=(0.5, 1.0))
    await fleet.follow(view.waves[0].devices[0].device_id)
    await fleet.service.abort()
    await fleet.follow_all()
    assert fleet.on() == before


async def test_a_device_that_cannot_use_the_certificate_fails_its_wave(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    second = await fleet.certify(2)
    view = await fleet.start(waves=(0.5, 1.0))
    name = view.waves[0].devices[0].device_id
    # what a device reports that found the certificate uncovered by a signature: it escalates everything
    fleet.running[name] = ReportedModel(
        model="digits", active_digest=fleet.layout.digest, active_version="v1", certificate_digest="",
        desired_digest=fleet.layout.digest, desired_certificate_digest=second, phase="committed",
    )  # fmt: skip
    await fleet.beat(name)
    await fleet.service.reconcile()
    waves = fleet.service.rollout().waves
    assert not waves[1].is_released
    assert waves[0].gate is not None
    assert waves[0].gate.verdict != "pass"


async def test_a_removal_is_a_rollout_and_undo_brings_the_model_back(fleet: Fleet) -> None:
    await fleet.start()
    await fleet.follow_all()
    before = fleet.on()
    view = await fleet.start("", is_removal=True, waves=(0.5, 1.0))
    assert view.rollout.plan.is_removal
    assert not view.waves[1].is_released
    await fleet.follow(view.waves[0].devices[0].device_id)
    fleet.restart()
    assert (await fleet.follow_all()).rollout.state == "succeeded"
    assert {artifact for artifact, _ in fleet.on().values()} == {""}
    assert fleet.registry.resolve("digits").digest == fleet.layout.digest, "the core goes on serving it"
    report = Report(
        device_id="asleep",
        target="any",
        subscriptions=("*",),
        models=(ReportedModel(model="digits", active_digest=fleet.layout.digest),),
    )
    (asleep,) = (await fleet.service.heartbeat(report)).models
    assert asleep.is_removed, "one that was away meanwhile drops it too"
    with pytest.raises(Conflict, match="does not have it"):
        await fleet.start("", is_removal=True)
    fleet.restart()
    await fleet.service.undo(fleet.service.rollout().rollout.plan.rollout_id)
    await fleet.follow_all()
    assert fleet.on() == before


async def test_the_core_s_default_moves_by_hand_only_where_no_device_runs_the_model(
    fleet: Fleet, make_layout: Any, put: Any
) -> None:
    second = await put(fleet.registry, make_layout("v2"))
    found, before = await fleet.service.actions.set_default("digits", "v2", Operator(who="ada", reason="better"))
    assert (found.digest, before) == (second, fleet.layout.digest)
    fleet.restart()
    assert fleet.registry.resolve("digits").digest == second
    (action,) = fleet.database.run_now(rows.read).actions
    assert (action.who, action.action, action.reason) == ("ada", "core default", "better")
    await fleet.start("v1")
    with pytest.raises(Conflict, match="penstock fleet apply digits:v2"):
        await fleet.service.actions.set_default("digits", "v2", Operator(who="ada"))


async def test_what_was_reported_before_a_removal_is_no_evidence_that_it_is_done(fleet: Fleet) -> None:
    """A core that is killed reads reports from its disk, and those may be older than the model on the device."""
    await fleet.start()
    await fleet.follow_all()
    await fleet.start("", is_removal=True)
    fleet.restart()
    await fleet.service.reconcile()
    assert fleet.service.rollout().rollout.state == "running"
    assert (await fleet.follow_all()).rollout.state == "succeeded"
