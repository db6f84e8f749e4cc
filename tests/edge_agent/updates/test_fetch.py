"""Pulling from a real registry that misbehaves as networks, disks and attackers do."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from edge_agent.policy.model_state import Release
from edge_agent.settings import FetchSettings
from edge_agent.updates import fetch
from edge_agent.updates.fetch import Fetcher, FixedByDigest, Transferred
from edge_agent.updates.store import Store
from penstock.artifact import certificates, manifests
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import Layout
from penstock.errors import (
    ArtifactError,
    DigestMismatch,
    NotFound,
    PermissionDenied,
    StorageError,
    TooLarge,
    Unavailable,
)
from tests.edge_agent.cloud import MODEL, FakeRegistry, build, certificate_for, release_of

SETTINGS = FetchSettings(reserve_bytes=0, chunk_bytes=4096, read_timeout_s=5.0)
BIG = 200_000


class Rig(NamedTuple):
    registry: FakeRegistry
    store: Store
    layout: Layout

    def fetcher(self, *, targets: tuple[str, ...] = ("any",), **changes: Any) -> Fetcher:
        settings = msgspec.structs.replace(SETTINGS, **changes)
        return Fetcher(fetch.connector(self.registry.url, settings), self.store, settings, targets)

    async def pull(self, release: Release | None = None, **changes: Any) -> Any:
        return await self.fetcher(**changes).pull(MODEL, release or release_of(self.layout), lambda _: None)

    @property
    def weights(self) -> str:
        return self.layout.artifact().variant("edge").weights.digest


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    registry = FakeRegistry(layouts=[build(tmp_path / "src", "v1", seed=1, padding_bytes=BIG)])
    async with registry.serve():
        yield Rig(registry, Store(tmp_path / "device"), registry.layouts[0])


async def test_a_pull_brings_what_the_device_needs_and_nothing_else(rig: Rig) -> None:
    slot = await rig.pull()
    artifact = rig.layout.artifact()
    assert slot.variant_digest == artifact.variant("edge").digest
    assert slot.certificate_digest == release_of(rig.layout).certificate_digest
    assert rig.store.load_plan(MODEL, slot).certificate is not None
    cloud = artifact.variant("cloud")
    assert rig.store.blobs.has(cloud.digest)
    assert cloud.golden is not None
    for unwanted in (cloud.weights.digest, cloud.golden.digest):
        assert not rig.store.blobs.has(unwanted)
        assert rig.registry.asked_for(unwanted) == []


async def test_what_is_here_is_not_asked_for_again(rig: Rig) -> None:
    await rig.pull()
    rig.registry.requests.clear()
    await rig.pull()
    assert rig.registry.requests == []


async def test_progress_ends_at_the_total(rig: Rig) -> None:
    seen: list[Transferred] = []
    await rig.fetcher().pull(MODEL, release_of(rig.layout), seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes > BIG // 2
    assert [s.done_bytes for s in seen] == sorted(s.done_bytes for s in seen)


async def test_a_cut_connection_is_resumed_by_range(rig: Rig) -> None:
    rig.registry.cut_after[rig.weights] = 100_000
    with pytest.raises(Unavailable):
        await rig.pull()
    kept = rig.store.blobs.partial_bytes(rig.weights)
    assert 0 < kept <= 100_000
    await rig.pull()
    assert rig.registry.asked_for(rig.weights) == ["", f"bytes={kept}-"]


async def test_a_registry_without_ranges_starts_over(rig: Rig) -> None:
    rig.registry.cut_after[rig.weights] = 100_000
    rig.registry.has_ranges = False
    with pytest.raises(Unavailable):
        await rig.pull()
    slot = await rig.pull()
    rig.store.load_plan(MODEL, slot)


async def test_a_partial_that_the_registry_cannot_continue_is_discarded(rig: Rig) -> None:
    rig.registry.cut_after[rig.weights] = 100_000
    with pytest.raises(Unavailable):
        await rig.pull()
    rig.registry.answers[rig.weights] = [(416, {})]
    with pytest.raises(Unavailable, match="cannot continue"):
        await rig.pull()
    assert rig.store.blobs.partial_bytes(rig.weights) == 0
    await rig.pull()
    assert rig.registry.asked_for(rig.weights)[-1] == ""


async def test_a_partial_longer_than_the_blob_is_discarded(rig: Rig) -> None:
    with rig.store.blobs.writer(rig.weights, limit_bytes=10**9) as writer:
        writer.write(b"x" * (BIG * 2))
    await rig.pull()
    assert rig.registry.asked_for(rig.weights) == [""]


async def test_a_corrupt_partial_is_found_out_and_fetched_from_the_beginning(rig: Rig) -> None:
    with rig.store.blobs.writer(rig.weights, limit_bytes=10**9) as writer:
        writer.write(b"x" * 1000)
    await rig.pull()
    assert rig.registry.asked_for(rig.weights) == ["bytes=1000-", ""]


async def test_tampered_weights_are_refused_and_leave_nothing(rig: Rig) -> None:
    data = rig.layout.blobs.path(rig.weights).read_bytes()
    rig.registry.replaced[rig.weights] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(DigestMismatch):
        await rig.pull()
    assert not rig.store.blobs.has(rig.weights)
    assert rig.store.blobs.partial_bytes(rig.weights) == 0


async def test_a_truncated_blob_is_not_taken_for_a_whole_one(rig: Rig) -> None:
    rig.registry.replaced[rig.weights] = rig.layout.blobs.path(rig.weights).read_bytes()[:-10]
    with pytest.raises(Unavailable, match=r"got \d+ of \d+ bytes"):
        await rig.pull()
    assert not rig.store.blobs.has(rig.weights)


async def test_a_blob_that_goes_on_for_ever_is_cut_off(rig: Rig) -> None:
    rig.registry.replaced[rig.weights] = rig.layout.blobs.path(rig.weights).read_bytes() + b"x" * 10_000
    with pytest.raises(TooLarge):
        await rig.pull()
    assert rig.store.blobs.partial_bytes(rig.weights) == 0


@pytest.mark.parametrize("which", ["index", "manifest", "spec", "certificate"])
async def test_a_tampered_document_is_refused(rig: Rig, which: str) -> None:
    variant = rig.layout.artifact().variant("edge")
    manifest = manifests.decode_manifest(rig.layout.blobs.read(variant.digest))
    digest = {
        "index": rig.layout.digest,
        "manifest": variant.digest,
        "spec": next(layer.digest for layer in manifest.layers if layer.media_type == manifests.VARIANT_SPEC),
        "certificate": rig.layout.referrers(manifests.CERTIFICATE)[0].content.digest,
    }[which]
    rig.registry.replaced[digest] = rig.layout.blobs.read(digest).replace(b"toy", b"tox") + b" "
    with pytest.raises(DigestMismatch):
        await rig.pull()
    assert not rig.store.blobs.has(digest)


async def test_an_oversized_document_is_not_read_to_its_end(rig: Rig) -> None:
    rig.registry.replaced[rig.layout.digest] = b" " * 100_000
    with pytest.raises(TooLarge, match="50000 bytes"):
        await rig.pull(max_document_bytes=50_000)


async def test_a_layer_over_the_limit_is_refused_before_it_is_asked_for(rig: Rig) -> None:
    with pytest.raises(FixedByDigest, match="more than the 1000 allowed"):
        await rig.pull(max_blob_bytes=1000)
    assert rig.registry.asked_for(rig.weights) == []


async def test_too_many_variants_are_refused(rig: Rig) -> None:
    with pytest.raises(ArtifactError, match="2 variants"):
        await rig.pull(max_variants=1)


async def test_an_index_that_is_none_is_an_artifact_error(rig: Rig) -> None:
    data = b'{"schemaVersion": 2}'
    digest = digest_of(data)
    rig.registry.replaced[digest] = data
    with pytest.raises(ArtifactError, match="image index"):
        await rig.pull(Release(version="v1", artifact_digest=digest))


async def test_an_artifact_of_another_model_is_refused(rig: Rig) -> None:
    with pytest.raises(ArtifactError, match="asked for as 'other'"):
        await rig.fetcher().pull("other", release_of(rig.layout), lambda _: None)


async def test_unknown_artifact_is_not_found(rig: Rig) -> None:
    with pytest.raises(NotFound):
        await rig.pull(Release(version="v9", artifact_digest="sha256:" + "9" * 64))


async def test_the_registrys_retry_after_is_passed_on(rig: Rig) -> None:
    rig.registry.answers[rig.weights] = [(503, {"Retry-After": "7"})]
    with pytest.raises(Unavailable) as caught:
        await rig.pull()
    assert caught.value.retry_after_s == 7.0


async def test_a_refusal_is_told_apart_from_an_outage(rig: Rig) -> None:
    rig.registry.answers[rig.layout.digest] = [(403, {})]
    with pytest.raises(PermissionDenied):
        await rig.pull()


async def test_a_registry_out_of_reach_is_unavailable(rig: Rig, closed_port: int) -> None:
    connect = fetch.connector(f"http://127.0.0.1:{closed_port}", SETTINGS)
    with pytest.raises(Unavailable, match="cannot reach the registry"):
        await Fetcher(connect, rig.store, SETTINGS, ("any",)).pull(MODEL, release_of(rig.layout), lambda _: None)


async def test_a_disk_without_room_is_found_out_before_the_first_byte(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(rig.store.data_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * BIG))
    with pytest.raises(StorageError, match="the disk is too full"):
        await rig.pull(reserve_bytes=BIG)
    assert rig.registry.asked_for(rig.weights) == []
    await rig.pull(reserve_bytes=0)


async def test_a_disk_that_fills_up_during_the_pull_keeps_what_was_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.artifact.blobs import BlobWriter

    write, written = BlobWriter.write, 0

    def fills_up(self: BlobWriter, chunk: bytes) -> None:
        nonlocal written
        written += len(chunk)
        if written > 50_000:
            raise StorageError("the disk is full")
        write(self, chunk)

    monkeypatch.setattr(BlobWriter, "write", fills_up)
    with pytest.raises(StorageError, match="disk is full"):
        await rig.pull()
    kept = rig.store.blobs.partial_bytes(rig.weights)
    assert kept > 0
    monkeypatch.undo()
    await rig.pull()
    assert rig.registry.asked_for(rig.weights)[-1] == f"bytes={kept}-"


async def test_the_best_variant_for_the_machine_is_chosen(rig: Rig, tmp_path: Path) -> None:
    layout = build(tmp_path / "many", "v2", seed=3, targets=("x86-64", "any", "x86-64-vnni"))
    rig.registry.layouts.append(layout)
    artifact = layout.artifact()
    for targets, chosen in [
        (("x86-64-vnni", "x86-64", "any"), "x86-64-vnni"),
        (("x86-64", "any"), "x86-64"),
        (("arm64", "any"), "any"),
    ]:
        slot = await rig.pull(release_of(layout, chosen), targets=targets)
        assert slot.variant_digest == artifact.variant("edge", target=chosen).digest
        plan = rig.store.load_plan(MODEL, slot)
        assert plan.certificate is not None
        assert plan.certificate.edge_digest == slot.variant_digest, "each variant has a certificate of its own"


async def test_no_variant_for_this_machine_says_what_there_is(rig: Rig, tmp_path: Path) -> None:
    layout = build(tmp_path / "vnni", "v2", seed=3, targets=("x86-64-vnni",))
    rig.registry.layouts.append(layout)
    with pytest.raises(ArtifactError, match=r"it has x86-64-vnni; this machine runs arm64, any"):
        await rig.pull(release_of(layout), targets=("arm64", "any"))


async def test_an_artifact_without_certificate_is_pulled_and_says_so(rig: Rig, tmp_path: Path) -> None:
    layout = build(tmp_path / "bare", "v2", seed=3, certified="")
    rig.registry.layouts.append(layout)
    slot = await rig.pull(release_of(layout))
    assert slot.certificate_digest == ""
    assert "every answer is escalated" in slot.note


async def test_a_certificate_for_other_digests_is_not_used_and_says_so(rig: Rig, tmp_path: Path) -> None:
    layout = build(tmp_path / "other", "v2", seed=3, certified="other")
    rig.registry.layouts.append(layout)
    slot = await rig.pull(release_of(layout))
    assert slot.certificate_digest == ""
    assert "issued for other digests" in slot.note
    assert rig.store.load_plan(MODEL, slot).certificate is None


def _certified_again(layout: Layout, target: str, serial: int) -> str:
    artifact = layout.artifact()
    edge, cloud = artifact.variant("edge", target=target).digest, artifact.variant("cloud").digest
    return layout.attach_certificate(msgspec.structs.replace(certificate_for(edge, cloud), serial=serial)).digest


async def test_a_certificate_of_a_later_release_is_not_used_and_says_so(rig: Rig) -> None:
    """What it promises in fields that are not known here could be anything. Neither is it used after a downgrade."""
    known = msgspec.json.decode(certificates.encode(certificate_for(*_edge_and_cloud(rig.layout))))
    later = msgspec.json.encode({**known, "promised_by": "the stars"})
    digest = rig.layout.attach(manifests.CERTIFICATE, later, title="certificate.json").digest
    named = msgspec.structs.replace(release_of(rig.layout), certificate_digest=digest)
    slot = await rig.pull(named)
    assert slot.certificate_digest == ""
    assert "unknown field `promised_by`" in slot.note
    downgraded = msgspec.structs.replace(slot, certificate_digest=digest)
    plan = rig.store.load_plan(MODEL, downgraded, has_run=True)
    assert plan.certificate is None
    assert "certificate (every answer is escalated)" in plan.damaged


def _edge_and_cloud(layout: Layout) -> tuple[str, str]:
    artifact = layout.artifact()
    return artifact.variant("edge").digest, artifact.variant("cloud").digest


async def test_no_other_certificate_takes_the_place_of_the_assigned_one(rig: Rig, tmp_path: Path) -> None:
    """A newer one for the right variant is in the registry; what was not assigned came through no plan."""
    layout = build(tmp_path / "many", "v2", seed=3, targets=("x86-64", "any"))
    _certified_again(layout, "any", 3)
    rig.registry.layouts.append(layout)
    slot = await rig.pull(release_of(layout, "x86-64"), targets=("any",))
    assert slot.certificate_digest == ""
    assert "issued for other digests" in slot.note


async def test_the_certificate_that_is_named_is_used_where_it_fits(rig: Rig) -> None:
    """A frozen rollout ships what it was planned with, whatever was certified since."""
    named = release_of(rig.layout)
    _certified_again(rig.layout, "any", 2)
    assert (await rig.pull(named)).certificate_digest == named.certificate_digest


async def test_a_pull_that_waits_for_the_registry_ends_when_it_is_cancelled_and_is_resumed(rig: Rig) -> None:
    rig.registry.gate[rig.weights] = (100_000, asyncio.Event())
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_progress(transferred: Transferred) -> None:
        if transferred.done_bytes >= 100_000:
            loop.call_soon_threadsafe(arrived.set)

    fetcher = rig.fetcher(read_timeout_s=600.0)
    pull = asyncio.create_task(fetcher.pull(MODEL, release_of(rig.layout), on_progress))
    await arrived.wait()
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    fetcher.close()  # returns, so no thread is left that may still write
    kept = rig.store.blobs.partial_bytes(rig.weights)
    assert kept > 0
    del rig.registry.gate[rig.weights]
    await rig.pull()
    assert rig.registry.asked_for(rig.weights)[-1] == f"bytes={kept}-"


async def test_pulls_side_by_side_do_not_wait_for_each_other(rig: Rig, tmp_path: Path) -> None:
    other = build(tmp_path / "other", "v2", seed=3)
    rig.registry.layouts.append(other)
    rig.registry.gate[rig.weights] = (0, asyncio.Event())
    fetcher = rig.fetcher()
    waiting = asyncio.create_task(fetcher.pull(MODEL, release_of(rig.layout), lambda _: None))
    assert (await fetcher.pull(MODEL, release_of(other), lambda _: None)).release.version == "v2"
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
