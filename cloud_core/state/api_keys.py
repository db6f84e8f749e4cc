"""Keys that callers hold, as hashes. SQL only: what a key may do is ``cloud_core.policy.admission``'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from cloud_core.state import tables
from cloud_core.state.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """One key. Times are UNIX seconds.

    Attributes:
        id: what it is called by; a part of the key that is no secret.
        hash: SHA-256 of the whole key, in hex.
        device_id: the only device that it may report for; "" for any.
        created_by: who made it.
        expires_at: None for never.
        last_used_at: None for never; written from time to time.
    """

    id: str
    hash: str
    tenant: str
    role: str
    device_id: str
    note: str
    created_at: float
    created_by: str
    expires_at: float | None
    last_used_at: float | None


def read(transaction: Transaction) -> tuple[KeyRow, ...]:
    """Return all keys, oldest first."""
    table = tables.api_keys
    names = [table.c[name] for name in KeyRow.__slots__]
    found = transaction.execute(select(*names).order_by(table.c.created_at, table.c.id))
    return tuple(KeyRow(**row) for row in found.mappings())


def add(transaction: Transaction, row: KeyRow) -> None:
    """Keep one more key."""
    transaction.execute(insert(tables.api_keys).values(**{name: getattr(row, name) for name in KeyRow.__slots__}))


def drop(transaction: Transaction, id: str) -> None:
    """Forget a key."""
    transaction.execute(delete(tables.api_keys).where(tables.api_keys.c.id == id))


def used(transaction: Transaction, at: Mapping[str, float]) -> None:
    """Keep when keys were used, by their ids."""
    for id, moment in at.items():
        transaction.execute(update(tables.api_keys).where(tables.api_keys.c.id == id).values(last_used_at=moment))
