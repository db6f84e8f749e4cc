"""The update loop with real models, a real disk and a real registry; only the fleet service is played by the test."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.policy.cascade import CascadeMode
from edge_agent.policy.model_state import Release
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.hosting import Hosted, Hosting
from edge_agent.settings import FetchSettings, UpdateSettings
from edge_agent.updates import fetch
from edge_agent.updates.fetch import Fetcher
from edge_agent.updates.reported import ReportedModel
from edge_agent.updates.store import DataDirLock, Store
from edge_agent.updates.tools import Tools
from edge_agent.updates.updater import Updater
from penstock.artifact.layout import Layout
from penstock.errors import Internal, StorageError
from penstock.wire.outcomes import OutcomeCounts
from tests.edge_agent.cloud import MODEL, SURE, FakeRegistry, build, release_of
from tests.waiting import until

FETCH = FetchSettings(reserve_bytes=0, chunk_bytes=4096)
UPDATE = UpdateSettings(probation_s=0.05, retry_base_s=0.01, retry_max_s=0.02)


@dataclass
class Rig:
    """One device. ``start`` is a process start: only what is on disk survives it."""

    directory: Path
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    settings: UpdateSettings = UPDATE
    max_models: int = 4
    changes: int = 0
    boot_id: str = "boot 1"

    def build(self, tag: str, **options: Any) -> Layout:
        layout = build(self.directory / "src", tag, seed=int(tag.strip("v")), **options)
        self.registry.layouts.append(layout)
        return layout

    @asynccontextmanager
    async def start(self, *, subscriptions: tuple[str, ...] = ("*",)) -> AsyncIterator[Updater]:
        store = Store(self.directory / "device")
        self.store = store
        self.hosting = Hosting(Outcomes(now=lambda: 1.8e9), drain_s=1.0)
        fetcher = Fetcher(fetch.connector(self.registry.url, FETCH), store, FETCH, ("any",))
        loop = asyncio.get_running_loop()

        async def counted(model: str, digest: str) -> OutcomeCounts:
            return OutcomeCounts()

        def changed() -> None:
            self.changes += 1

        tools = Tools(
            store=store, fetcher=fetcher, hosting=self.hosting, settings=self.settings, now=loop.time,
            boot_id=self.boot_id, random=lambda: 0.5, counted=counted, changed=changed,
        )  # fmt: skip
        updater = Updater(tools, subscriptions=subscriptions, max_models=self.max_models)
        task = asyncio.create_task(updater.run())
        try:
            yield updater
            assert not task.done(), task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.hosting.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    registry = FakeRegistry()
    async with registry.serve():
        yield Rig(tmp_path, registry)


def only(updater: Updater) -> ReportedModel:
    reports = updater.reported()
    return reports[0] if reports else ReportedModel(
        model="", active=None, previous=None, desired=None, phase="idle", error="", failed_digest="",
        transferred=fetch.Transferred(), hosted=None,
    )  # fmt: skip


async def reach(updater: Updater, phase: str, version: str | None = None) -> ReportedModel:
    def there() -> bool:
        found = only(updater)
        active = found.active.release.version if found.active else None
        return found.phase == phase and version in (None, active)

    await until(f"{version} {phase}, now {only(updater)}", there)
    return only(updater)


async def commit(updater: Updater, layout: Layout) -> ReportedModel:
    updater.desire(MODEL, release_of(layout))
    return await reach(updater, "committed", layout.tag)


async def test_a_desired_release_becomes_a_committed_model_that_answers(rig: Rig) -> None:
    v1 = rig.build("v1")
    async with rig.start() as updater:
        report = await commit(updater, v1)
        assert report.active is not None
        assert report.active.variant_digest == v1.artifact().variant("edge").digest
        assert report.transferred.done_bytes == report.transferred.total_bytes > 0
        hosted = rig.hosting.get(MODEL)
        assert hosted.mode is CascadeMode.CASCADE
        assert hosted.arrays.engine.run({"x": SURE})["logits"].argmax() == 0
        assert rig.changes > 3


async def test_an_update_switches_and_keeps_the_way_back(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        report = await commit(updater, v2)
        assert rig.hosting.get(MODEL).plan.version == "v2"
        assert report.previous is not None
        assert report.previous.release.version == "v1"


async def test_undo_needs_no_download(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        await commit(updater, v2)
        rig.registry.requests.clear()
        await commit(updater, v1)
        assert rig.registry.requests == []


async def test_what_no_slot_needs_is_deleted(rig: Rig) -> None:
    layouts = [rig.build(f"v{i}") for i in range(1, 4)]
    async with rig.start() as updater:
        for layout in layouts:
            await commit(updater, layout)
        v1, v2, v3 = (layout.artifact().variant("edge").weights.digest for layout in layouts)
        await until("collected", lambda: not rig.store.blobs.has(v1))
        assert rig.store.blobs.has(v2)
        assert rig.store.blobs.has(v3)


async def test_boots_from_disk_without_any_cloud(rig: Rig) -> None:
    async with rig.start() as updater:
        await commit(updater, rig.build("v1"))
    rig.registry.layouts.clear()
    rig.registry.requests.clear()
    async with rig.start() as updater:
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
        assert (await reach(updater, "committed", "v1")).active is not None
        assert rig.registry.requests == []


async def test_a_version_that_does_not_reproduce_its_golden_outputs_never_answers(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2", lies=True)
    async with rig.start() as updater:
        await commit(updater, v1)
        updater.desire(MODEL, release_of(v2))
        report = await reach(updater, "reverted", "v1")
        assert "golden" in report.error
        assert report.failed_digest == v2.digest
        assert rig.hosting.get(MODEL).plan.version == "v1"
    async with rig.start() as updater:  # and it is not tried again after a restart
        rig.registry.requests.clear()
        await reach(updater, "reverted", "v1")
        await asyncio.sleep(0.05)
        assert rig.registry.requests == []


async def test_a_failed_version_is_tried_again_when_it_is_asked_for_anew(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2", lies=True)
    async with rig.start() as updater:
        await commit(updater, v1)
        updater.desire(MODEL, release_of(v2))
        await reach(updater, "reverted")
        await commit(updater, v1)
        updater.desire(MODEL, release_of(v2))
        await until("failed twice", lambda: updater._models[MODEL].state.failures[0].count == 2)


async def test_failures_on_probation_revert_to_the_version_before(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=60.0)
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        await reach(updater, "probation", "v1")
        rig.hosting.get(MODEL).tally.record(kept=300)
        await reach(updater, "committed", "v1")
        updater.desire(MODEL, release_of(v2))
        await reach(updater, "probation", "v2")
        rig.hosting.get(MODEL).failures = 3
        report = await reach(updater, "reverted", "v1")
        assert "3 failures" in report.error
        await until("v1 answers", lambda: rig.hosting.get(MODEL).plan.version == "v1")


async def test_not_found_is_asked_for_again_and_says_when(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(UPDATE, retry_base_s=1000.0, retry_max_s=1000.0)
    missing = Release(version="v9", artifact_digest="sha256:" + "9" * 64)
    v1 = rig.build("v1")
    async with rig.start() as updater:
        updater.desire(MODEL, missing)
        report = await reach(updater, "failed")
        assert report.failed_digest == "", "it is still being tried"
        assert report.retry_in_s is not None
        assert 490 < report.retry_in_s <= 500
        await commit(updater, v1)


@pytest.mark.parametrize("answer", [(404, {}), (500, {}), (403, {})])
async def test_one_wrong_answer_of_a_registry_does_not_block_a_release(rig: Rig, answer: tuple[int, Any]) -> None:
    v1 = rig.build("v1")
    for digest in (v1.digest, v1.artifact().variant("edge").weights.digest):
        rig.registry.answers[digest] = [answer]
    async with rig.start() as updater:
        await commit(updater, v1)


async def test_one_oversized_page_does_not_block_a_release(rig: Rig) -> None:
    v1 = rig.build("v1")
    rig.registry.replaced[v1.digest] = b"<html>" * 1_000_000
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        report = await reach(updater, "failed")
        assert report.failed_digest == ""
        del rig.registry.replaced[v1.digest]
        await reach(updater, "committed", "v1")


async def test_what_the_digest_fixes_is_final_until_the_block_has_passed(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(UPDATE, block_s=0.2)
    v1 = rig.build("v1", targets=("arm64",))
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        report = await reach(updater, "failed")
        assert report.failed_digest == v1.digest
        await until("tried again", lambda: updater._models[MODEL].state.failures[0].count == 2)


async def test_an_outage_of_the_registry_is_ridden_out(rig: Rig) -> None:
    v1 = rig.build("v1")
    rig.registry.answers[v1.digest] = [(503, {})] * 4
    async with rig.start() as updater:
        await commit(updater, v1)


async def test_a_tampered_blob_is_reported_and_fetched_again(rig: Rig) -> None:
    v1 = rig.build("v1")
    weights = v1.artifact().variant("edge").weights.digest
    rig.registry.replaced[weights] = b"x" * v1.blobs.size_bytes(weights)
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        report = await reach(updater, "failed")
        assert "corrupt, truncated or tampered" in report.error
        assert rig.hosting.models() == ()
        del rig.registry.replaced[weights]
        await reach(updater, "committed", "v1")


async def test_a_full_disk_is_reported_and_ridden_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    v1 = rig.build("v1")
    is_full = True
    usage = shutil.disk_usage(rig.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0) if is_full else usage)
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        report = await reach(updater, "failed")
        assert "disk is too full" in report.error
        assert report.failed_digest == "", "it is still being tried"
        is_full = False
        await reach(updater, "committed", "v1")


async def test_a_disk_without_room_for_the_state_keeps_the_old_version_answering(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        save = Store.save

        def full(self: Store, state: Any) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr(Store, "save", full)
        updater.desire(MODEL, release_of(v2))
        report = await reach(updater, "failed", "v1")
        assert "disk is full" in report.error
        assert rig.hosting.get(MODEL).plan.version == "v1"
        monkeypatch.setattr(Store, "save", save)
        await reach(updater, "committed", "v2")


async def test_boots_with_a_disk_that_takes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.start() as updater:
        await commit(updater, rig.build("v1"))

    def full(self: Store, state: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(Store, "save", full)
    async with rig.start():
        await until("serving", lambda: rig.hosting.models() == (MODEL,))


async def test_an_engine_that_raises_anything_is_a_version_that_did_not_prove_itself(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def explode(*_: Any, **__: Any) -> None:
        raise KeyError("from a foreign library")

    v1 = rig.build("v1")
    monkeypatch.setattr(Hosting, "prepare", explode)
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        assert "KeyError" in (await reach(updater, "reverted")).error


async def test_a_defect_in_fetching_does_not_stop_what_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)

        async def explode(*_: Any, **__: Any) -> None:
            raise KeyError("a defect")

        monkeypatch.setattr(Fetcher, "pull", explode)
        updater.desire(MODEL, release_of(v2))
        assert "KeyError" in (await reach(updater, "failed", "v1")).error
        assert rig.hosting.get(MODEL).plan.version == "v1"


@pytest.fixture
def damage(rig: Rig) -> Iterator[Any]:
    def spoil(layout: Layout) -> None:
        digest = layout.artifact().variant("edge").weights.digest
        path = Store(rig.directory / "device").blobs.path(digest)
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")

    return spoil  # type: ignore[return-value]


async def test_weights_that_rotted_are_not_loaded_and_the_version_before_answers(rig: Rig, damage: Any) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        await commit(updater, v2)
    damage(v2)
    rig.registry.answers[v2.artifact().variant("edge").weights.digest] = [(503, {})] * 3
    async with rig.start() as updater:
        await until("v1 answers", lambda: MODEL in rig.hosting.models())
        assert rig.hosting.get(MODEL).plan.version == "v1"
        await reach(updater, "committed", "v2")  # repaired from the registry


async def test_weights_that_rotted_without_a_version_before_are_fetched_again(rig: Rig, damage: Any) -> None:
    v1 = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, v1)
    damage(v1)
    async with rig.start() as updater:
        await until("serving", lambda: MODEL in rig.hosting.models())
        await reach(updater, "committed", "v1")


async def test_a_broken_runtime_is_tried_again_when_there_is_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    v1 = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, v1)
    prepare, failures = Hosting.prepare, 0

    async def sometimes(self: Hosting, *args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if failures < 4:  # more than max_crashes: an error is not a crash
            failures += 1
            raise Internal("out of memory")
        return await prepare(self, *args, **kwargs)

    monkeypatch.setattr(Hosting, "prepare", sometimes)
    async with rig.start() as updater:
        await until("serving", lambda: MODEL in rig.hosting.models())
        assert (await reach(updater, "committed", "v1")).active is not None


async def test_starts_that_did_not_survive_revert(rig: Rig) -> None:
    """A process that is killed each time it has loaded a version: what kill -9 leaves on disk, three times."""
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=0.0)
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=60.0)
    async with rig.start() as updater:
        await until("v1 loaded", lambda: MODEL in rig.hosting.models())
        updater.desire(MODEL, release_of(v2))
        await reach(updater, "probation", "v2")
    for starts in (1, 2):
        assert rig.store.states()[MODEL].starts_of(release_of(v2).key) == starts
        async with rig.start() as updater:
            await until("v2 loaded", lambda: MODEL in rig.hosting.models())
    async with rig.start() as updater:
        report = await reach(updater, "reverted", "v1")
        assert "did not survive" in report.error
        assert report.retry_in_s is not None
        await until("v1 answers", lambda: MODEL in rig.hosting.models())
        assert rig.hosting.get(MODEL).plan.version == "v1"
        updater.unblock(MODEL)
        await reach(updater, "probation", "v2")


async def test_power_cuts_on_probation_blame_nobody(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=60.0)
    v1 = rig.build("v1")
    for number in range(6):
        rig.boot_id = f"boot {number}"
        async with rig.start() as updater:
            updater.desire(MODEL, release_of(v1))
            await reach(updater, "probation", "v1")
            await until("v1 answers", lambda: MODEL in rig.hosting.models())


async def test_a_committed_model_outlives_every_number_of_kills_after_its_load(rig: Rig) -> None:
    v1 = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, v1)
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=60.0)
    for _ in range(5):
        async with rig.start():
            await until("v1 answers", lambda: MODEL in rig.hosting.models())
            await until("its load is off the record", lambda: not rig.store.states()[MODEL].trials)


async def test_an_orderly_stop_is_not_a_crash(rig: Rig) -> None:
    rig.settings = msgspec.structs.replace(UPDATE, probation_s=60.0)
    v1 = rig.build("v1")
    for _ in range(5):
        async with rig.start() as updater:
            updater.desire(MODEL, release_of(v1))
            await until("loaded", lambda: MODEL in rig.hosting.models())
        updater.stop()
    assert rig.store.states()[MODEL].trials == ()


async def test_a_stop_between_the_proof_and_the_switch_releases_what_was_proven(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What generates has a process of its own, which nobody else would end."""
    prepare, proven = Hosting.prepare, asyncio.Event()
    made: list[Hosted] = []

    async def noted(self: Hosting, *args: Any, **kwargs: Any) -> Hosted:
        made.append(await prepare(self, *args, **kwargs))
        proven.set()
        return made[-1]

    monkeypatch.setattr(Hosting, "prepare", noted)
    v1 = rig.build("v1")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        await proven.wait()
    assert rig.hosting.models() == ()
    assert [hosted.is_retired for hosted in made] == [True]


async def test_the_newest_desired_release_wins_over_a_pull_that_is_under_way(rig: Rig) -> None:
    v1, v2 = rig.build("v1", padding_bytes=500_000), rig.build("v2")
    weights = v1.artifact().variant("edge").weights.digest
    never = asyncio.Event()
    rig.registry.gate[weights] = (100_000, never)
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(v1))
        await until("half of v1", lambda: only(updater).transferred.done_bytes >= 60_000)
        await commit(updater, v2)
        await until("the half is gone", lambda: rig.store.blobs.partials() == ())
        never.set()


async def test_a_desired_release_taken_back_before_it_was_seen_changes_nothing(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        updater.desire(MODEL, release_of(v2))
        updater.desire(MODEL, release_of(v1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert only(updater).desired == release_of(v1)
        assert only(updater).phase == "committed"


async def test_an_artifact_without_certificate_escalates_everything_and_says_so(rig: Rig) -> None:
    async with rig.start() as updater:
        report = await commit(updater, rig.build("v1", certified=""))
        assert rig.hosting.get(MODEL).mode is CascadeMode.ESCALATE_ALL
        assert "every answer is escalated" in report.error


async def test_a_certificate_for_other_digests_escalates_everything_and_says_so(rig: Rig) -> None:
    async with rig.start() as updater:
        report = await commit(updater, rig.build("v1", certified="other"))
        assert rig.hosting.get(MODEL).mode is CascadeMode.ESCALATE_ALL
        assert "issued for other digests" in report.error


async def test_a_certificate_that_comes_later_is_taken_on_without_a_new_download(rig: Rig) -> None:
    v1, v2 = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        await commit(updater, v1)
        bare = Release(version="v2", artifact_digest=v2.digest)
        updater.desire(MODEL, bare)
        await reach(updater, "committed", "v2")
        assert rig.hosting.get(MODEL).mode is CascadeMode.ESCALATE_ALL
        rig.registry.requests.clear()
        updater.desire(MODEL, release_of(v2))
        await until("certified", lambda: rig.hosting.get(MODEL).mode is CascadeMode.CASCADE)
        report = await reach(updater, "committed", "v2")
        assert report.previous is not None
        assert report.previous.release.version == "v1"
        assert len(rig.registry.requests) == 2, "the certificate's manifest and its layer"


async def test_a_distrusted_device_stays_so_after_a_power_cut_and_without_its_outbox(rig: Rig) -> None:
    """``start`` counts nothing from before: the outbox is lost with every restart."""
    v1 = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, v1)
        changes = rig.changes
        rig.hosting.get(MODEL).note_audit(audited=20, harm=20)
        assert rig.changes > changes  # the fleet service hears of it with a heartbeat of its own
        await until("the alarm is on disk", lambda: any(a.has_alarmed for a in rig.store.states()[MODEL].audits))
    async with rig.start() as updater:  # ``stop`` was not called: everything that was not on disk is lost
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
        assert rig.hosting.get(MODEL).mode is CascadeMode.CLOUD_ONLY


async def test_what_audits_find_is_written_seldom_and_when_the_agent_stops(rig: Rig) -> None:
    v1 = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, v1)
        hosted = rig.hosting.get(MODEL)
        await until("there is an audit on disk", lambda: bool(rig.store.states()[MODEL].audits))
        written = rig.store.states()
        for _ in range(50):
            hosted.note_audit(audited=1, harm=0)
            updater.desire(MODEL, release_of(v1))
            await asyncio.sleep(0)
        assert rig.store.states() == written
        updater.stop()
        (audit,) = rig.store.states()[MODEL].audits
        assert audit == hosted.audit
        assert audit.evidence != written[MODEL].audits[0].evidence


async def test_two_models_live_side_by_side(rig: Rig) -> None:
    one, two = rig.build("v1"), rig.build("v2", model="second", certified="")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(one))
        updater.desire("second", release_of(two))
        await until("both", lambda: rig.hosting.models() == ("second", MODEL))
        await until("committed", lambda: {report.phase for report in updater.reported()} == {"committed"})
    async with rig.start():
        await until("both again", lambda: rig.hosting.models() == ("second", MODEL))


async def test_only_what_is_subscribed_to_and_not_too_many(rig: Rig) -> None:
    rig.max_models = 1
    async with rig.start(subscriptions=("toy", "second")) as updater:
        for name in ("third", "toy", "second"):
            updater.desire(name, Release(version="v1", artifact_digest="sha256:" + "0" * 64))
        assert [report.model for report in updater.reported()] == ["toy"]


async def test_a_removed_model_answers_no_more_and_leaves_nothing_on_disk(rig: Rig) -> None:
    first, second = rig.build("v1"), rig.build("v2")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(first))
        await until("v1 serving", lambda: rig.hosting.models() == (MODEL,))
        updater.remove(MODEL)
        await until("it is gone", lambda: updater.reported() == ())
        assert rig.hosting.models() == ()
        assert list(rig.store.blobs.digests()) == []
        updater.remove(MODEL)  # told again: there is nothing to do
        updater.desire(MODEL, release_of(second))
        await until("v2 serving", lambda: rig.hosting.models() == (MODEL,))
    async with rig.start() as updater:
        await until("v2 after a restart", lambda: rig.hosting.models() == (MODEL,))
        updater.remove(MODEL)
        await until("it is gone", lambda: updater.reported() == ())
    async with rig.start() as updater:
        assert updater.reported() == (), "no start brings it up again"


async def test_a_model_that_is_desired_again_while_it_is_removed_stays(rig: Rig) -> None:
    first = rig.build("v1")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(first))
        await until("v1 serving", lambda: rig.hosting.models() == (MODEL,))
        updater.remove(MODEL)
        updater.desire(MODEL, release_of(first))
        await until("committed", lambda: [m.phase for m in updater.reported()] == ["committed"])
        assert rig.hosting.models() == (MODEL,)


async def test_what_a_device_does_not_subscribe_to_is_not_removed_either(rig: Rig) -> None:
    first = rig.build("v1")
    async with rig.start() as updater:
        updater.desire(MODEL, release_of(first))
        await until("v1 serving", lambda: rig.hosting.models() == (MODEL,))
    async with rig.start(subscriptions=()) as updater:
        await until("v1 serving", lambda: rig.hosting.models() == (MODEL,))
        updater.remove(MODEL)
        await until("still there", lambda: [m.phase for m in updater.reported()] == ["committed"])
        assert rig.hosting.models() == (MODEL,)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def mounted(directory: Path) -> Iterator[None]:
    mount("-t", "tmpfs", "-o", "size=8m", "none", str(directory))
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
async def test_a_read_only_disk_serves_what_it_committed(rig: Rig) -> None:
    device = rig.directory / "device"
    device.mkdir()
    with mounted(device):
        async with rig.start() as updater:
            await commit(updater, rig.build("v1"))
        mount("-o", "remount,ro", str(device))
        with DataDirLock(device):
            async with rig.start() as updater:
                await until("serving", lambda: rig.hosting.models() == (MODEL,))
                assert only(updater).phase == "committed"
