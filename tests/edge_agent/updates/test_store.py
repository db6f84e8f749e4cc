"""What an agent keeps on disk: state files, blobs, the lock, and what may be deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.policy import model_state
from edge_agent.policy.model_state import ModelState, Release, Slot
from edge_agent.updates.store import DataDirLock, Store
from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.errors import ArtifactError, DigestMismatch, NotFound, StorageError
from tests.edge_agent.cloud import MODEL, build, release_of


def stored(store: Store, layout: Layout, *, target: str = "any") -> Slot:
    """Copy what a device needs of an artifact into its store."""
    variant = layout.artifact().variant("edge", target=target)
    cloud = layout.artifact().variant("cloud")
    assert cloud.golden is not None
    for descriptor in layout.reachable():
        is_needed = descriptor.digest not in (cloud.weights.digest, cloud.golden.digest)
        if is_needed and descriptor.media_type not in (manifests.MODEL_CONFIG, manifests.EMPTY_CONFIG):
            store.blobs.put_file(layout.blobs.path(descriptor.digest))
    release = release_of(layout)
    return Slot(release=release, variant_digest=variant.digest, certificate_digest=release.certificate_digest)


def test_states_survive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = stored(store, build(tmp_path / "src", "v1", seed=1))
    state = model_state.begin_trial(model_state.activate(ModelState(model=MODEL), found), found.key)
    state = model_state.fail(state, replace(found.release, version="v0"), "reverted", "why", limit=3)
    store.save(state)
    assert Store(tmp_path).states() == {MODEL: state}


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": "other"}', b"\xff\xfe", b'{"model": 3}'])
def test_an_unreadable_state_file_is_set_aside(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.save(ModelState(model="good"))
    (tmp_path / "models" / "toy.json").write_bytes(content)
    (tmp_path / "models" / "copies" / "toy.json").write_bytes(content)
    assert set(store.states()) == {"good"}
    assert (tmp_path / "models" / "toy.bad").read_bytes() == content


def test_a_model_name_never_becomes_another_path(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a model name"):
        Store(tmp_path).save(ModelState(model="../evil"))


def test_a_failed_save_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(ModelState(model=MODEL))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="disk is full"):
        store.save(ModelState(model=MODEL, is_committed=True))
    assert store.states()[MODEL] == ModelState(model=MODEL)


def test_a_load_plan_has_everything_verified(tmp_path: Path) -> None:
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1)
    plan = store.load_plan(MODEL, stored(store, layout))
    assert (plan.model, plan.version, plan.artifact_digest) == (MODEL, "v1", layout.digest)
    assert plan.subject.cloud_digest == layout.artifact().variant("cloud").digest
    assert plan.certificate is not None
    assert plan.files.golden is not None
    assert plan.files.weights.read_bytes()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"\x00", lambda data: b""])
@pytest.mark.parametrize("which", ["weights", "golden", "manifest", "index"])
def test_damaged_bytes_are_never_loaded_and_are_deleted_for_a_new_fetch(tmp_path: Path, change, which: str) -> None:  # type: ignore[no-untyped-def]
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1)
    slot = stored(store, layout)
    variant = layout.artifact().variant("edge")
    assert variant.golden is not None
    digest = {
        "weights": variant.weights.digest,
        "golden": variant.golden.digest,
        "manifest": variant.digest,
        "index": layout.digest,
    }[which]
    path = store.blobs.path(digest)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DigestMismatch):
        store.load_plan(MODEL, slot)
    store.discard_damaged(slot)
    assert not store.blobs.has(digest)
    with pytest.raises(NotFound):
        store.load_plan(MODEL, slot)


def test_a_slot_of_another_model_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    slot = stored(store, build(tmp_path / "src", "v1", seed=1))
    with pytest.raises(ArtifactError, match="not what slot"):
        store.load_plan("other", slot)


def test_collecting_keeps_both_slots_and_the_desired_release_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    v1, v2, v3, old = (build(tmp_path / "src", f"v{i}", seed=i) for i in range(4))
    kept = {layout.tag: stored(store, layout) for layout in (v1, v2, v3, old)}
    state = ModelState(model=MODEL, active=kept["v1"], previous=kept["v0"], desired=kept["v2"].release)
    with store.blobs.writer("sha256:" + "a" * 64, limit_bytes=10) as writer:
        writer.write(b"left")
    before = set(store.blobs.digests())
    freed = store.collect([state])
    gone = before - set(store.blobs.digests())
    assert freed > 0
    assert gone <= {descriptor.digest for descriptor in old.reachable()}
    assert old.artifact().variant("edge").weights.digest in gone
    assert store.blobs.partials() == ()
    for tag in ("v0", "v1"):
        store.load_plan(MODEL, kept[tag])
    assert store.collect([state]) == 0


def test_collecting_keeps_a_complete_candidate_and_its_own_certificate(tmp_path: Path) -> None:
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1, targets=("x86-64", "any"))
    second = layout.referrers(manifests.CERTIFICATE)[1].digest
    slot = replace(stored(store, layout), certificate_digest=second)
    store.collect([ModelState(model=MODEL, desired=slot.release)], [slot])
    assert store.blobs.has(second)


def test_a_partial_download_of_the_desired_release_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    layout = build(tmp_path / "src", "v1", seed=1)
    slot = stored(store, layout)
    weights = layout.artifact().variant("edge").weights.digest
    store.blobs.delete(weights)
    with store.blobs.writer(weights, limit_bytes=10_000) as writer:
        writer.write(b"begin")
    store.collect([ModelState(model=MODEL, desired=slot.release)])
    assert store.blobs.partial_bytes(weights) == 5


def test_what_unfinished_writes_left_behind_is_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.blobs.put(b"kept")
    leftovers = [tmp_path / ".tmp-a", tmp_path / "models" / ".tmp-b", store.blobs.path(digest).parent / ".tmp-c"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    again = Store(tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)
    assert again.blobs.read(digest) == b"kept"


def test_one_agent_per_data_directory(tmp_path: Path) -> None:
    with DataDirLock(tmp_path / "data"), pytest.raises(StorageError, match="another agent uses"):
        DataDirLock(tmp_path / "data")
    DataDirLock(tmp_path / "data").release()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from edge_agent.updates.store import DataDirLock\n"
        "DataDirLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    DataDirLock(tmp_path).release()


def test_a_data_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a directory"):
        DataDirLock(tmp_path / "file" / "data")


@pytest.mark.parametrize("which", ["", "copies"])
def test_one_damaged_copy_of_a_state_costs_nothing(tmp_path: Path, which: str) -> None:
    store = Store(tmp_path)
    found = stored(store, build(tmp_path / "src", "v1", seed=1))
    state = model_state.activate(ModelState(model=MODEL), found)
    path = tmp_path / "models" / which / f"{MODEL}.json"
    for place in range(0, 400, 7):
        store.save(state)
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data if place % 2 else data[:place])
        assert store.states() == {MODEL: state}


def test_a_copy_of_a_state_is_written_over_in_blocks_of_one_size(tmp_path: Path) -> None:
    """A file that is replaced has the file system write its journal: ten times the bytes of a small state."""
    store, path = Store(tmp_path), tmp_path / "models" / "copies" / f"{MODEL}.json"
    store.save(ModelState(model=MODEL))
    before = path.stat()
    longer = ModelState(model=MODEL, desired=Release(version="v2", artifact_digest="sha256:" + "a" * 64))
    store.save(longer)
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size) == (before.st_ino, 4096)
    (tmp_path / "models" / f"{MODEL}.json").unlink()
    assert store.states() == {MODEL: longer}


def test_a_copy_that_shrinks_keeps_nothing_of_what_was_there(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "models" / "copies" / f"{MODEL}.json"
    store.save(ModelState(model=MODEL, desired=Release(version="v" * 9000, artifact_digest="sha256:" + "a" * 64)))
    store.save(ModelState(model=MODEL))
    (tmp_path / "models" / f"{MODEL}.json").unlink()
    assert path.stat().st_size == 4096
    assert store.states() == {MODEL: ModelState(model=MODEL)}
