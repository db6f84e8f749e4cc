"""Makes a key in a data directory while no core runs there: the first one, when nobody has a credential yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cloud_core.api.keys import document, read_wanted
from cloud_core.state import Database, Transaction
from cloud_core.state import fleet as rows
from cloud_core.tenants.keys import ApiKeys, Work
from penstock.errors import NotFound, StorageError

DATABASE_FILE = "core.db"


def create(data_dir: Path, wanted: Mapping[str, Any], *, who: str, reason: str, max_keys: int) -> dict[str, Any]:
    """Make a key; return what is known of it, and the key.

    Args:
        wanted: as the API of a core takes it.

    Raises:
        InvalidInput: what is wanted. NotFound: there is no such directory. StorageError: a core runs there, or the
            disk said no.
    """
    asked, by = read_wanted(msgspec.json.encode({**wanted, "who": who, "reason": reason}))
    if not data_dir.is_dir():
        raise NotFound(f"--data-dir: there is no directory {data_dir}; name the one that the core has, or make it")
    try:
        database = Database.open(data_dir / DATABASE_FILE)
    except StorageError as error:
        if "in use by another core" not in error.message:
            raise
        said = f"a core runs in {data_dir}; leave --data-dir out, and it is asked (--core, --token)"
        raise StorageError(said) from None

    async def act(command: str, subject: str, work: Work) -> None:
        row = rows.ActionRow(at=time.time(), who=by.who, action=command, subject=subject, reason=by.reason)

        def both(transaction: Transaction) -> None:
            work(transaction)
            rows.record_action(transaction, row)

        await database.run(both)

    async def make() -> dict[str, Any]:
        made, key = await ApiKeys(database, wall_clock=time.time, max_keys=max_keys).create(asked, act)
        return {**document(made), "key": key}

    try:
        return asyncio.run(make())
    finally:
        database.close()
