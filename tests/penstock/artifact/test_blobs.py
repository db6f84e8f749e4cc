"""The blob store: nothing is visible under a digest that does not hash to it, and nothing is half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from penstock.artifact import blobs
from penstock.artifact.blobs import BlobStore, digest_of
from penstock.errors import ArtifactError, DigestMismatch, NotFound, StorageError, TooLarge

DATA = b"penstock" * 1000
DIGEST = digest_of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "store")


def test_put_then_read(store: BlobStore) -> None:
    assert store.put(DATA) == DIGEST
    assert store.read(DIGEST) == DATA
    assert list(store.digests()) == [DIGEST]


def test_put_file_gives_the_same_digest(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    assert store.put_file(tmp_path / "f") == DIGEST
    assert store.verify(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"X" + d[1:], lambda d: b""])
def test_a_damaged_blob_is_never_returned(store: BlobStore, damage: object) -> None:
    store.put(DATA)
    store.path(DIGEST).write_bytes(damage(DATA))  # type: ignore[operator]
    with pytest.raises(DigestMismatch):
        store.read(DIGEST)
    with pytest.raises(DigestMismatch):
        store.verify(DIGEST)


def test_absent_blob_is_not_found(store: BlobStore) -> None:
    with pytest.raises(NotFound):
        store.read(DIGEST)


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "md5:00", "", "sha256:" + "A" * 64, DIGEST + "\n"])
def test_only_well_formed_digests_become_paths(store: BlobStore, digest: str) -> None:
    with pytest.raises(ArtifactError, match="not a digest"):
        store.path(digest)


def test_read_is_capped(store: BlobStore) -> None:
    store.put(DATA)
    with pytest.raises(TooLarge) as caught:
        store.read(DIGEST, limit_bytes=10)
    assert caught.value.limit_bytes == 10


def test_an_interrupted_download_resumes(store: BlobStore) -> None:
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        writer.write(DATA[:3000])
    assert not store.has(DIGEST)
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        assert writer.offset == 3000
        writer.write(DATA[3000:])
        writer.commit()
    assert store.read(DIGEST) == DATA


def test_a_wrong_download_leaves_nothing_to_resume(store: BlobStore) -> None:
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        writer.write(b"x" * len(DATA))
        with pytest.raises(DigestMismatch):
            writer.commit()
    assert not store.has(DIGEST)
    with store.writer(DIGEST, limit_bytes=len(DATA)) as again:
        assert again.offset == 0


def test_a_download_that_never_ends_is_cut(store: BlobStore) -> None:
    with store.writer(DIGEST, limit_bytes=100) as writer, pytest.raises(TooLarge):
        writer.write(DATA)
    assert not store.has(DIGEST)


def test_a_full_disk_is_reported_and_the_old_file_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "state.json"
    blobs.write_atomically(target, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        blobs.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_what_is_shared_is_for_whom_the_umask_leaves_it(store: BlobStore, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (tmp_path / "f").write_bytes(DATA)
        kept = [store.path(store.put(b"a document")), store.path(store.put_file(tmp_path / "f"))]
        blobs.write_atomically(tmp_path / "private", DATA)
        blobs.write_atomically(tmp_path / "shared", DATA, mode=blobs.SHARED)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (*kept, tmp_path / "shared", tmp_path / "private")]
    assert modes == [0o640, 0o640, 0o640, 0o600]


def test_a_directory_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(StorageError, match="not a directory"):
        BlobStore(tmp_path / "f")
