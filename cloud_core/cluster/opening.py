"""Opens the database that the settings name."""

from __future__ import annotations

from pathlib import Path

from cloud_core.settings import CoreSettings
from cloud_core.state import Database
from penstock.errors import StorageError

DATABASE_FILE = "core.db"
UNFINISHED = "restoring"
"""A file beside it while a backup is being put back."""


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
