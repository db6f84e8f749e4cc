"""What the registry keeps in the database: manifests, tags, and each model's default version.

SQL only: which pushes are acceptable is decided in ``cloud_core.registry``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from cloud_core.state import tables
from cloud_core.state.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """Holds a stored manifest.

    Attributes:
        subject: digest of the manifest that it refers to; "" for one that refers to nothing.
        is_artifact: whether it is an index of ours.
    """

    repository: str
    digest: str
    media_type: str
    artifact_type: str
    subject: str
    annotations: str
    size_bytes: int
    is_artifact: bool
    pushed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRow:
    """Holds a name that points at a manifest."""

    repository: str
    tag: str
    digest: str
    pushed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Holds the whole catalog; manifests in order of arrival."""

    manifests: tuple[ManifestRow, ...]
    tags: tuple[TagRow, ...]
    defaults: dict[str, str]


_MANIFEST_COLUMNS = [column for column in tables.manifests.c if column.name != "id"]


def snapshot(transaction: Transaction) -> Snapshot:
    """Read everything."""
    manifests = transaction.execute(select(*_MANIFEST_COLUMNS).order_by(tables.manifests.c.id)).mappings()
    tags = transaction.execute(select(tables.tags).order_by(tables.tags.c.tag)).mappings()
    defaults = transaction.execute(select(tables.defaults.c.model, tables.defaults.c.digest))
    return Snapshot(
        manifests=tuple(ManifestRow(**row) for row in manifests),
        tags=tuple(TagRow(**row) for row in tags),
        defaults={row.model: row.digest for row in defaults},
    )


def put_manifest(transaction: Transaction, row: ManifestRow, tag: str | None) -> None:
    """Record a manifest (again is fine), point ``tag`` at it, and make a model's first artifact its default."""
    table = tables.manifests
    same = (table.c.repository == row.repository) & (table.c.digest == row.digest)
    if transaction.execute(select(table.c.id).where(same)).first() is None:
        values = {name: getattr(row, name) for name in ManifestRow.__slots__}
        transaction.execute(insert(table).values(**values))
    if tag is None:
        return
    pointer = {"repository": row.repository, "tag": tag, "digest": row.digest, "pushed_at": row.pushed_at}
    upsert(transaction, tables.tags, [pointer])
    if row.is_artifact:
        known = select(tables.defaults.c.model).where(tables.defaults.c.model == row.repository)
        if transaction.execute(known).first() is None:
            set_default(transaction, row.repository, row.digest, row.pushed_at)


def delete_manifest(transaction: Transaction, repository: str, digest: str) -> None:
    """Forget a manifest and the tags that point at it."""
    for table in (tables.manifests, tables.tags):
        transaction.execute(delete(table).where((table.c.repository == repository) & (table.c.digest == digest)))


def delete_tag(transaction: Transaction, repository: str, tag: str) -> None:
    """Forget a name; the manifest stays."""
    table = tables.tags
    transaction.execute(delete(table).where((table.c.repository == repository) & (table.c.tag == tag)))


def set_default(transaction: Transaction, model: str, digest: str, at: float) -> None:
    """Move a model's default version."""
    upsert(transaction, tables.defaults, [{"model": model, "digest": digest, "set_at": at}])


def users_of(transaction: Transaction, model: str, digest: str) -> list[str]:
    """Say what relies on an artifact: ``default version``, ``device NAME``; at most a few are named."""
    found = []
    is_default = select(tables.defaults.c.model).where(
        (tables.defaults.c.model == model) & (tables.defaults.c.digest == digest)
    )
    if transaction.execute(is_default).first() is not None:
        found.append("the default version")
    released = select(tables.releases.c.digest, tables.releases.c.certificates).where(tables.releases.c.model == model)
    for artifact, certificates in transaction.execute(released):
        if digest == artifact or digest in json.loads(certificates or "[]"):
            found.append("the fleet's release")
    table = tables.assignments
    is_meant = (table.c.digest == digest) | (table.c.certificate_digest == digest)
    assigned = select(table.c.device_id).where((table.c.model == model) & is_meant).limit(3)
    return found + [f"device {device_id}" for (device_id,) in transaction.execute(assigned)]
