"""Opens the database that the settings name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from cloud_core.settings import CoreSettings
from cloud_core.state import Database
from penstock.errors import DatabaseAway, InUse, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)

DATABASE_FILE = "core.db"
UNFINISHED = "restoring"
"""A file beside it while a backup is being put back."""


async def turn_at(settings: CoreSettings, stop: asyncio.Event) -> Database:
    """Open the database when it is this core's turn: at once, or where it stands by, when no other core has it.

    Raises:
        InUse: another core has it, and this one does not stand by, or was told to stop meanwhile. Otherwise as
        :func:`open_database`; a database that is away is waited for, too, once there was one to stand by for.
    """
    has_waited = False
    while True:
        try:
            return await asyncio.to_thread(open_database, settings)
        except (InUse, DatabaseAway) as error:
            is_waited_for = settings.cluster.standby and (has_waited or isinstance(error, InUse))
            if stop.is_set() or not is_waited_for:
                raise
            if not has_waited:
                log(_log, logging.INFO, "standing by", until="the core that has the database is gone")
            has_waited = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.cluster.standby_s)


async def keep_place(database: Database, every_s: float) -> None:
    """Look from time to time whether this core still has its database; runs until cancelled.

    Raises:
        InUse: its session broke, and another core was quicker. What this one remembers is not true any more: it ends,
            and stands by when it is started again.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            await database.run(lambda _: None)
        except InUse:
            raise
        except StorageError:  # away, for a while: whoever has to write says so
            continue


def open_database(settings: CoreSettings) -> Database:
    """Open it, and bring its schema up to date.

    Raises:
        ConfigError, MissingExtra: it cannot be one. DatabaseAway: PostgreSQL does not answer. StorageError: the data
        directory is not writable, or another core uses it. NewerState: a newer Penstock wrote it.
    """
    data_dir = Path(settings.data_dir)
    if (data_dir / UNFINISHED).exists():
        raise StorageError(f"{data_dir}: a backup was not put back to its end; run 'penstock core restore' again")
    if not settings.database:
        return Database.open(data_dir / DATABASE_FILE)
    limits = settings.cluster
    return Database.connect(settings.database, connect_s=limits.connect_s, statement_s=limits.statement_s)
