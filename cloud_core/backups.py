"""Backups of a core's state and blobs: made while it serves, put back into an empty data directory.

A backup is a directory. What makes it one is ``backup.json``, which is written last and in one step: a backup that is
cut short leaves the one before as it was. Blobs are by digest, so that the next backup into the same directory copies
what is new. Blobs are copied after the database: what it refers to is there then, and garbage is never that young.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cloud_core.cluster.opening import DATABASE_FILE, UNFINISHED
from cloud_core.registry.manifest_rules import children_in
from cloud_core.settings import CoreSettings
from cloud_core.state import catalog
from cloud_core.state.copies import copy_file, opened_copy
from cloud_core.state.database import exclusive
from penstock.artifact.blobs import BlobStore, digest_of_file, disk_errors, fsync_directory, write_atomically
from penstock.errors import Conflict, DigestMismatch, NotFound, StorageError

CONTENTS = "backup.json"
REGISTRY = "registry"


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What ``backup.json`` says.

    Attributes:
        database: name of the copy of the state; "" where PostgreSQL has it.
        database_digest: SHA-256 of that file.
        schema: version of the state.
        blobs: how many belong to it.
        size_bytes: of them.
        made_at: in UTC.
    """

    database: str
    database_digest: str
    schema: int
    blobs: int
    size_bytes: int
    made_at: str


def back_up(settings: CoreSettings, to: Path) -> tuple[Backup, int]:
    """Copy state and blobs of a core, which may run, into a directory; return what it has, and how many blobs are new.

    Raises:
        Conflict: state is in PostgreSQL, which has its own way. NotFound: no core's data directory. StorageError: the
            disk said no, or the database is damaged. DigestMismatch: a blob is damaged; push it again.
    """
    data_dir = Path(settings.data_dir)
    if settings.database:
        raise Conflict(
            "the state is in PostgreSQL: run 'pg_dump --format=custom --file core.dump' with its URL first, and then "
            f"copy {settings.registry.root(data_dir)}"
        )
    source = data_dir / DATABASE_FILE
    if not source.is_file():
        raise NotFound(f"{data_dir} is no data directory of a core: it has no {DATABASE_FILE}")
    store = BlobStore(to / REGISTRY)
    with disk_errors(f"writing {to}"):
        to.chmod(0o700)  # hashes of keys, and what tenants do
    name = f"core-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.db"
    schema = copy_file(source, to / name)
    with disk_errors(f"writing {to / name}"):
        (to / name).chmod(0o600)
        with (to / name).open("rb") as copied:
            os.fsync(copied.fileno())
    blobs = BlobStore(settings.registry.root(data_dir))
    needed = _needed(to / name, blobs)
    new = _copy_blobs(blobs, store, needed)
    made = Backup(
        database=name,
        database_digest=digest_of_file(to / name),
        schema=schema,
        blobs=len(needed),
        size_bytes=sum(store.size_bytes(digest) for digest in needed),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    fsync_directory(to)
    write_atomically(to / CONTENTS, msgspec.json.encode(made))
    for old in to.glob("core-*.db*"):  # of the backup before, and of those that were cut short
        if old.name != name:
            old.unlink(missing_ok=True)
    return made, new


def restore(of: Path, settings: CoreSettings) -> Backup:
    """Put a backup back into a data directory that has no state; blobs that are there already stay.

    Cut short, it is begun again: no core starts in the directory before it was ended.

    Raises:
        NotFound: no whole backup. Conflict: the directory has state. StorageError: a core runs there, or the disk said
            no. DigestMismatch: the backup is damaged.
    """
    data_dir, made = Path(settings.data_dir), read(of)
    if digest_of_file(of / made.database) != made.database_digest:
        raise DigestMismatch(f"{of / made.database} is not what was backed up: {made.database_digest} was")
    target = data_dir / DATABASE_FILE
    with disk_errors(f"writing {data_dir}"):
        data_dir.mkdir(parents=True, exist_ok=True)
    lock = exclusive(target)
    try:
        if target.exists():
            raise Conflict(f"{data_dir} has state of a core; move {DATABASE_FILE} away, or name another directory")
        write_atomically(data_dir / UNFINISHED, str(of).encode())
        from_store = BlobStore(of / REGISTRY)
        _copy_blobs(from_store, BlobStore(settings.registry.root(data_dir)), _needed(of / made.database, from_store))
        write_atomically(target, (of / made.database).read_bytes())
        (data_dir / UNFINISHED).unlink()
    finally:
        lock.close()
    return made


def read(of: Path) -> Backup:
    """Read what a backup says of itself.

    Raises:
        NotFound: there is none, or none that was ended. StorageError: it says nothing that can be read.
    """
    try:
        made = msgspec.json.decode((of / CONTENTS).read_bytes(), type=Backup)
    except FileNotFoundError:
        raise NotFound(f"{of} is no whole backup: it has no {CONTENTS}; one that was cut short is made again") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{of / CONTENTS}: {error}") from None
    if not (of / made.database).is_file():
        raise NotFound(f"{of / made.database} is gone")
    return made


def needed_blobs(rows: Iterable[catalog.ManifestRow], store: BlobStore) -> list[str]:
    """Return the digests of manifests, and of all that they refer to, sorted.

    Raises:
        NotFound, ArtifactError: a manifest is gone or damaged.
    """
    found: set[str] = set()
    for row in rows:
        found.update((row.digest, *children_in(store.read(row.digest), row.media_type)))
    return sorted(found)


def _needed(database: Path, store: BlobStore) -> list[str]:
    copied, _ = opened_copy(database)
    try:
        return needed_blobs(copied.run_now(catalog.snapshot).manifests, store)
    finally:
        copied.close()


def _copy_blobs(source: BlobStore, target: BlobStore, digests: list[str]) -> int:
    """Copy what is missing; each copy is hashed on its way and is there whole, or not at all."""
    new = 0
    for digest in digests:
        if target.has(digest) and target.size_bytes(digest) == source.size_bytes(digest):
            continue
        source.size_bytes(digest)
        if target.put_file(source.path(digest)) != digest:
            raise DigestMismatch(f"{source.path(digest)} is damaged; push what it belongs to again")
        new += 1
    return new


def as_document(made: Backup, where: Path, new: int) -> dict[str, Any]:
    """Return what a command shows."""
    return {"backup": str(where), "new_blobs": new, **msgspec.to_builtins(made)}
