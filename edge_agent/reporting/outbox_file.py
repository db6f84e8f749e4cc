"""The file of the outbox: its tables, how one of an older release is brought up to date, and which is refused.

The file has a schema version (``PRAGMA user_version``). An older file is brought up to date when it is opened; a newer
one is refused before anything in it is changed. What the tables mean is ``edge_agent.reporting.outbox``'s.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import StorageError, newer_state
from penstock.wire.outcomes import COLUMNS

SCHEMA_VERSION = 3
"""Raise it when a table changes in another way than by a new counter, and say in ``_upgrade`` what becomes of older
files. Version 0 is what Penstock 0.1.0 wrote: the tables of version 1, without a version. ``stored_at`` and
``touched_at`` are seconds that passed; before version 2 they were dates. Before version 3 there was no instance, and
the highest sequence that was sent stood in a table of its own."""

_MODE = 0o600
_PAGE_BYTES = 1024
"""A commit writes whole pages, and a record changes four of them; smaller ones hold barely one record."""
_CHECKPOINT_PAGES = 100
"""The log begins again after that many pages: while it grows, each commit has the file system write its own journal;
over what is there already it has not. With SQLite's 1000 a log grew for hours (docs/adr/0026-wear.md)."""

_COUNTS = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COLUMNS)
_TABLES = (
    f"""CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    instance TEXT,
    stored_at REAL NOT NULL,
    model TEXT NOT NULL, artifact_digest TEXT NOT NULL,
    {_COUNTS},
    started_at REAL NOT NULL, ended_at REAL NOT NULL
)""",
    f"""CREATE TABLE IF NOT EXISTS totals (
    model TEXT NOT NULL, artifact_digest TEXT NOT NULL, touched_at REAL NOT NULL,
    {_COUNTS},
    PRIMARY KEY (model, artifact_digest)
)""",
    # ``instance`` of a record is the one it was sent under, and NULL before it was
    "CREATE TABLE IF NOT EXISTS instance (one INTEGER PRIMARY KEY CHECK (one = 1), key TEXT NOT NULL, "
    "place TEXT NOT NULL)",
)
RECORD = ("model", "artifact_digest", *COLUMNS, "started_at", "ended_at")


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the file.

    Raises:
        NewerState: a newer Penstock wrote it. sqlite3.Error: it is no database, or the disk refuses.
    """
    _keep_private(path)
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        _refuse_newer(db, path)  # before the first statement that changes the file
        _resize_pages(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # an append that returned survives a power cut
        db.execute("PRAGMA journal_size_limit = 1048576")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute("BEGIN IMMEDIATE")
        _upgrade(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()  # an upgrade that was cut short is rolled back: the file stays as the older release wrote it
        raise
    return db


def _keep_private(path: Path) -> None:
    """Let nobody but the agent's user read the file, whatever the umask is; SQLite gives its log and index the same
    mode. A file of an earlier release is closed to others, too.
    """
    with contextlib.suppress(OSError):  # read-only, full, or no file: the database says so in its own words
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            os.fchmod(descriptor, _MODE)
        finally:
            os.close(descriptor)


def _refuse_newer(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file of a newer release.

    Raises:
        NewerState: the file has a later schema version, or counters that this release does not know. Opened all the
            same, those counters would be lost with every record that the service acknowledges.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    unknown = _columns(db, "records") - {"sequence", "instance", "stored_at", *RECORD}
    if version > SCHEMA_VERSION or unknown:
        raise newer_state(f"outbox {path}", found=max(version, SCHEMA_VERSION + 1), known=SCHEMA_VERSION)


def _resize_pages(db: sqlite3.Connection) -> None:
    """Give the file small pages. One of an earlier release is rewritten, once, as a whole or not at all."""
    if db.execute("PRAGMA page_size").fetchone()[0] == _PAGE_BYTES:
        return
    with contextlib.suppress(sqlite3.OperationalError):  # a full or read-only disk: it does with large pages too
        db.execute("PRAGMA journal_mode = DELETE")  # pages of a file with a write-ahead log keep their size
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("VACUUM")


def _upgrade(db: sqlite3.Connection) -> None:
    """Create what is missing. Counters that the file does not have were never counted there: they begin at 0."""
    for statement in _TABLES:
        db.execute(statement)
    for table in ("records", "totals"):
        found = _columns(db, table)
        for name in COLUMNS:
            if name not in found:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
    # only where it differs: a file that is up to date must open, and give its totals, on a disk that is full
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version == SCHEMA_VERSION:
        return
    if version < 2:
        # dates, by a clock that may have been set since: ages begin now, and the order of the totals stays
        db.execute("UPDATE records SET stored_at = 0")
        db.execute("UPDATE totals SET touched_at = touched_at - (SELECT max(touched_at) FROM totals)")
    if "instance" not in _columns(db, "records"):
        # without an instance, as they were or may have been sent: by this directory, or by one that it is a copy of
        db.execute("ALTER TABLE records ADD COLUMN instance TEXT")
        db.execute("UPDATE records SET instance = ''")
    db.execute("DROP TABLE IF EXISTS sent")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none when there is no such table."""
    return {str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of the database into StorageError."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}") from error
