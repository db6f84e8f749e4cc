"""Opens the database that the settings name."""

from __future__ import annotations

from pathlib import Path

from cloud_core.settings import CoreSettings
from cloud_core.state import Database

DATABASE_FILE = "core.db"


def open_database(settings: CoreSettings) -> Database:
    """Open it, and bring its schema up to date.

    Raises:
        ConfigError, MissingExtra: it cannot be one. DatabaseAway: PostgreSQL does not answer. StorageError: the data
        directory is not writable, or another core uses it. NewerState: a newer Penstock wrote it.
    """
    if not settings.database:
        return Database.open(Path(settings.data_dir) / DATABASE_FILE)
    limits = settings.cluster
    return Database.connect(settings.database, connect_s=limits.connect_s, statement_s=limits.statement_s)
