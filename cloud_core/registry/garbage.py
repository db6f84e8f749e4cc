"""Finds what is on the registry's disk, and removes what nothing refers to. What that is, ``policy.garbage`` decides.

Safe beside pushes: a blob that a push looks for, or sends again, counts as new from then on, also when that happens
between the decision and the removal.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cloud_core.policy.garbage import Kind, Stored, sort_out
from cloud_core.registry.manifest_rules import children_in
from cloud_core.registry.settings import RegistrySettings
from cloud_core.registry.uploads import Uploads
from cloud_core.state import to_its_end
from cloud_core.state.catalog import ManifestRow
from penstock.artifact.blobs import BlobStore, disk_errors
from penstock.errors import PenstockError, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Names garbage that could not be removed, and says why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Says what a collection did, or would do.

    Attributes:
        removed: what is gone, or would be.
        young: what nothing refers to, and what is kept for now.
    """

    is_dry_run: bool
    removed: tuple[Stored, ...] = ()
    young: tuple[Stored, ...] = ()
    failed: tuple[Failed, ...] = ()


class GarbageCollector:
    """Removes old blobs that no manifest refers to, abandoned uploads and old temporary files of one registry."""

    def __init__(
        self,
        store: BlobStore,
        uploads: Uploads,
        unpacked: Path,
        settings: RegistrySettings,
        *,
        rows: Callable[[], Iterable[ManifestRow]],
        writing: asyncio.Lock,
        now: Callable[[], datetime],
    ) -> None:
        """
        Args:
            unpacked: directory of the files of variants that engines load from directories.
            rows: lists all manifests.
            writing: held by whoever adds or removes a manifest.
        """
        self._store, self._uploads, self._unpacked, self._settings = store, uploads, unpacked, settings
        self._rows, self._writing, self._now = rows, writing, now
        orphan_s, upload_s = settings.orphan_ttl_s, settings.upload_ttl_s
        self._keep_s: Mapping[Kind, float] = {"blob": orphan_s, "temporary": orphan_s, "upload": upload_s}

    def has_for_push(self, digest: str) -> bool:
        """Say whether a blob is here for a push that asks: it will not send it, so it counts as sent just now."""
        return self._store.touch(digest, self._now().timestamp(), every_s=self._settings.orphan_ttl_s / 2)

    async def collect(self, *, is_dry_run: bool = False) -> Collected:
        """Collect while the registry is in use.

        Raises:
            StorageError: the disk says no, or a manifest is damaged, so that nobody knows what it refers to.
        """
        async with self._writing:  # what manifests refer to stays as it is; blobs go on coming
            return await to_its_end(self._collected(is_dry_run))

    def collect_at_start(self) -> None:
        """Collect before anybody uses the registry. Blocks; what cannot be removed is no reason not to start."""
        now = self._now()
        try:
            self._expire_uploads(now)
            found = self._collect(tuple(self._rows()), now.timestamp(), is_dry_run=False)
        except StorageError as error:
            log(_log, logging.WARNING, "garbage not collected", error=error.message)
        else:
            _report(found)

    async def _collected(self, is_dry_run: bool) -> Collected:
        now = self._now()
        uploads = sort_out(self._uploads.unfinished(), self._keep_s, now.timestamp())
        if not is_dry_run:
            self._expire_uploads(now)
        rows = tuple(self._rows())
        found = await asyncio.to_thread(self._collect, rows, now.timestamp(), is_dry_run=is_dry_run)
        found = replace(found, removed=uploads.garbage + found.removed, young=uploads.young + found.young)
        _report(found)
        return found

    def _expire_uploads(self, now: datetime) -> None:
        with disk_errors("dropping abandoned uploads"):
            self._uploads.expire(now)

    def _collect(self, rows: Iterable[ManifestRow], now: float, *, is_dry_run: bool) -> Collected:
        referred = _referred(rows, self._store)
        plan = sort_out(_found(self._store, self._unpacked, referred), self._keep_s, now)
        if is_dry_run:
            return Collected(is_dry_run=True, removed=plan.garbage, young=plan.young)
        removed: list[Stored] = []
        failed: list[Failed] = []
        for one in plan.garbage:
            try:
                if one.kind != "blob":
                    _remove(self._store.root / one.name)
                elif not self._store.remove_untouched(one.name, since=now - self._keep_s["blob"]):
                    continue  # a push has looked for it since
            except StorageError as error:  # one that cannot be removed does not keep the others
                failed.append(Failed(name=one.name, reason=error.message))
            else:
                removed.append(one)
        return Collected(is_dry_run=False, removed=tuple(removed), young=plan.young, failed=tuple(failed))


def _report(found: Collected) -> None:
    if found.removed or found.failed:
        freed_bytes = sum(one.size_bytes for one in found.removed)
        log(_log, logging.INFO, "garbage collected", is_dry_run=found.is_dry_run, removed=len(found.removed),
            size_bytes=freed_bytes, failed=len(found.failed))  # fmt: skip


def _referred(rows: Iterable[ManifestRow], store: BlobStore) -> frozenset[str]:
    """Return the digests of manifests, and of all that they refer to."""
    found: set[str] = set()
    for row in rows:
        try:
            found.update((row.digest, *children_in(store.read(row.digest), row.media_type)))
        except PenstockError as error:
            raise StorageError(
                f"nothing is removed: a manifest of {row.repository} is damaged, and nobody knows what it refers to; "
                f"push it again or delete it ({error.message})"
            ) from error
    return frozenset(found)


def _found(store: BlobStore, unpacked: Path, referred: frozenset[str]) -> Iterator[Stored]:
    with disk_errors(f"looking through {store.root}"):
        for digest in store.digests():
            yield from _stored("blob", digest, store.path(digest), is_needed=digest in referred)
        for path in store.temporary_files():
            yield from _stored("temporary", str(path.relative_to(store.root)), path)
        for path in tuple(unpacked.iterdir()) if unpacked.is_dir() else ():
            is_needed = f"sha256:{path.name}" in referred
            yield from _stored("temporary", str(path.relative_to(store.root)), path, is_needed=is_needed)


def _stored(kind: Kind, name: str, path: Path, *, is_needed: bool = False) -> Iterator[Stored]:
    try:
        status = path.stat()
        size_bytes = _size_of(path) if path.is_dir() else status.st_size
    except FileNotFoundError:  # gone since it was listed
        return
    yield Stored(kind=kind, name=name, size_bytes=size_bytes, touched_at=status.st_mtime, is_needed=is_needed)


def _size_of(directory: Path) -> int:
    """Count what comes free with a directory: files that are blobs as well stay."""
    found = [path.stat() for path in directory.iterdir()]
    return sum(status.st_size for status in found if status.st_nlink == 1)


def _remove(path: Path) -> None:
    with disk_errors(f"removing {path}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
