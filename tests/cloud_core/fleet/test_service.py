"""The fleet service: devices, outcomes, rollouts, restarts, and devices that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from dataclasses import replace
from typing import Any

import pytest

from cloud_core.api.rpc import fleet_codec
from cloud_core.fleet.devices import Report, ReportedModel
from cloud_core.fleet.messages import PlanRequest, RolloutStatus
from cloud_core.fleet.outcome_totals import Record
from cloud_core.fleet.service import FleetService
from cloud_core.fleet.settings import FleetSettings
from cloud_core.policy.rollouts import gates
from cloud_core.policy.rollouts.gate_settings import Gate, audits_needed
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.rollouts.verdicts import GateTest
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from penstock.cli.fleet.view import rollout_text
from penstock.errors import Conflict, InvalidInput, NotFound, QueueFull
from penstock.wire.outcomes import OutcomeCounts
from tests.cloud_core.releases import certificate_of, released
from tests.waiting import until

GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=50, bake_s=10.0, max_silence_s=30.0, max_wave_s=600.0)
SETTINGS = FleetSettings(max_devices=10, forget_s=1000.0, max_records=100, max_artifacts_per_device=3, max_rollouts=5)


class Rig:
    """A fleet service over a registry with digits:v1 (default) and v2, v3."""

    def __init__(self, database: Database, registry: Registry, clock: Any, digests: dict[str, str]) -> None:
        self.database, self.registry, self.clock, self.digests = database, registry, clock, digests
        released(database, registry, "digits", digests["v1"])
        self.service = FleetService.open(database, registry, SETTINGS, clock)

    def restart(self) -> None:
        """As after kill -9: only what is in the database survives."""
        self.service = FleetService.open(self.database, self.registry, SETTINGS, self.clock)

    async def beat(self, name: str, version: str = "", **changes: Any) -> str:
        """A heartbeat of a device that runs ``version``; returns the version it is told to run."""
        active = self.digests.get(version, "")
        model = {"model": "digits", "active_digest": active, "active_version": version, "phase": "committed"}
        model["certificate_digest"] = certificate_of(self.registry, active)
        report = Report(
            device_id=name,
            target=changes.pop("target", "any"),
            labels=changes.pop("labels", {}),
            subscriptions=("*",),
            models=(ReportedModel(**{**model, **changes}),),
        )
        desired = (await self.service.heartbeat(report)).models
        return desired[0].version if desired else ""

    async def audit(self, name: str, sequence: int, version: str, audited: int = 100, harm: int = 0) -> int:
        counts = OutcomeCounts(kept=audited, audited=audited, audit_harm=harm)
        record = Record(sequence=sequence, model="digits", artifact_digest=self.digests[version], counts=counts)
        return await self.service.deliver_outcomes(name, [record])

    async def plan(
        self, version: str = "v2", *, waves: tuple[float, ...] = (0.5, 1.0), **changes: Any
    ) -> RolloutStatus:
        selection = Selection(device_ids=changes.pop("devices", ()), labels=changes.pop("labels", {}))
        gate, by = changes.pop("gate", GATE), changes.pop("by", Operator())
        request = PlanRequest(model="digits", version=version, selection=selection, waves=waves, gate=gate, **changes)
        return await self.service.plan(request, by)

    async def start(self, version: str = "v2", **changes: Any) -> RolloutStatus:
        view = await self.plan(version, **changes)
        return await self.service.apply(view.rollout.plan.rollout_id, view.plan_digest)

    def wave(self, view: RolloutStatus, number: int = 0) -> list[str]:
        return [device.device_id for device in view.waves[number].devices]

    async def pass_wave(self, names: list[str], version: str, sequence: int) -> RolloutStatus:
        for name in names:
            await self.beat(name, version)
            await self.audit(name, sequence, version)
        self.clock.advance(11)
        for device in self.service.devices():
            running = device.report.model("digits").active_version
            await self.beat(device.report.device_id, running)
        await self.service.reconcile()
        return self.service.rollout()


@pytest.fixture
async def rig(database: Database, registry: Registry, clock: Any, make_layout: Any, put: Any) -> Rig:
    digests = {tag: await put(registry, make_layout(tag)) for tag in ("v1", "v2", "v3")}
    return Rig(database, registry, clock, digests)


async def test_a_device_without_assignment_runs_the_release_with_its_certificate(rig: Rig) -> None:
    report = Report(device_id="cam-1", target="any", subscriptions=("digits", "unknown-model"))
    reply = await rig.service.heartbeat(report)
    (desired,) = reply.models
    assert (desired.version, desired.artifact_digest) == ("v1", rig.digests["v1"])
    found = rig.registry.certificate_of(rig.digests["v1"])
    assert found is not None
    assert desired.certificate_digest == found[0]
    assert reply.next_heartbeat_s == SETTINGS.heartbeat_s


async def test_heartbeats_find_artifact_and_certificate_in_memory(rig: Rig) -> None:
    (before,) = (await rig.service.heartbeat(Report(device_id="a", target="any", subscriptions=("*",)))).models
    assert before.certificate_digest
    shutil.rmtree(rig.registry.store.root / "blobs")
    (after,) = (await rig.service.heartbeat(Report(device_id="b", target="any", subscriptions=("*",)))).models
    assert after == before


async def test_a_device_that_cannot_run_the_release_stays_with_what_it_has(
    rig: Rig, make_layout: Any, put: Any
) -> None:
    await put(rig.registry, make_layout("v4", edge_target="x86-64-vnni"))
    released(rig.database, rig.registry, "digits", rig.registry.resolve("digits", "v4").digest)
    rig.restart()
    assert await rig.beat("arm", "v1", target="arm64") == "v1"
    assert await rig.beat("new-arm", "", target="arm64") == ""
    assert await rig.beat("pc", "v1", target="x86-64-vnni") == "v4"


async def test_a_healthy_rollout_moves_wave_by_wave_and_then_the_default(rig: Rig) -> None:
    for name in "abcd":
        await rig.beat(name, "v1")
    view = await rig.start()
    first, second = rig.wave(view, 0), rig.wave(view, 1)
    assert (len(first), len(second)) == (2, 2)
    assert {await rig.beat(name, "v1") for name in first} == {"v2"}
    assert {await rig.beat(name, "v1") for name in second} == {"v1"}
    view = await rig.pass_wave(first, "v2", 1)
    assert (view.rollout.state, len(view.rollout.waves)) == ("running", 2)
    view = await rig.pass_wave(second, "v2", 1)
    assert view.rollout.state == "succeeded"
    assert rig.registry.resolve("digits").tag == "v2"
    assert await rig.beat("latecomer") == "v2"
    assert view.waves[0].devices[0].counts.audited == 100


async def test_harm_stops_in_the_first_wave_and_says_why(rig: Rig) -> None:
    for name in "abcd":
        await rig.beat(name, "v1")
    first = rig.wave(await rig.start("v3"))
    for name in first:
        await rig.beat(name, "v3")
        await rig.audit(name, 1, "v3", audited=50, harm=10)
    await rig.service.reconcile()
    view = rig.service.rollout()
    assert view.rollout.state == "stopped_by_gate"
    assert "20 of 100 audited rows harmful (20.0%), promised at most 3.00%" in view.rollout.status
    assert {await rig.beat(name, "v3") for name in first} == {"v1"}
    assert rig.registry.resolve("digits").tag == "v1"
    gate = view.waves[0].gate
    assert gate is not None
    harm = gate.test("harm")
    assert harm is not None
    assert (harm.verdict, harm.samples, harm.measured, harm.limit) == ("fail", 100, 0.2, 0.03)
    assert not view.waves[1].is_released
    stopped_at = {"digits": rig.clock().timestamp()}
    rig.clock.advance(60)
    rig.restart()
    assert rig.service.views.stopped_at() == stopped_at, "an alert that is due outlives the core's restart"


async def test_a_new_test_is_a_function_and_a_row_and_is_kept_sent_and_shown(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, wire and command line know no test by name."""

    def latency(case: gates.Case) -> GateTest:
        return GateTest(
            name="latency", verdict="hold", reason="p99 30 ms, limit 10 ms", measured=30.0, limit=10.0, samples=5
        )

    monkeypatch.setattr(gates, "TESTS", (*gates.TESTS, latency))
    for name in "ab":
        await rig.beat(name, "v1")
    names = rig.wave(await rig.start(waves=(1.0,)))
    view = await rig.pass_wave(names, "v2", 1)
    assert (view.rollout.state, view.waves[0].gate and view.waves[0].gate.reason) == (
        "running",
        "p99 30 ms, limit 10 ms",
    )
    await rig.service.pause()
    rig.restart()
    message = fleet_codec.encode_rollout(rig.service.rollout())
    assert [test.name for test in message.waves[0].gate.tests][-1] == "latency"
    assert message.waves[0].gate.tests[-1].measured == 30.0
    assert "latency    hold  p99 30 ms, limit 10 ms" in rollout_text(message)


async def test_evidence_from_before_the_rollout_does_not_count(rig: Rig) -> None:
    await rig.beat("a", "v1")
    await rig.audit("a", 1, "v3", audited=100, harm=50)
    view = await rig.start("v3", waves=(1.0,))
    assert view.rollout.state == "running"
    assert view.waves[0].devices[0].counts == OutcomeCounts()
    await rig.audit("a", 2, "v3", audited=100, harm=0)
    assert rig.service.rollout().waves[0].devices[0].counts.audited == 100


async def test_everything_survives_a_restart_in_the_middle(rig: Rig) -> None:
    for name in "abcd":
        await rig.beat(name, "v1")
    first = rig.wave(await rig.start())
    await rig.beat(first[0], "v2")
    await rig.audit(first[0], 1, "v2")
    before = rig.service.rollout()
    rig.restart()
    after = rig.service.rollout()
    assert after.rollout.plan == before.rollout.plan
    assert after.plan_digest == before.plan_digest
    assert after.rollout.waves[0].released_at == before.rollout.waves[0].released_at
    assert await rig.audit(first[0], 1, "v2") == 1
    assert rig.service.rollout().waves[0].devices[0].counts.audited == 100, "a redelivered record counts once"
    view = await rig.pass_wave(first, "v2", 2)
    assert len(view.rollout.waves) == 2


async def test_a_device_that_was_told_and_falls_silent_failed_also_after_a_restart(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    await rig.start(waves=(1.0,))
    assert await rig.beat("a", "v1") == "v2"  # told, and never heard of again
    rig.restart()
    for _ in range(70):
        rig.clock.advance(10)
        await rig.beat("b", "v2")
        await rig.service.reconcile()
    status = rig.service.rollout().rollout.status
    assert "1 of 2 devices of this wave failed (50.0%), tolerated 5.0%: a silent for" in status


async def test_a_device_that_was_switched_off_before_it_was_told_is_waited_for_and_then_left_out(rig: Rig) -> None:
    names = [f"d{number}" for number in range(6)]
    for name in names:
        await rig.beat(name, "v1")
    view = await rig.start(waves=(1.0,), gate=replace(GATE, max_unreached_s=500.0))
    off, *others = rig.wave(view)
    for name in others:
        await rig.beat(name, "v1")
        await rig.audit(name, 1, "v2")
    for _ in range(51):
        assert rig.service.rollout().rollout.state == "running"
        rig.clock.advance(10)
        for name in others:
            await rig.beat(name, "v2")
        await rig.service.reconcile()
    after = rig.service.rollout()
    assert after.rollout.state == "succeeded", after.rollout.status
    assert "5 devices committed, 0 failed, 1 not reached" in after.rollout.events[-1].text
    assert await rig.beat(off, "v1") == "v2"  # it takes the version when it is back


async def test_an_operator_who_resumes_no_longer_waits_for_devices_that_are_off(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    view = await rig.start(waves=(1.0,))
    off, other = rig.wave(view)
    await rig.beat(other, "v1")
    await rig.audit(other, 1, "v2")
    for _ in range(61):
        rig.clock.advance(10)
        await rig.beat(other, "v2")
        await rig.service.reconcile()
    paused = rig.service.rollout().rollout
    assert paused.state == "paused"
    assert f"1 of 2 devices not reached yet ({off})" in paused.status
    await rig.service.resume(accept=frozenset({off}))
    for _ in range(2):
        rig.clock.advance(11)
        await rig.beat(other, "v2")
        await rig.service.reconcile()
    after = rig.service.rollout().rollout
    assert after.state == "succeeded", after.status
    assert any(f"not waited for: {off}" in event.text for event in after.events)


async def test_a_plan_shows_how_many_audited_rows_it_asks_for(rig: Rig) -> None:
    await rig.beat("a", "v1")
    view = await rig.plan(gate=replace(GATE, min_audited=None))
    assert view.rollout.plan.gate.min_audited == audits_needed(replace(GATE, min_audited=None), 0.03, 1)


async def test_the_loop_ends_when_it_is_cancelled_while_news_wake_it(rig: Rig) -> None:
    loop = asyncio.create_task(rig.service.run())
    await asyncio.sleep(SETTINGS.reconcile_s + 0.05)  # it waits for news by now
    rig.service._news.set()
    await asyncio.sleep(0)
    loop.cancel()
    done, _ = await asyncio.wait([loop], timeout=5)
    assert done, "it runs on"


async def test_a_restart_does_not_make_devices_look_silent(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    await rig.start(waves=(1.0,))
    for name in "ab":
        await rig.beat(name, "v1")
    rig.clock.advance(500)  # the core was down, nobody could have been heard
    rig.restart()
    await rig.service.reconcile()
    assert rig.service.rollout().rollout.state == "running"
    assert not any(device.is_silent for device in rig.service.rollout().waves[0].devices)
    rig.clock.advance(31)
    await rig.service.reconcile()
    assert rig.service.rollout().rollout.state == "stopped_by_gate"


async def test_an_empty_plan_is_refused_and_says_why_for_each_device(rig: Rig) -> None:
    with pytest.raises(Conflict, match="no device has reported yet"):
        await rig.plan("v2")
    await rig.beat("a", "v1")
    await rig.beat("quiet", "v1")
    rig.clock.advance(31)
    await rig.beat("a", "v1")
    with pytest.raises(Conflict, match="a: already on it; quiet: already on it"):
        await rig.plan("v1")
    with pytest.raises(Conflict, match="quiet: silent for 31 s"):
        await rig.plan("v2", devices=("quiet",))
    with pytest.raises(Conflict, match="ghost: unknown device"):
        await rig.plan("v2", devices=("ghost",))
    with pytest.raises(NotFound, match="has no version 'v9'; it has v3, v2, v1"):
        await rig.plan("v9")


async def test_apply_runs_exactly_the_plan_that_was_shown(rig: Rig) -> None:
    for name in "abcd":
        await rig.beat(name, "v1")
    shown = await rig.plan()
    assert rig.service.rollout(shown.rollout.plan.rollout_id).rollout.plan == shown.rollout.plan
    await rig.beat("e", "v1")
    with pytest.raises(Conflict, match="plan again"):
        await rig.service.apply(shown.rollout.plan.rollout_id, "sha256:" + "0" * 64)
    view = await rig.service.apply(shown.rollout.plan.rollout_id, shown.plan_digest)
    assert view.rollout.plan == shown.rollout.plan
    assert "e" not in {device.device_id for device in view.rollout.plan.devices}
    with pytest.raises(Conflict, match="it is running"):
        await rig.service.apply(shown.rollout.plan.rollout_id)


async def test_one_active_rollout_per_model_and_newest_wins_by_abort(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    first = await rig.start("v2")
    second = await rig.plan("v3", waves=(1.0,))
    with pytest.raises(Conflict, match=f"penstock fleet abort {first.rollout.plan.rollout_id}"):
        await rig.service.apply(second.rollout.plan.rollout_id)
    aborted = await rig.service.abort()
    assert aborted.rollout.plan.rollout_id == first.rollout.plan.rollout_id
    third = await rig.start("v3", waves=(1.0,))
    assert third.rollout.state == "running"
    assert {await rig.beat(name, "v1") for name in "ab"} == {"v3"}


async def test_a_plan_overtaken_by_events_is_refused(rig: Rig) -> None:
    await rig.beat("a", "v1")
    stale = await rig.plan("v3", waves=(1.0,))
    await rig.start("v2", waves=(1.0,))
    await rig.pass_wave(["a"], "v2", 1)
    with pytest.raises(Conflict, match="out of date: a should run something else"):
        await rig.service.apply(stale.rollout.plan.rollout_id)


async def test_pause_resume_abort_keep_and_undo(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    view = await rig.start("v2")
    first, started = rig.wave(view), view.rollout.plan.rollout_id
    assert (await rig.service.pause()).rollout.state == "paused"
    with pytest.raises(NotFound, match=f"there is no rollout to pause; {started} is paused$"):
        await rig.service.pause()
    await rig.pass_wave(first, "v2", 1)
    assert rig.service.rollout().rollout.state == "paused", "a paused rollout releases nothing"
    assert (await rig.service.resume()).rollout.state == "running"
    kept = await rig.service.abort(keep=True)
    assert kept.rollout.is_kept
    assert await rig.beat(first[0], "v2") == "v2"
    undone = await rig.service.undo(started)
    assert undone.rollout.state == "undone"
    assert await rig.beat(first[0], "v2") == "v1"
    with pytest.raises(NotFound, match="no rollout to undo"):
        rig.service.rollout(action="undo")
    with pytest.raises(InvalidInput, match="name the rollout to undo"):
        await rig.service.undo("")


async def test_abort_with_keep_leaves_a_device_that_comes_back_where_it_was(rig: Rig) -> None:
    for name in "abc":
        await rig.beat(name, "v1")
    moved, told, off = rig.wave(await rig.start("v2", waves=(1.0,)))
    for name in (moved, told):
        assert await rig.beat(name, "v1") == "v2"
    await rig.beat(moved, "v2")
    await rig.beat(told, "v1", phase="fetching")
    kept = await rig.service.abort(keep=True)
    assert kept.rollout.kept == (moved,)
    assert "1 of 3 devices stay on v2, 2 where they were" in kept.rollout.status
    rig.restart()
    assert {name: await rig.beat(name, "v1") for name in (told, off)} == {told: "v1", off: "v1"}
    assert await rig.beat(moved, "v2") == "v2"


async def test_a_canary_that_reverted_stops_and_pausing_before_it_changes_nothing(rig: Rig) -> None:
    gate = replace(GATE, min_audited=0, bake_s=0.0, stops_when_all_revert=True)
    for name in "abcd":
        await rig.beat(name, "v1")
    (canary,) = rig.wave(await rig.start("v2", waves=(0.25, 1.0), gate=gate))
    await rig.beat(canary, "v1")
    await rig.service.pause()
    await rig.beat(canary, "v1", phase="reverted", failed_digest=rig.digests["v2"], error="golden output differs")
    await rig.service.reconcile()
    after = rig.service.rollout().rollout
    assert after.state == "stopped_by_gate"
    assert f"the only device of this wave went back: {canary} reverted: golden output differs" in after.status
    assert len(after.waves) == 1
    why = "it is stopped by gate; undo needs one that is running, paused, succeeded or aborted with --keep"
    with pytest.raises(Conflict, match=f"{why}$"):
        rig.service.rollout(after.plan.rollout_id, "undo")
    with pytest.raises(NotFound, match="there is no rollout to pause$"):
        await rig.service.pause()
    assert rig.service.stops == {"digits": 1}
    assert rig.service.views.running() == {("digits", "v1", "committed"): 3, ("digits", "v1", "reverted"): 1}
    states = rig.service.views.states()
    assert (states["digits", "stopped_by_gate"], states["digits", "paused"]) == (1, 0)
    assert (len(rig.service.views), rig.service.views.silent()) == (4, 0)


async def test_a_plan_hides_no_rollout_and_is_deleted_for_good(rig: Rig) -> None:
    for name in "ab":
        await rig.beat(name, "v1")
    running = await rig.start("v2")
    plan = await rig.plan("v3")
    name = plan.rollout.plan.rollout_id
    shown = rig.service.rollout()
    assert shown.rollout.plan.rollout_id == running.rollout.plan.rollout_id
    assert shown.waiting_plans == (name,)
    with pytest.raises(Conflict, match="cannot delete rollout digits-v2-1: it is running"):
        await rig.service.delete(running.rollout.plan.rollout_id)
    await rig.service.abort()
    for action in ("abort", "undo"):
        with pytest.raises(NotFound, match=f"there is no rollout to {action}"):
            rig.service.rollout(action=action)
        with pytest.raises(Conflict, match=f"cannot {action} rollout {name}: it is a plan that was not applied"):
            await getattr(rig.service, action)(name)
    await rig.service.delete(name, Operator(who="alice", reason="a typo"))
    rig.restart()
    assert rig.service.rollout().waiting_plans == ()
    with pytest.raises(NotFound):
        rig.service.rollout(name)
    assert (await rig.plan("v3")).rollout.plan.rollout_id == "digits-v3-3", "a name is given once"


async def test_everything_that_an_operator_does_is_recorded_with_who_and_why(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in "ab":
        await rig.beat(name, "v1")
    by = Operator(who="alice (tenant ops)", reason="ticket 17")
    made = await rig.plan("v2", by=by)
    name = made.rollout.plan.rollout_id
    await rig.service.apply(name, by=by)
    await rig.service.pause(name, by)
    await rig.service.resume(name, by)
    await rig.service.abort(name, by, keep=True)
    await rig.service.undo(name, by)
    rig.restart()
    commands = ["plan", "apply", "pause", "resume", "abort", "undo"]
    assert [(one.action, one.subject, one.who, one.reason) for one in rig.service.actions.done()] == [
        (f"fleet {command}", name, by.who, by.reason) for command in commands
    ]
    events = rig.service.rollout().rollout.events
    assert [event.text.split()[0] for event in events] == ["planned", "wave", "paused", "resumed", "aborted", "undone"]
    assert {(event.who, event.reason) for event in events} == {(by.who, by.reason)}
    logged = [record for record in caplog.records if record.message.startswith("operator's command")]
    assert len(logged) == len(commands)


async def test_a_device_that_is_gone_is_forgotten_and_one_that_reports_or_is_needed_is_not(rig: Rig) -> None:
    for name in "abc":
        await rig.beat(name, "v1")
    by = Operator(who="alice", reason="stolen")
    with pytest.raises(Conflict, match="c still reports, and would be back at once"):
        await rig.service.actions.forget("c", by)
    view = await rig.start("v2", devices=("a", "b"))
    rig.clock.advance(SETTINGS.gate.max_silence_s + 1)
    with pytest.raises(Conflict, match=f"rollout {view.rollout.plan.rollout_id} is about a"):
        await rig.service.actions.forget("a", by)
    await rig.audit("c", 1, "v1")
    await rig.service.actions.forget("c", by)
    with pytest.raises(NotFound, match="no device 'c'"):
        await rig.service.actions.forget("c", by)
    for _ in range(2):
        assert [one.report.device_id for one in rig.service.devices()] == ["a", "b"]
        assert rig.service._store.totals.get("c") is None
        assert (rig.service.actions.done()[-1].action, rig.service.actions.done()[-1].subject) == ("fleet forget", "c")
        rig.restart()


async def test_since_when_a_device_runs_what_it_runs(rig: Rig) -> None:
    await rig.beat("a", "v1")
    first = rig.clock().timestamp()
    rig.clock.advance(60)
    await rig.beat("a", "v1", phase="fetching")
    assert rig.service.devices()[0].runs_since == {"digits": first}
    await rig.beat("a", "v2")
    await rig.service.close()
    rig.restart()
    assert rig.service.devices()[0].runs_since == {"digits": first + 60}
    await rig.beat("a", "v2", error="a hiccup")
    assert rig.service.devices()[0].runs_since == {"digits": first + 60}


async def test_devices_are_counted_by_what_they_have_in_common_and_listed_in_pages(rig: Rig) -> None:
    for number, site in enumerate(("lab", "lab", "shop")):
        await rig.beat(f"d{number}", "v1", labels={"site": site})
    await rig.beat("d3", "v2", phase="probation")
    await rig.start("v3", waves=(0.5, 1.0))

    def groups(by: str, **labels: str) -> dict[str, int]:
        return {one.name: one.devices for one in rig.service.views.groups(by, labels)}

    assert groups("version") == {"digits:v1": 3, "digits:v2": 1}
    assert groups("phase") == {"committed": 3, "probation": 1}
    assert groups("label:site") == {"-": 1, "lab": 2, "shop": 1}
    assert groups("version", site="lab") == {"digits:v1": 2}
    assert groups("target") == {"any": 4}
    assert groups("wave") == {"digits-v3-1 wave 1": 2, "digits-v3-1 wave 2": 2}
    with pytest.raises(InvalidInput, match="is not version, wave, phase, target or label:NAME"):
        groups("site")
    page = rig.service.views.page({}, limit=3)
    assert [one.report.device_id for one in page.devices] == ["d0", "d1", "d2"]
    assert (page.next_after, page.matching, page.known) == ("d2", 4, 4)
    rest = rig.service.views.page({}, after=page.next_after, limit=3)
    assert ([one.report.device_id for one in rest.devices], rest.next_after) == (["d3"], "")


async def test_a_mistyped_selector_is_told_from_an_empty_fleet(rig: Rig) -> None:
    with pytest.raises(Conflict, match="no device has reported yet; an agent appears with its first heartbeat"):
        await rig.plan(labels={"site": "lba"})
    await rig.beat("a", "v1", labels={"site": "lab", "floor": "2"})
    with pytest.raises(Conflict, match="has site=lba; labels that they have: site=lab, floor=2"):
        await rig.plan(labels={"site": "lba"})
    page = rig.service.views.page({"site": "lba"})
    assert (page.matching, page.known, page.labels) == (0, 1, ("site=lab", "floor=2"))


async def test_devices_that_came_after_the_plan_are_named(rig: Rig) -> None:
    await rig.beat("a", "v1")
    await rig.beat("done", "v1")
    await rig.start("v2", waves=(1.0,))
    await rig.beat("late", "v1")
    shown = rig.service.rollout()
    assert shown.newcomers == ("late",)
    assert shown.versions == {rig.digests["v1"]: "v1", rig.digests["v2"]: "v2"}
    assert shown.certified_harm == 0.02
    assert shown.rollout.plan.promised_harm == 0.03


async def test_whether_a_device_is_where_it_should_be(rig: Rig) -> None:
    await rig.beat("a", "v1")
    view = await rig.start("v2", waves=(1.0,))
    await rig.beat("a", "v2")
    ended = await rig.service.undo(view.rollout.plan.rollout_id)
    assert [device.is_there for device in ended.waves[0].devices] == [False]
    await rig.beat("a", "v1", phase="proving")
    assert [device.is_there for device in rig.service.rollout().waves[0].devices] == [False]
    await rig.beat("a", "v1")
    assert [device.is_there for device in rig.service.rollout().waves[0].devices] == [True]


async def test_undo_of_a_finished_rollout_moves_the_default_back_and_skips_gates(rig: Rig) -> None:
    await rig.beat("a", "v1")
    await rig.start("v2", waves=(1.0,))
    assert (await rig.pass_wave(["a"], "v2", 1)).rollout.state == "succeeded"
    await rig.service.undo(rig.service.rollout().rollout.plan.rollout_id)
    assert await rig.beat("a", "v2") == "v1"
    assert await rig.beat("new") == "v1"
    assert rig.registry.resolve("digits").tag == "v1"


async def test_undo_of_an_older_rollout_is_refused_while_devices_run_something_newer(rig: Rig) -> None:
    await rig.beat("a", "v1")
    old = await rig.start("v2", waves=(1.0,))
    await rig.pass_wave(["a"], "v2", 1)
    await rig.start("v3", waves=(1.0,))
    await rig.pass_wave(["a"], "v3", 2)
    with pytest.raises(Conflict, match="undo the later rollout first"):
        await rig.service.undo(old.rollout.plan.rollout_id)


async def test_a_rollout_to_a_selection_does_not_move_the_default(rig: Rig) -> None:
    await rig.beat("lab", "v1", labels={"site": "lab"})
    await rig.beat("shop", "v1")
    await rig.start("v2", labels={"site": "lab"}, waves=(1.0,))
    view = await rig.pass_wave(["lab"], "v2", 1)
    assert view.rollout.state == "succeeded"
    assert rig.registry.resolve("digits").tag == "v1"
    assert await rig.beat("lab", "v2", labels={"site": "lab"}) == "v2"
    assert await rig.beat("shop", "v1") == "v1"


async def test_an_artifact_that_devices_are_assigned_to_cannot_be_deleted(rig: Rig) -> None:
    from cloud_core.registry.oci_errors import Refused

    await rig.beat("a", "v1")
    await rig.start("v2", waves=(1.0,))
    with pytest.raises(Refused, match="in use by device a"):
        await rig.registry.delete_manifest("digits", rig.digests["v2"])


@pytest.mark.parametrize("turns", range(1, 12))
async def test_an_operator_who_hangs_up_leaves_memory_and_disk_agreeing(rig: Rig, turns: int) -> None:
    await rig.beat("a", "v1")
    plan = await rig.plan("v2", waves=(1.0,))
    task = asyncio.create_task(rig.service.apply(plan.rollout.plan.rollout_id))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    before, told = rig.service.rollout().rollout, await rig.beat("a", "v1")
    rig.restart()
    assert rig.service.rollout().rollout.state == before.state
    assert await rig.beat("a", "v1") == told


# -- devices that misbehave ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 129, "a\nb", "\u202e", "-a"])
async def test_bad_device_ids_are_refused(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a device id"):
        await rig.service.heartbeat(Report(device_id=name))
    with pytest.raises(InvalidInput, match="is not a device id"):
        await rig.service.deliver_outcomes(name, [])


async def test_giant_reports_are_cut_to_size(rig: Rig) -> None:
    big = "x" * 100_000
    model = ReportedModel(model=big, error=big + "\x1b[2J", fetched_bytes=2**64 - 1)
    labels = {f"{i}{big}": big for i in range(1000)}
    report = Report(
        device_id="big", labels=labels, subscriptions=(big,) * 1000, models=(model,) * 1000, agent_version=big,
        outbox_records=2**64 - 1,
    )  # fmt: skip
    assert (await rig.service.heartbeat(report)).models == ()
    await rig.service.close()
    rig.restart()
    (seen,) = rig.service.devices()
    assert len(seen.report.models) == 256
    assert len(seen.report.labels) == 64
    assert len(seen.report.models[0].error) == 1024


async def test_control_characters_do_not_reach_a_terminal(rig: Rig) -> None:
    await rig.beat("a", "v1", error="\x1b[2Jgone\n")
    assert rig.service.devices()[0].report.models[0].error == " [2Jgone "


async def test_records_count_once_whatever_order_they_come_in(rig: Rig) -> None:
    await rig.beat("a", "v1")
    records = [
        Record(sequence=n, model="digits", artifact_digest=rig.digests["v1"], counts=OutcomeCounts(kept=n, audited=n))
        for n in (1, 2, 3)
    ]
    assert await rig.service.deliver_outcomes("a", records[:2]) == 2
    assert await rig.service.deliver_outcomes("a", records[::-1]) == 3
    assert await rig.service.deliver_outcomes("a", records) == 3
    rig.restart()
    assert await rig.service.deliver_outcomes("a", records) == 3
    assert rig.service._store.counts("a", rig.digests["v1"])[""] == OutcomeCounts(kept=6, audited=6)


async def test_records_that_cannot_be_true_are_dropped_and_do_not_block_later_ones(rig: Rig) -> None:
    good = OutcomeCounts(kept=1)
    bad = [
        Record(sequence=1, model="digits", artifact_digest="../../etc", counts=good),
        Record(sequence=2, model="", artifact_digest=rig.digests["v1"], counts=good),
        Record(sequence=3, model="digits", artifact_digest=rig.digests["v1"], counts=OutcomeCounts(kept=2**63)),
        Record(sequence=4, model="digits", artifact_digest=rig.digests["v1"], counts=OutcomeCounts(audit_harm=1)),
        Record(sequence=5, model="digits", artifact_digest=rig.digests["v1"], counts=good),
        Record(sequence=2**64 - 1, model="digits", artifact_digest=rig.digests["v1"], counts=good),
    ]
    assert await rig.service.deliver_outcomes("a", bad) == 5
    assert rig.service._store.counts("a", rig.digests["v1"])[""] == good


async def test_a_delivery_is_bounded(rig: Rig) -> None:
    record = Record(sequence=1, model="digits", artifact_digest=rig.digests["v1"], counts=OutcomeCounts())
    with pytest.raises(InvalidInput, match="more than 100"):
        await rig.service.deliver_outcomes("a", [record] * 101)


async def test_artifacts_per_device_are_bounded(rig: Rig) -> None:
    for n in range(1, 8):
        digest = f"sha256:{n:064x}"
        record = Record(sequence=n, model="digits", artifact_digest=digest, counts=OutcomeCounts(kept=1))
        assert await rig.service.deliver_outcomes("a", [record]) == n
    rig.restart()
    assert len(rig.service._store.totals["a"][""]) == 3


async def test_the_fleet_is_bounded_and_forgets_what_it_has_not_seen_for_long(rig: Rig) -> None:
    for n in range(10):
        await rig.beat(f"d{n}", "v1")
    with pytest.raises(QueueFull, match="max_devices"):
        await rig.beat("one-too-many", "v1")
    rig.clock.advance(1001)
    await rig.beat("one-more", "v1")
    assert [view.report.device_id for view in rig.service.devices()] == ["one-more"]
    rig.restart()
    assert [view.report.device_id for view in rig.service.devices()] == ["one-more"]


async def test_rollouts_that_are_kept_are_bounded(rig: Rig) -> None:
    await rig.beat("a", "v1")
    for _ in range(8):
        await rig.plan("v2")
    assert len(rig.service.rollouts("digits")) == 5
    rig.restart()
    names = [view.rollout.plan.rollout_id for view in rig.service.rollouts()]
    assert names == [f"digits-v2-{n}" for n in range(4, 9)]
    with pytest.raises(NotFound, match="the newest are"):
        rig.service.rollout("digits-v2-1")


async def test_a_clock_that_jumps_back_harms_nothing(rig: Rig) -> None:
    await rig.beat("a", "v1")
    await rig.start("v2", waves=(1.0,))
    rig.clock.advance(-3600)
    await rig.beat("a", "v2")
    await rig.service.reconcile()
    assert rig.service.rollout().rollout.state == "running"
    assert rig.service.devices()[0].last_seen_s == 0


# -- the loop --------------------------------------------------------------------------------------------------------


async def test_the_loop_wakes_up_on_news(rig: Rig) -> None:
    await rig.beat("a", "v1")
    await rig.start("v3", waves=(1.0,))
    task = asyncio.create_task(rig.service.run())
    await rig.beat("a", "v3")
    await rig.audit("a", 1, "v3", audited=100, harm=50)
    await until("a decision", lambda: rig.service.rollout().rollout.state != "running")
    task.cancel()
    assert rig.service.rollout().rollout.state == "stopped_by_gate"
