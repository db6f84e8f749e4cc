"""Unfinished blob uploads: files that grow by PATCH and become blobs when their digest is right.

Owns ``uploads/`` under the registry's directory and its bounds (count, size, age). An upload survives a restart: its
length on disk is its offset. Methods that touch the disk block; callers run them in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cloud_core.policy.garbage import Stored
from cloud_core.registry import oci_errors
from cloud_core.registry.oci_errors import Refused
from cloud_core.registry.settings import RegistrySettings
from penstock.artifact.blobs import BlobStore, disk_errors, fsync_directory
from penstock.errors import StorageError

_ID = re.compile(r"[0-9a-f]{32}")
_CHUNK_BYTES = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Upload:
    """One upload session. ``offset`` bytes are in ``path``; ``is_busy`` while a request writes to it."""

    id: str
    path: Path
    touched_at: float
    offset: int = 0
    is_busy: bool = False
    hasher: hashlib._Hash = field(default_factory=hashlib.sha256)


class Uploads:
    """All unfinished uploads."""

    def __init__(self, root: Path, store: BlobStore, settings: RegistrySettings) -> None:
        self._root, self._store, self._settings = root, store, settings
        self._open: dict[str, Upload] = {}
        with disk_errors(f"creating {root}"):
            root.mkdir(parents=True, exist_ok=True)
            for path in root.iterdir():
                if _ID.fullmatch(path.name):
                    self._open[path.name] = _reopened(path)

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, now: datetime) -> Upload:
        """Start an upload. Where there are too many, the one that was left alone for longest gives way.

        Raises:
            Refused: TOOMANYREQUESTS when too many are unfinished and all of them are being written to.
            StorageError: not writable.
        """
        self.expire(now)
        if len(self._open) >= self._settings.max_uploads:
            self._give_way(now.timestamp())
        name = uuid.uuid4().hex
        upload = Upload(id=name, path=self._root / name, touched_at=now.timestamp())
        with disk_errors(f"creating {upload.path}"):
            upload.path.touch()
        self._open[name] = upload
        return upload

    def get(self, name: str) -> Upload:
        """Return an upload that was begun.

        Raises:
            Refused: BLOB_UPLOAD_UNKNOWN, never begun, finished, cancelled or expired.
        """
        upload = self._open.get(name)
        if upload is None:
            raise Refused(oci_errors.BLOB_UPLOAD_UNKNOWN, "no such upload; it was finished, cancelled or has expired")
        return upload

    def append(self, upload: Upload, chunk: bytes, now: datetime) -> None:
        """Add bytes to an upload; blocks on the disk.

        Raises:
            Refused: SIZE_INVALID, the blob grows over the limit; the upload is dropped.
            StorageError: the disk is full; the upload is dropped, so that its space is free at once.
        """
        if upload.offset + len(chunk) > self._settings.max_blob_bytes:
            self.cancel(upload)
            raise Refused(
                oci_errors.SIZE_INVALID, f"the blob has more than the {self._settings.max_blob_bytes} bytes allowed"
            )
        try:
            with disk_errors(f"writing {upload.path}"), upload.path.open("r+b") as file:
                file.seek(upload.offset)  # not append mode: after a kill the file may hold half a chunk more
                file.write(chunk)
        except StorageError:
            self.cancel(upload)
            raise
        upload.hasher.update(chunk)
        upload.offset += len(chunk)
        upload.touched_at = now.timestamp()

    def finish(self, upload: Upload, digest: str, now: datetime) -> None:
        """Verify, fsync and publish the blob under its digest. Blocks.

        Raises:
            Refused: DIGEST_INVALID, the bytes hash to something else; the upload is dropped.
            StorageError: the disk said no; the upload is dropped.
        """
        found = "sha256:" + upload.hasher.hexdigest()
        if found != digest:
            self.cancel(upload)
            raise Refused(
                oci_errors.DIGEST_INVALID,
                f"the {upload.offset} bytes sent hash to {found}, not to {digest}; send again",
            )
        target = self._store.path(digest)
        try:
            with disk_errors(f"publishing {digest}"):
                with upload.path.open("r+b") as file:
                    file.truncate(upload.offset)
                    os.fsync(file.fileno())
                os.utime(upload.path, (now.timestamp(), now.timestamp()))  # as a blob it is new, however long it took
                os.replace(upload.path, target)
                fsync_directory(target.parent)
        except StorageError:
            self.cancel(upload)
            raise
        self._open.pop(upload.id, None)

    def unfinished(self) -> list[Stored]:
        """List what is here, for whoever looks for garbage."""
        return [
            Stored(kind="upload", name=u.id, size_bytes=u.offset, touched_at=u.touched_at, is_needed=u.is_busy)
            for u in self._open.values()
        ]

    def cancel(self, upload: Upload) -> None:
        """Drop an upload."""
        self._open.pop(upload.id, None)
        upload.path.unlink(missing_ok=True)

    def expire(self, now: datetime) -> None:
        """Drop what has not been touched for too long."""
        oldest = now.timestamp() - self._settings.upload_ttl_s
        for upload in [u for u in self._open.values() if u.touched_at < oldest and not u.is_busy]:
            self.cancel(upload)

    def _give_way(self, now: float) -> None:
        left_alone = [
            u for u in self._open.values() if not u.is_busy and now - u.touched_at >= self._settings.upload_idle_s
        ]
        if not left_alone:
            raise Refused(
                oci_errors.TOOMANYREQUESTS,
                f"{len(self._open)} uploads are unfinished, which is the limit, and none was left alone for "
                f"{self._settings.upload_idle_s:g} s; finish or cancel one, or try later",
            )
        self.cancel(min(left_alone, key=lambda upload: upload.touched_at))


def _reopened(path: Path) -> Upload:
    upload = Upload(id=path.name, path=path, touched_at=path.stat().st_mtime)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            upload.hasher.update(chunk)
            upload.offset += len(chunk)
    return upload
