"""Splits, shadows, pins, policies, loading: what operators say takes effect, is recorded, and outlives the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_core.fleet.service import FleetService
from cloud_core.policy import canary
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.traffic import CanaryGate, VersionPolicy
from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings
from cloud_core.state import Database
from cloud_core.traffic.canaries import WHO, Canaries
from cloud_core.traffic.service import TrafficService
from penstock.artifact.layout import Layout, VariantDraft
from penstock.errors import Conflict, Internal, InvalidInput, NotFound, Unavailable
from tests.cloud_core.releases import released
from tests.cloud_core.rig import Rig, onnx_layout, onnx_spec, rig_of
from tests.penstock.hosting.rig import outcome, rows

ANNA = Operator(who="anna", reason="a test")
QUICK = CanaryGate(min_requests=20, bake_s=0.0, slow_s=30.0)


@dataclass
class World:
    """A core without sockets: mlp with v1 (default), v2 and v3."""

    database: Database
    registry: Registry
    clock: Any
    settings: ServingSettings
    digests: dict[str, str] = field(default_factory=dict)
    rigs: list[Rig] = field(default_factory=list)

    async def start(self) -> None:
        """Begin as after a start, with what is in the database."""
        await self.stop()
        self.rig = rig_of(self.registry, self.settings)
        self.rigs.append(self.rig)
        self.fleet = FleetService.open(self.database, self.registry, None, self.clock)
        lanes = self.rig.controller.lanes
        self.service = TrafficService(
            self.database, self.registry, self.rig.controller, self.fleet.actions, self.settings.traffic, self.clock
        )
        self.canaries = Canaries(self.service, self.registry, lanes, self.rig.measures, self.clock)
        self.loop = asyncio.create_task(self.rig.controller.run())
        await self.rig.controller.settled.wait()

    async def stop(self) -> None:
        if self.rigs:
            self.loop.cancel()
            await asyncio.wait([self.loop])
            await self.rigs.pop().controller.close(5.0)

    async def answers(self, count: int = 200, **more: Any) -> list[Any]:
        return [await self.rig.infer(rows(1), **more) for _ in range(count)]

    async def versions(self, count: int = 200, **more: Any) -> dict[str, int]:
        found: dict[str, int] = {}
        for answer in await self.answers(count, **more):
            found[answer.version] = found.get(answer.version, 0) + 1
        return found

    def states(self) -> dict[str, str]:
        return {state.version: state.state for state in self.rig.controller.index()}


@pytest.fixture
async def make_world(
    database: Database, registry: Registry, clock: Any, put: Callable[..., Any], tmp_path: Path
) -> AsyncIterator[Callable[..., Any]]:
    made: list[World] = []

    async def make(**settings: Any) -> World:
        world = World(database, registry, clock, msgspec.convert(settings, ServingSettings))
        made.append(world)
        for number in (1, 2, 3):
            clock.advance(1)
            world.digests[f"v{number}"] = await put(registry, onnx_layout(tmp_path, f"v{number}", seed=number))
        await world.start()
        return world

    yield make
    for world in made:
        await world.stop()


@pytest.fixture
async def world(make_world: Callable[..., Any]) -> World:
    made: World = await make_world()
    return made


async def test_requests_that_name_no_version_are_divided_and_answers_say_by_which_arm(world: World) -> None:
    await world.service.split("mlp", [("v2", 30), ("v3", 30)], ANNA)
    found = await world.versions(400)
    assert found.keys() == {"v1", "v2", "v3"}
    assert 60 < found["v2"] < 180
    answer = (await world.answers(1))[0]
    assert answer.parameters["arm"] == {"v1": "base"}.get(answer.version, answer.version)
    named = await world.rig.infer(rows(1), version="v1")
    assert "arm" not in named.parameters
    assert await world.versions(20, version="v3") == {"v3": 20}
    percents = {state.version: state.percent for state in world.rig.controller.index()}
    assert percents == {"v1": 40, "v2": 30, "v3": 30}
    assert world.rig.plane.metadata("mlp").properties["traffic"] == "base 40%, v2 30%, v3 30%"
    assert sum(world.service.counts("mlp")["v2"]["requests"].values()) >= found["v2"]  # type: ignore[attr-defined]


async def test_a_parameter_keeps_a_caller_with_one_version(world: World) -> None:
    await world.service.split("mlp", [("v2", 50)], ANNA, sticky="parameter:user")
    by_user = {user: await world.versions(5, parameters={"user": user}) for user in map(str, range(20))}
    assert all(len(found) == 1 for found in by_user.values())
    assert {version for found in by_user.values() for version in found} == {"v1", "v2"}
    assert (await world.versions(60)).keys() == {"v1", "v2"}  # who has no key is drawn
    assert all(one.inflight == one.inflight_bytes == 0 for one in world.rig.plane.served())


async def test_a_version_that_gets_more_keeps_the_callers_that_it_had(world: World) -> None:
    async def with_v2() -> set[str]:
        users = map(str, range(40))
        return {user for user in users if "v2" in await world.versions(1, parameters={"user": user})}

    await world.service.split("mlp", [("v2", 30)], ANNA, sticky="parameter:user")
    before = await with_v2()
    world.clock.advance(60)
    await world.service.split("mlp", [("v2", 60)], ANNA, sticky="parameter:user")
    assert before < await with_v2()


async def test_what_was_said_outlives_the_core_and_is_recorded_with_who_and_why(world: World) -> None:
    await world.service.split("mlp", [("v2", 100)], ANNA)
    await world.service.pin("mlp", "v3", ANNA)
    await world.service.keep("mlp", VersionPolicy(kind="latest", latest=1), ANNA)
    await world.start()
    assert await world.versions(10) == {"v2": 10}
    said = world.service.said("mlp")
    assert (said.pins, str(said.versions)) == ((world.digests["v3"],), "latest 1")
    done = [(one.action, one.who, one.reason) for one in world.fleet.actions.done()]
    assert done == [(f"core {verb}", "anna", "a test") for verb in ("split", "pin", "versions")]
    assert said.notes[0].text == "split: 100% to v2"


async def test_ending_a_split_sends_everything_back_to_the_default(world: World) -> None:
    await world.service.split("mlp", [("v2", 100)], ANNA)
    await world.service.end("mlp", ANNA)
    assert await world.versions(10) == {"v1": 10}
    with pytest.raises(Conflict):
        await world.service.end("mlp", ANNA)


async def test_an_arm_that_passes_step_by_step_becomes_the_default(world: World) -> None:
    await world.service.split("mlp", [("v2", 50)], ANNA, steps=(50, 80, 100), gate=QUICK)
    await world.answers(10)
    await world.canaries.look()
    assert world.service.splits()["mlp"].step == 0  # too few requests to have shown anything
    assert "requests answered" in world.service.verdicts["mlp"]["v2"].reason
    await world.answers(100)
    await world.canaries.look()
    assert world.service.splits()["mlp"].arms[0].percent == 80
    assert world.service.counts("mlp") == {}  # each step is judged by what it saw itself
    await world.answers(100)
    await world.canaries.look()
    assert world.service.splits() == {}
    assert world.registry.resolve("mlp").tag == "v2"
    assert world.service.ends == {("mlp", "promoted"): 1}
    default = [one for one in world.fleet.actions.done() if one.action == "core default"]
    assert [one.who for one in default] == [WHO]


async def test_an_arm_that_fails_loses_its_traffic_and_the_reason_is_recorded(world: World) -> None:
    await world.service.split("mlp", [("v2", 50)], ANNA, steps=(50, 100), gate=QUICK)
    broken = world.rig.controller.router.route("mlp", "v2", world.rig.context()).served

    async def fail(*_: Any, **__: Any) -> Any:
        raise Internal("the model failed")

    broken.pick().infer = fail  # type: ignore[method-assign,union-attr]
    for _ in range(40):
        await outcome(world.rig.infer(rows(1)))
    await world.canaries.look()
    assert world.service.splits() == {}
    assert await world.versions(10) == {"v1": 10}
    assert world.service.ends == {("mlp", "aborted"): 1}
    last = world.fleet.actions.done()[-1]
    assert (last.action, last.who) == ("core split", WHO)
    assert "requests failed" in last.reason
    assert world.registry.resolve("mlp").tag == "v1"


async def test_a_shadow_is_compared_after_the_answer_and_its_failures_are_nobodys(world: World) -> None:
    await world.service.shadow("mlp", "v2", 1.0, ANNA)
    assert await world.versions(50) == {"v1": 50}
    shadow = world.rig.controller.lanes.shadows["mlp"]
    await shadow.idle()
    counts = shadow.counts["base"]
    assert counts.agreed + counts.disagreed == 50
    served = world.rig.controller.router.route("mlp", "v2", world.rig.context()).served

    async def fail(*_: Any, **__: Any) -> Any:
        raise Internal("the shadow failed")

    served.pick().infer = fail  # type: ignore[method-assign,union-attr]
    assert await world.versions(50) == {"v1": 50}
    await shadow.idle()
    assert counts.failed == 50


async def test_a_shadow_that_falls_behind_leaves_out_what_has_no_room(make_world: Callable[..., Any]) -> None:
    world = await make_world(traffic={"shadow_max_rows": 3})
    await world.service.shadow("mlp", "v2", 1.0, ANNA)
    await asyncio.gather(*(world.rig.infer(rows(1)) for _ in range(20)))
    shadow = world.rig.controller.lanes.shadows["mlp"]
    await shadow.idle()
    counts = shadow.counts["base"]
    assert counts.left_out > 0
    assert counts.left_out + counts.agreed + counts.disagreed == 20


async def test_a_shadow_that_disagrees_stops_the_split_of_its_version(world: World) -> None:
    gate = CanaryGate(min_requests=0, bake_s=0.0, slow_s=30.0, max_disagreement=0.01)
    await world.service.shadow("mlp", "v2", 1.0, ANNA)
    await world.service.split("mlp", [("v2", 5)], ANNA, gate=gate)
    for number in range(60):
        await world.rig.infer(rows(number - 30))
    await world.rig.controller.lanes.shadows["mlp"].idle()
    seen = world.rig.controller.lanes.shadows["mlp"].counts["base"]
    assert seen.disagreed > seen.agreed / 10, "two random models were expected to differ"
    await world.canaries.look()
    assert world.service.splits() == {}
    assert "shadowed rows differ" in world.fleet.actions.done()[-1].reason


async def test_an_arm_that_is_not_in_memory_leaves_its_requests_to_the_default(world: World) -> None:
    await world.service.split("mlp", [("v2", 100)], ANNA)
    world.rig.controller.router.take_out(world.rig.controller.variant_of(world.digests["v2"]).digest)
    assert (await world.rig.infer(rows(1))).version == "v1"
    await world.rig.controller.reconciled(10.0)
    assert (await world.rig.infer(rows(1))).version == "v2"


async def test_unloaded_versions_stay_out_until_they_are_loaded(world: World) -> None:
    await world.service.unload("mlp", "v2", ANNA)
    assert world.states() == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "READY"}
    refused = await outcome(world.rig.infer(rows(1), version="v2"))
    assert isinstance(refused, Unavailable)
    assert "penstock core load mlp v2" in refused.message
    await world.start()
    assert world.states()["v2"] == "UNAVAILABLE"
    await world.service.load("mlp", "v2", ANNA)
    assert (await world.rig.infer(rows(1), version="v2")).version == "v2"
    await world.service.unload("mlp", "", ANNA)
    assert set(world.states().values()) == {"UNAVAILABLE"}
    assert isinstance(await outcome(world.rig.infer(rows(1))), Unavailable)
    await world.service.load("mlp", "", ANNA)
    assert set(world.states().values()) == {"READY"}


async def test_a_pinned_version_is_never_pushed_out(make_world: Callable[..., Any]) -> None:
    world = await make_world(max_loaded_models=2)
    assert world.states() == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "READY"}
    await world.service.pin("mlp", "v3", ANNA)
    assert isinstance(await outcome(world.rig.infer(rows(1), version="v2")), Unavailable)
    await world.rig.controller.reconciled(10.0)
    assert world.states()["v3"] == "READY"
    with pytest.raises(Conflict, match="max_loaded_models is 2"):
        await world.service.pin("mlp", "v2", ANNA)
    with pytest.raises(Conflict, match="is pinned"):
        await world.service.unload("mlp", "v3", ANNA)
    await world.service.pin("mlp", "v3", ANNA, is_pinned=False)
    await world.service.load("mlp", "v2", ANNA)
    assert world.states() == {"v1": "READY", "v2": "READY", "v3": "UNAVAILABLE"}


async def test_a_version_policy_says_which_versions_are_served(make_world: Callable[..., Any]) -> None:
    world = await make_world(traffic={"versions": {"*": "latest 1"}})
    assert world.states() == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "READY"}  # the default is always served
    refused = await outcome(world.rig.infer(rows(1), version="v2"))
    assert isinstance(refused, Unavailable)
    assert "version policy of mlp is latest 1" in refused.message
    await world.service.keep("mlp", VersionPolicy(kind="given", given=("v2",)), ANNA)
    await world.rig.controller.reconciled(10.0)
    assert world.states() == {"v1": "READY", "v2": "READY", "v3": "UNAVAILABLE"}
    await world.service.keep("mlp", None, ANNA)
    await world.rig.controller.reconciled(10.0)
    assert world.states()["v3"] == "READY"


async def test_the_default_answers_all_the_while_it_moves_though_only_one_has_room(
    make_world: Callable[..., Any],
) -> None:
    world = await make_world(max_loaded_models=1)
    assert world.states() == {"v1": "READY", "v2": "UNAVAILABLE", "v3": "UNAVAILABLE"}
    seen: list[str] = []
    stop = asyncio.Event()

    async def call() -> None:
        while not stop.is_set():
            seen.append((await world.rig.infer(rows(1))).version)
            await asyncio.sleep(0)

    callers = [asyncio.create_task(call()) for _ in range(4)]
    for version in ("v2", "v3", "v1"):
        await world.service.set_default("mlp", version, ANNA)
        await world.rig.controller.reconciled(10.0)
    stop.set()
    await asyncio.gather(*callers)  # no request failed
    assert list(dict.fromkeys(seen)) == ["v1", "v2", "v3"]
    assert (await world.rig.infer(rows(1))).version == "v1"
    assert len(world.rig.controller.router.served) == 1


async def test_what_makes_no_sense_is_refused_and_changes_nothing(world: World) -> None:
    service = world.service
    for error, call in (
        (NotFound, service.split("mlp", [("v9", 5)], ANNA)),
        (NotFound, service.split("nobody", [("v2", 5)], ANNA)),
        (Conflict, service.split("mlp", [("v1", 5)], ANNA)),
        (InvalidInput, service.split("mlp", [("v2", 101)], ANNA)),
        (InvalidInput, service.split("mlp", [("v2", 5)], ANNA, steps=(10, 100))),
        (InvalidInput, service.shadow("mlp", "v2", 2.0, ANNA)),
        (Conflict, service.shadow("mlp", "v1", 0.5, ANNA)),
        (Conflict, service.shadow("mlp", "", 0.5, ANNA)),
        (Conflict, service.advance("mlp", ANNA)),
        (NotFound, service.keep("mlp", VersionPolicy(kind="given", given=("v9",)), ANNA)),
        (NotFound, service.load("mlp", "v9", ANNA)),
    ):
        with pytest.raises(error):
            await call
    assert world.fleet.actions.done() == ()


async def test_steps_to_a_default_that_devices_run_are_a_rollouts_and_refused(
    world: World,
) -> None:
    released(world.database, world.registry, "mlp", world.digests["v1"])
    await world.start()
    with pytest.raises(Conflict, match="fleet apply"):
        await world.service.split("mlp", [("v2", 5)], ANNA, steps=(5, 100))
    await world.service.split("mlp", [("v2", 5)], ANNA, steps=(5, 50))


async def test_an_operator_goes_on_without_the_gate_and_a_split_of_the_default_ends(world: World) -> None:
    await world.service.split("mlp", [("v2", 5)], ANNA, steps=(5, 50), gate=QUICK)
    await world.service.advance("mlp", ANNA)
    assert world.service.splits()["mlp"].arms[0].percent == 50
    with pytest.raises(Conflict, match="last step"):
        await world.service.advance("mlp", ANNA)
    await world.service.set_default("mlp", "v2", ANNA)
    await world.canaries.look()
    assert world.service.splits() == {}
    assert world.service.said("mlp").notes[-1].reason == "v2 is the default version"


async def test_what_is_slow_is_found_out_from_the_default_version(world: World) -> None:
    await world.service.split("mlp", [("v2", 50)], ANNA, gate=CanaryGate(min_requests=1, bake_s=0.0))
    await world.canaries.look()
    assert "not known yet" in world.service.verdicts["mlp"]["v2"].reason
    await world.versions(150, version="v1")
    await world.versions(30)
    before = world.service.counts("mlp")
    assert before.keys() == {"base", "v2"}
    await world.canaries.look()
    assert world.service.splits()["mlp"].gate.slow_s > 0
    assert world.service.counts("mlp") == before


async def test_a_version_that_cannot_be_loaded_says_why_to_who_loads_it(
    world: World, put: Callable[..., Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    layout = Layout.create(tmp_path / "layout-bad")
    layout.pack([VariantDraft(spec=onnx_spec("broken"), weights=bad)], tag="v1")
    await put(world.registry, layout)
    with pytest.raises(Unavailable, match="cannot load"):
        await world.service.load("broken", "v1", ANNA)


async def test_a_limit_in_bytes_is_named_where_it_keeps_a_version_out(make_world: Callable[..., Any]) -> None:
    world = await make_world(max_loaded_bytes=1)
    assert isinstance(await outcome(world.rig.infer(rows(1))), Unavailable)
    await world.rig.controller.reconciled(10.0)
    refused = await outcome(world.rig.infer(rows(1)))
    assert "serving.max_loaded_bytes" in str(refused)
    with pytest.raises(Conflict, match="max_loaded_bytes is 1"):
        await world.service.pin("mlp", "v2", ANNA)


async def test_a_step_that_was_decided_before_an_operator_spoke_is_not_taken(world: World) -> None:
    before = (await world.service.split("mlp", [("v2", 5)], ANNA, steps=(5, 100), gate=QUICK)).split
    assert before is not None
    step = canary.next_step(before, "it passed", now=0.0)
    now = (await world.service.split("mlp", [("v3", 50)], ANNA)).split
    with pytest.raises(Conflict, match="changed meanwhile"):
        await world.service.take("mlp", before, step, ANNA)
    assert world.service.splits() == {"mlp": now}
    assert world.registry.resolve("mlp").tag == "v1"


async def test_a_split_of_a_version_that_is_deleted_ends_and_no_request_fails(world: World) -> None:
    await world.service.split("mlp", [("v2", 100)], ANNA)
    await world.registry.delete_manifest("mlp", world.digests["v2"])
    assert await world.versions(5) == {"v1": 5}
    await world.canaries.look()
    assert world.service.splits() == {}
    assert world.service.said("mlp").notes[-1].reason == "v2 was deleted from the registry"
