"""A hundred simulated devices and the real fleet service on one virtual clock, from one printed seed.

A device decides with the agent's own ``policy.update`` over its own model state and speaks the real messages. It dials,
fetches, proves, serves on probation, commits or reverts, is killed now and then, and delivers outcome counts at least
once.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cloud_core.api.rpc import fleet_codec as codec
from cloud_core.fleet.messages import PlanRequest, RolloutStatus
from cloud_core.fleet.service import FleetService
from cloud_core.fleet.settings import FleetSettings
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from edge_agent.policy import update
from edge_agent.policy.model_state import Release
from edge_agent.policy.update import UpdateLimits
from edge_agent.reporting.heartbeat import Device, heartbeat_request
from edge_agent.updates.fetch import Transferred
from edge_agent.updates.reported import ReportedModel
from penstock.artifact import manifests
from penstock.artifact.layout import Layout, VariantDraft
from penstock.rpc.pb import fleet_pb2 as pb
from penstock.wire import tensors
from penstock.wire.outcomes import OutcomeCounts
from penstock.wire.tensors import TensorSpec
from tests.cloud_core.releases import released
from tests.edge_agent.simulated_device import Nature, SimulatedDevice
from tests.factories import certificate_for, echo_spec

AGENTS = 100
DYING = AGENTS // 50
PROMISED = 0.03
GATE = Gate(
    alpha=0.05, max_failure_rate=0.05, min_audited=100, bake_s=20.0, max_silence_s=15.0, max_wave_s=300.0,
    max_unreached_s=25.0,
)  # fmt: skip
LIMITS = UpdateLimits(probation_s=4.0, probation_requests=1_000_000, max_crashes=3, patience=3)
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


@dataclass
class Agent:
    """One device with its outbox. ``harm`` is the true rate of harmful answers among audited ones, by artifact."""

    name: str
    dice: random.Random
    device: SimulatedDevice
    harm: dict[str, float] = field(default_factory=dict)
    dies_at: float = float("inf")
    killed_share: float = 0.0  # of its dials, after which the process is killed and starts again
    next_at: float = 0.0
    sequence: int = 0
    outbox: list[pb.OutcomeRecord] = field(default_factory=list)

    @property
    def active(self) -> str:
        return self.device.active_digest

    def live(self, desired: Sequence[pb.DesiredModel], now: float) -> None:
        """Take in what is desired, act on it, and serve for one interval."""
        for model in desired:
            self.device.desire(
                Release(
                    version=model.version,
                    artifact_digest=model.artifact_digest,
                    certificate_digest=model.certificate_digest,
                )
            )
        if self.dice.random() < self.killed_share:
            self.device.restart()
        self.device.run(now)
        if self.device.serving_digest:
            self.serve(self.device.serving_digest)

    def serve(self, digest: str) -> None:
        audited = self.dice.randint(0, 8)
        harm = sum(self.dice.random() < self.harm.get(digest, 0.0) for _ in range(audited))
        self.sequence += 1
        counts = OutcomeCounts(kept=70, escalated=30, audited=audited, audit_harm=harm)
        message = pb.OutcomeCounts(**counts.columns())
        self.outbox.append(
            pb.OutcomeRecord(sequence=self.sequence, model="digits", artifact_digest=digest, counts=message)
        )

    def heartbeat(self) -> pb.HeartbeatRequest:
        state, progress = self.device.state, self.device.progress
        phase, error = update.phase(state, progress, LIMITS)
        failure = state.failure_of(state.desired) if state.desired else None
        model = ReportedModel(
            model="digits",
            active=state.active,
            previous=state.previous,
            desired=state.desired,
            phase=phase,
            error=error,
            failed_digest=failure.release.artifact_digest if failure and failure.is_blocked else "",
            transferred=Transferred(),
            hosted=None,
        )
        who = Device(device_id=self.name, agent_version="", labels={}, target="any", subscriptions=("*",))
        return heartbeat_request(who, [model], queued=len(self.outbox))


class World:
    """The virtual clock, the devices, and a core that can be killed and started again."""

    def __init__(self, root: Path, seed: int, digests: dict[str, str], database: Database) -> None:
        self.root, self.digests, self.database = root, digests, database
        self.dice = random.Random(seed)
        self.now_s = 0.0
        self.is_up = True
        self.agents = [self.new_agent(f"d{i:03}", random.Random(self.dice.random())) for i in range(AGENTS)]
        self.start_core()

    def new_agent(self, name: str, dice: random.Random) -> Agent:
        device = SimulatedDevice(limits=LIMITS, fetch_s=lambda: dice.uniform(1, 6))
        return Agent(name=name, dice=dice, device=device)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def start_core(self) -> None:
        """From the database alone: whatever the process before had in memory is gone."""
        registry = Registry.open(self.root, self.database, now=self.now)
        self.service = FleetService.open(self.database, registry, FleetSettings(), self.now)
        self.registry = registry

    async def run_until(self, end_s: float) -> None:
        """Let time pass, one second at a time."""
        while self.now_s < end_s:
            self.now_s += 1
            for agent in self.agents:
                if self.now_s >= agent.next_at and self.now_s < agent.dies_at:
                    await self.dial(agent)
            if self.is_up:
                await self.service.reconcile()
                self.check_invariants()

    async def dial(self, agent: Agent) -> None:
        agent.next_at = self.now_s + agent.dice.choice((1, 2, 2, 3))
        desired: Sequence[pb.DesiredModel] = ()
        if self.is_up:
            desired = codec.encode_reply(await self.service.heartbeat(codec.decode_report(agent.heartbeat()))).models
            if agent.outbox and agent.dice.random() < 0.3:
                delivery = pb.DeliverOutcomesRequest(device_id=agent.name, records=agent.outbox)
                durable = await self.service.deliver_outcomes(agent.name, codec.decode_records(delivery))
                if agent.dice.random() > 0.1:  # now and then the reply is lost, and all of it is delivered again
                    agent.outbox = [record for record in agent.outbox if record.sequence > durable]
        agent.live(desired, self.now_s)

    async def run_until_over(self, within_s: float) -> None:
        """Let time pass until the rollout is over, and every device had the time to follow."""
        end_s = self.now_s + within_s
        while self.service.rollout().rollout.state in ("running", "paused"):
            assert self.now_s < end_s, self.service.rollout().rollout.status
            await self.run_until(self.now_s + 5)
        await self.run_until(self.now_s + 25)

    def check_invariants(self) -> None:
        for entry in self.service._store.entries.values():
            verdicts = [wave.verdict.verdict if wave.verdict else "" for wave in entry.rollout.waves]
            assert "fail" not in verdicts or entry.rollout.state == "stopped_by_gate"

    async def settle(self) -> None:
        """The first version on every device."""
        await self.run_until(25)
        assert {agent.active for agent in self.agents} == {self.digests["v1"]}

    async def start(self, version: str) -> RolloutStatus:
        request = PlanRequest(
            model="digits", version=version, selection=Selection(labels={}), waves=(0.05, 0.3, 1.0), seed=7, gate=GATE
        )
        view = await self.service.plan(request)
        return await self.service.apply(view.rollout.plan.rollout_id, view.plan_digest)

    def alive(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.dies_at > self.now_s]

    def counted(self) -> dict[str, int]:
        return {
            name: sum(counts.requests for totals in by_instance.values() for counts in totals.values())
            for name, by_instance in self.service._store.totals.items()
        }


def write_artifact(root: Path, tag: str) -> Layout:
    def draft(role: manifests.Role, target: str) -> VariantDraft:
        spec = echo_spec(role, target=target)
        weights = root / f"{tag}.json"
        weights.write_bytes(msgspec.json.encode([X]) + b" " * int(tag[1:]))
        return VariantDraft(spec=spec, weights=weights, golden=tensors.pack({}) if role == "edge" else None)

    layout = Layout.create(root / f"layout-{tag}")
    layout.pack([draft("edge", "any"), draft("cloud", "cpu")], tag=tag)
    layout.attach_certificate(certificate_for(layout, audit_max_harm=PROMISED))
    return layout


@pytest.fixture
def seed() -> int:
    """PENSTOCK_SIMULATION_SEED repeats a run; the seed of a failed one is in its output."""
    chosen = int(os.environ.get("PENSTOCK_SIMULATION_SEED", "20261122"))
    print(f"PENSTOCK_SIMULATION_SEED={chosen}")
    return chosen


@pytest.fixture
async def world(tmp_path: Path, seed: int) -> AsyncIterator[World]:
    database = Database.in_memory()
    registry = Registry.open(tmp_path, database)
    digests = {}
    for tag in ("v1", "v2", "v3"):
        layout = write_artifact(tmp_path, tag)
        for descriptor in layout.reachable():
            data = layout.blobs.read(descriptor.digest)
            registry.store.put(data)
            if descriptor.media_type in (manifests.INDEX, manifests.MANIFEST):
                await registry.put_manifest("digits", descriptor.digest, descriptor.media_type, data)
        await registry.put_manifest("digits", tag, manifests.INDEX, layout.blobs.read(layout.digest))
        digests[tag] = layout.digest
    released(database, registry, "digits", digests["v1"])
    yield World(tmp_path, seed, digests, database)
    database.close()


def be_harmful(world: World, version: str, rate: float) -> None:
    for agent in world.agents:
        agent.harm[world.digests[version]] = rate


async def test_a_healthy_version_reaches_the_whole_fleet(world: World) -> None:
    be_harmful(world, "v2", PROMISED / 2)
    await world.settle()
    await world.start("v2")
    await world.run_until_over(200)
    view = world.service.rollout()
    assert view.rollout.state == "succeeded", view.rollout.status
    assert len(view.waves) == 3
    assert {agent.active for agent in world.agents} == {world.digests["v2"]}
    assert world.registry.resolve("digits").tag == "v2"


async def test_a_harmful_version_is_stopped_in_the_first_wave_and_everybody_goes_back(world: World) -> None:
    be_harmful(world, "v3", 0.15)
    await world.settle()
    view = await world.start("v3")
    first = {device.device_id for device in view.waves[0].devices}
    assert len(first) == AGENTS // 20
    await world.run_until_over(120)
    view = world.service.rollout()
    assert view.rollout.state == "stopped_by_gate"
    assert len(view.rollout.waves) == 1
    assert "audited rows harmful" in view.rollout.status
    assert {agent.active for agent in world.agents} == {world.digests["v1"]}


async def test_a_version_that_does_not_prove_itself_is_stopped(world: World) -> None:
    for agent in world.agents:
        if agent.dice.random() < 0.8:
            agent.device.nature = {world.digests["v2"]: "lies"}
    await world.settle()
    await world.start("v2")
    await world.run_until_over(200)
    view = world.service.rollout()
    assert view.rollout.state == "stopped_by_gate"
    assert "failed to update, tolerated 5.0%" in view.rollout.status
    assert {agent.active for agent in world.agents} == {world.digests["v1"]}


async def test_a_few_devices_that_die_do_not_block_a_healthy_version(world: World) -> None:
    await world.settle()
    for agent in world.dice.sample(world.agents, DYING):
        agent.dies_at = world.now_s + world.dice.uniform(5, 60)
    await world.start("v2")
    await world.run_until_over(200)
    assert world.service.rollout().rollout.state == "succeeded", world.service.rollout().rollout.status
    assert len(world.alive()) == AGENTS - DYING
    assert {agent.active for agent in world.alive()} == {world.digests["v2"]}


async def test_a_tenth_of_the_fleet_is_switched_off_at_night_and_follows_in_the_morning(world: World) -> None:
    await world.settle()
    view = await world.start("v2")
    off = {name for wave in view.waves for name in [device.device_id for device in wave.devices][::10]}
    sleepers = [agent for agent in world.agents if agent.name in off]
    for agent in sleepers:
        agent.next_at = float("inf")  # silent from before it was told
    await world.run_until_over(170)
    view = world.service.rollout()
    assert view.rollout.state == "succeeded", view.rollout.status
    passed = [event.text for event in view.rollout.events if "committed" in event.text]
    assert len(passed) == 3
    assert all("not reached" in text for text in passed), passed
    assert {agent.active for agent in sleepers} == {world.digests["v1"]}
    for agent in sleepers:
        agent.next_at = world.now_s
    await world.run_until(world.now_s + 30)
    assert {agent.active for agent in world.agents} == {world.digests["v2"]}


async def test_a_core_that_is_killed_again_and_again_loses_nothing(world: World) -> None:
    await world.settle()
    await world.start("v2")
    for _ in range(12):
        await world.run_until(world.now_s + world.dice.randint(1, 12))
        released = len(world.service.rollout().rollout.waves)
        world.is_up = False
        await world.run_until(world.now_s + world.dice.randint(1, 40))
        world.start_core()
        world.is_up = True
        assert len(world.service.rollout().rollout.waves) == released
    await world.run_until_over(200)
    assert world.service.rollout().rollout.state == "succeeded", world.service.rollout().rollout.status
    # the outboxes drain: every row that was served is counted, and counted once
    delivered = world.counted()
    for agent in world.agents:
        waiting = sum(r.counts.requests for r in agent.outbox if r.sequence > _durable(world, agent))
        assert delivered[agent.name] + waiting == 100 * agent.sequence


@pytest.mark.parametrize("nature", ["kills_on_load", "kills_in_service", "missing"])
async def test_a_version_that_kills_or_is_not_there_is_stopped_and_every_device_serves(
    world: World, nature: Nature
) -> None:
    for agent in world.agents:
        agent.device.nature = {world.digests["v2"]: nature}
    await world.settle()
    await world.start("v2")
    await world.run_until_over(120)
    assert world.service.rollout().rollout.state == "stopped_by_gate"
    assert {agent.device.serving_digest for agent in world.agents} == {world.digests["v1"]}
    assert max(agent.device.loads[world.digests["v2"]] for agent in world.agents) <= LIMITS.max_crashes


async def test_devices_that_are_killed_now_and_then_still_reach_a_healthy_version(world: World) -> None:
    await world.settle()
    for agent in world.agents:
        agent.killed_share = 0.02
    await world.start("v2")
    await world.run_until_over(200)
    assert world.service.rollout().rollout.state == "succeeded", world.service.rollout().rollout.status
    assert {agent.active for agent in world.agents} == {world.digests["v2"]}


async def test_an_aborted_rollout_and_the_next_one(world: World) -> None:
    await world.settle()
    await world.start("v3")
    await world.run_until(world.now_s + 20)
    await world.service.abort()
    await world.run_until(world.now_s + 30)
    assert {agent.active for agent in world.agents} == {world.digests["v1"]}
    await world.start("v2")
    await world.run_until_over(200)
    assert world.service.rollout().rollout.state == "succeeded"
    await world.service.undo(world.service.rollout().rollout.plan.rollout_id)
    await world.run_until(world.now_s + 30)
    assert {agent.active for agent in world.agents} == {world.digests["v1"]}


def _durable(world: World, agent: Agent) -> int:
    device = world.service._devices.get(agent.name)
    assert device is not None
    return device.delivered[""].sequence if device.delivered else 0
