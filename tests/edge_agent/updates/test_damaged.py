"""One flipped bit on the disk of a device that is offline: what it committed answers all the same."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge_agent.policy import model_state
from edge_agent.policy.cascade import CascadeMode
from edge_agent.policy.model_state import ModelState
from edge_agent.updates.store import Store
from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.errors import DigestMismatch
from penstock.signing import ed25519, trust
from tests.edge_agent.cloud import MODEL, SURE, FakeRegistry, build, release_of
from tests.edge_agent.updates.test_signed import Rig as SignedRig
from tests.edge_agent.updates.test_store import stored
from tests.edge_agent.updates.test_updater import Rig, commit, only
from tests.penstock.signed import make_layout
from tests.waiting import until

GONE = "sha256:" + "0" * 64


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with FakeRegistry().serve() as registry:
        yield Rig(tmp_path, registry)


@pytest.fixture
async def signed_rig(tmp_path: Path) -> AsyncIterator[SignedRig]:
    registry = FakeRegistry(layouts=[make_layout(tmp_path / "src", roles=("edge",))])
    async with registry.serve():
        yield SignedRig(tmp_path, registry, ed25519.generate())


def layer(layout: Layout, manifest_digest: str, media_type: str) -> str:
    manifest = manifests.decode_manifest(layout.blobs.read(manifest_digest))
    return next(found.digest for found in manifest.layers if found.media_type == media_type)


def golden_of(layout: Layout) -> str:
    return layer(layout, layout.artifact().variant("edge").digest, manifests.GOLDEN)


def certificate_of(layout: Layout) -> str:
    return layout.referrers(manifests.CERTIFICATE)[0].digest


DOCUMENTS: dict[str, Callable[[Layout], str]] = {
    "index": lambda layout: layout.digest,
    "manifest": lambda layout: layout.artifact().variant("edge").digest,
    "manifest of the cloud variant": lambda layout: layout.artifact().variant("cloud").digest,
    "spec": lambda layout: layer(layout, layout.artifact().variant("edge").digest, manifests.VARIANT_SPEC),
    "certificate manifest": certificate_of,
    "certificate": lambda layout: layer(layout, certificate_of(layout), manifests.CERTIFICATE),
}


def flip(path: Path, at: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def copy_of(store: Store, digest: str) -> Path:
    return store.data_dir / "models" / "copies" / "documents" / digest.removeprefix("sha256:")


async def committed(rig: Rig, **options: str) -> Layout:
    layout = rig.build("v1", **options)
    async with rig.start() as updater:
        await commit(updater, layout)
    rig.registry.layouts.clear()  # from here on nothing can be fetched
    return layout


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("which", DOCUMENTS)
async def test_a_damaged_document_costs_nothing(rig: Rig, which: str, damage: Callable[[Path], None]) -> None:
    layout = await committed(rig)
    digest = DOCUMENTS[which](layout)
    damage(rig.store.blobs.path(digest))
    async with rig.start() as updater:
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
        assert rig.hosting.get(MODEL).mode is CascadeMode.CASCADE
        assert only(updater).error == ""
    assert rig.store.blobs.read(digest), "mended from its copy"
    damage(copy_of(rig.store, digest))
    async with rig.start():
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
    assert copy_of(rig.store, digest).read_bytes() == rig.store.blobs.read(digest), "and the copy from what it is of"


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
async def test_damaged_golden_vectors_are_not_replayed_and_fetched_again(
    rig: Rig,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    layout = await committed(rig)
    damage(rig.store.blobs.path(golden_of(layout)))
    for _ in range(2):  # the first start deletes what is damaged
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            async with rig.start() as updater:
                await until("serving", lambda: rig.hosting.models() == (MODEL,))
                hosted = rig.hosting.get(MODEL)
                assert hosted.mode is CascadeMode.CASCADE, "the weights are those that were certified"
                assert hosted.arrays.engine.run({"x": SURE})["logits"].argmax() == 0
                await until("said", lambda: "damaged on this disk: golden vectors" in only(updater).error)
                assert only(updater).phase == "committed"
        assert "loading without what is damaged" in caplog.text
    async with rig.start() as updater:
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
        rig.registry.layouts.append(layout)
        await until("fetched", lambda: rig.store.blobs.has(golden_of(layout)))
        await until("mended", lambda: only(updater).error == "")
        assert only(updater).phase == "committed"
        assert rig.store.blobs.read(golden_of(layout))
        assert not rig.store.states()[MODEL].failures


@pytest.mark.parametrize("which", ["certificate manifest", "certificate"])
async def test_a_certificate_that_cannot_be_read_promises_nothing_until_it_is_back(rig: Rig, which: str) -> None:
    layout = await committed(rig)
    digest = DOCUMENTS[which](layout)
    flip(rig.store.blobs.path(digest))
    flip(copy_of(rig.store, digest))
    for _ in range(2):
        async with rig.start() as updater:
            await until("serving", lambda: rig.hosting.models() == (MODEL,))
            hosted = rig.hosting.get(MODEL)
            assert hosted.mode is CascadeMode.ESCALATE_ALL
            assert hosted.account["certificate"] == ""
            assert "damaged on this disk: certificate" in hosted.mode_why
            await until("said", lambda: "damaged on this disk: certificate" in only(updater).error)
    async with rig.start() as updater:
        await until("serving", lambda: rig.hosting.models() == (MODEL,))
        rig.registry.layouts.append(layout)
        await until("certified again", lambda: rig.hosting.get(MODEL).mode is CascadeMode.CASCADE)
        await until("said", lambda: only(updater).error == "")


async def test_evidence_outlives_a_certificate_that_could_not_be_read_for_a_while(rig: Rig) -> None:
    layout = rig.build("v1")
    async with rig.start() as updater:
        await commit(updater, layout)
        rig.hosting.get(MODEL).note_audit(audited=20, harm=20)
        await until("the alarm is on disk", lambda: any(a.has_alarmed for a in rig.store.states()[MODEL].audits))
    digest = DOCUMENTS["certificate"](layout)
    flip(rig.store.blobs.path(digest))
    flip(copy_of(rig.store, digest))
    async with rig.start():
        await until("mended", lambda: MODEL in rig.hosting.models() and rig.hosting.get(MODEL).certificate is not None)
        assert rig.hosting.get(MODEL).mode is CascadeMode.CLOUD_ONLY


async def test_a_version_that_was_not_committed_has_to_show_its_golden_vectors(rig: Rig) -> None:
    store = Store(rig.directory / "device")
    layout = build(rig.directory / "src", "v1", seed=1)
    slot = stored(store, layout)
    flip(store.blobs.path(golden_of(layout)))
    with pytest.raises(DigestMismatch):
        store.load_plan(MODEL, slot)
    assert store.load_plan(MODEL, slot, has_run=True).files.golden is None


def test_damaged_weights_are_never_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1)
    slot = stored(store, layout)
    flip(store.blobs.path(layout.artifact().variant("edge").weights.digest))
    with pytest.raises(DigestMismatch):
        store.load_plan(MODEL, slot, has_run=True)


async def test_a_damaged_signature_costs_nothing_and_a_lost_one_is_not_taken_for_granted(
    signed_rig: SignedRig,
) -> None:
    trust.sign(signed_rig.layout.root, signed_rig.key)
    slot = await signed_rig.pull()
    signed_rig.store.load_plan("digits", slot)
    manifest = slot.signature_digests[0]
    for digest in (manifest, layer(signed_rig.layout, manifest, manifests.SIGNATURE)):
        flip(signed_rig.store.blobs.path(digest))
        assert signed_rig.store.load_plan("digits", slot, has_run=True)
    flip(signed_rig.store.blobs.path(manifest))
    flip(copy_of(signed_rig.store, manifest))
    with pytest.raises(DigestMismatch):
        signed_rig.store.load_plan("digits", slot, has_run=True)


def test_nothing_is_collected_while_the_documents_of_what_runs_cannot_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    slot = stored(store, build(tmp_path / "src", "v1", seed=1))
    old = build(tmp_path / "src", "v0", seed=2)
    stored(store, old)
    state = model_state.activate(ModelState(model=MODEL), slot)
    index = store.blobs.path(slot.release.artifact_digest)
    whole = index.read_bytes()
    flip(index)
    before = set(store.blobs.digests())
    assert store.collect([state]) == 0
    assert set(store.blobs.digests()) == before
    index.write_bytes(whole)
    assert store.collect([state]) > 0
    assert not store.blobs.has(old.digest)


def test_copies_go_with_what_they_are_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1)
    slot = stored(store, layout)
    store.load_plan(MODEL, slot)
    store.collect([model_state.activate(ModelState(model=MODEL), slot)])
    assert copy_of(store, layout.digest).exists()
    assert not copy_of(store, golden_of(layout)).exists(), "too large to be kept twice"
    store.collect([])
    assert list(copy_of(store, GONE).parent.iterdir()) == []
    assert release_of(layout) == slot.release
