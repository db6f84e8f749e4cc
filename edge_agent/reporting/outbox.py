"""Outcome records on their way to the fleet service: a bounded, durable queue in SQLite. Its only importer.

Owns the sequence: it increases for as long as the device lives, across restarts, and also after the queue was emptied.
A record is deleted only when the service said that it is durable there. Beside it, the totals of each artifact, so that
counters go on after a restart. Sends nothing itself (``edge_agent.reporting.delivery``).

When the queue is full and ``when_full`` is ``merge``, the two oldest records of one artifact that were never sent are
folded into one: counts are kept, their resolution in time is not. Only when there is no such pair is the oldest record
dropped, and counted. A record that was sent keeps its counts: the service may have it already under that sequence.

The file has a schema version (``PRAGMA user_version``). An older file is brought up to date when it is opened; a newer
one is refused before anything in it is changed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.serving.counts import IntervalCounts
from edge_agent.settings import OutboxSettings
from penstock.errors import StorageError, newer_state
from penstock.process.telemetry import log
from penstock.wire.outcomes import COLUMNS, COUNTERS, NOTHING, OutcomeCounts

SCHEMA_VERSION = 2
"""Raise it when a table changes in another way than by a new counter, and say in ``_upgrade`` what becomes of older
files. Version 0 is what Penstock 0.1.0 wrote: the tables of version 1, without a version. ``stored_at`` and
``touched_at`` are seconds that passed; before version 2 they were dates."""

_log = logging.getLogger(__name__)
_COUNTS = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in COLUMNS)
_TABLES = (
    f"""CREATE TABLE IF NOT EXISTS records (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
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
    "CREATE TABLE IF NOT EXISTS sent (one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO sent VALUES (1, 0)",
)
_SUMS = ", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS)
_RECORD = ("model", "artifact_digest", *COLUMNS, "started_at", "ended_at")
_PASSED = (("records", "stored_at"), ("totals", "touched_at"))
_MAX_TOTALS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One queued interval, and its number in the order of the queue."""

    sequence: int
    interval: IntervalCounts


class Outbox:
    """The queue. Not thread-safe: its owner makes one call at a time, from any thread."""

    def __init__(self, path: Path, settings: OutboxSettings, *, now: Callable[[], float]) -> None:
        """Open or create the file, and bring an older one up to date. One that is no database is set aside.

        Args:
            now: a clock that nobody sets, such as ``time.monotonic``. What has passed goes on from one opening to the
                next: a record's age is time in which the device ran, whatever its calendar says.

        Raises:
            NewerState: a newer Penstock wrote the file.
            StorageError: the disk is full or not writable.
        """
        self._path, self._settings, self._now = path, settings, now
        with _storage_errors(path):
            try:
                self._db = _connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log(_log, logging.ERROR, "outbox unreadable, set aside", file=path, error=error)
                os.replace(path, path.with_suffix(".bad"))
                self._db = _connect(path)
            self._opened_at, self._passed_before_s = now(), self._latest_s()
            self.dropped = 0
            self.depth = self._count()

    def __repr__(self) -> str:
        return f"Outbox(depth={self.depth}, last_sequence={self.last_sequence()}, dropped={self.dropped})"

    def close(self) -> None:
        self._db.close()

    def append(self, intervals: Sequence[IntervalCounts]) -> None:
        """Make intervals durable: all of them or, when the disk is full, none.

        Raises:
            StorageError: the disk is full or not writable; nothing was added.
        """
        with self._transaction():
            self._expire()
            for interval in intervals:
                self._make_room()
                self._db.execute(
                    f"INSERT INTO records (stored_at, {', '.join(_RECORD)}) VALUES ({_marks(1 + len(_RECORD))})",
                    [
                        self._passed_s(),
                        interval.model,
                        interval.artifact_digest,
                        *interval.counts.columns().values(),
                        interval.started_at,
                        interval.ended_at,
                    ],
                )
                self._add_to_totals(interval)

    def totals(self, model: str, artifact_digest: str) -> OutcomeCounts:
        """Return all counts that were ever appended for an artifact.

        They are kept for the last artifacts that this device ran; for any other one there is nothing.

        Raises:
            StorageError: the file cannot be read.
        """
        query = f"SELECT {', '.join(COUNTERS)} FROM totals WHERE model = ? AND artifact_digest = ?"
        with _storage_errors(self._path):
            row = self._db.execute(query, [model, artifact_digest]).fetchone()
        return _counts(row) if row else NOTHING

    def batch(self) -> tuple[Record, ...]:
        """Return the oldest records, at most ``max_batch``; from now on they count as sent.

        Raises:
            StorageError: that they were sent could not be made durable; do not send them.
        """
        columns = f"sequence, model, artifact_digest, started_at, ended_at, {', '.join(COUNTERS)}"
        query = f"SELECT {columns} FROM records ORDER BY sequence LIMIT ?"
        with _storage_errors(self._path):
            rows = self._db.execute(query, [self._settings.max_batch]).fetchall()
        if not rows:
            return ()
        if rows[-1][0] > self._sent():
            with self._transaction():
                self._db.execute("UPDATE sent SET sequence = ?", [rows[-1][0]])
        return tuple(
            Record(
                sequence=sequence,
                interval=IntervalCounts(
                    model=model,
                    artifact_digest=artifact_digest,
                    counts=_counts(counts),
                    started_at=started_at,
                    ended_at=ended_at,
                ),
            )
            for sequence, model, artifact_digest, started_at, ended_at, *counts in rows
        )

    def acknowledge(self, durable_sequence: int) -> None:
        """Drop records up to ``durable_sequence``.

        A sequence beyond any that was ever given out means that this queue was lost and started at 1 again, under a
        device id that the service knows: it would take our records for old ones, which it has counted, and drop them.
        They are renumbered to follow on.

        Raises:
            StorageError: the disk is not writable; the records stay and will be sent again, which is harmless.
        """
        last = self.last_sequence()
        with self._transaction():
            if durable_sequence > last:
                log(_log, logging.WARNING, "outbox renumbered", last_sequence=last, durable_sequence=durable_sequence)
                self._renumber(durable_sequence)
            else:
                self._db.execute("DELETE FROM records WHERE sequence <= ?", [durable_sequence])

    def last_sequence(self) -> int:
        """Return the highest sequence ever given out."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
        return int(row[0]) if row else 0

    def _add_to_totals(self, interval: IntervalCounts) -> None:
        self._db.execute(
            f"INSERT INTO totals (model, artifact_digest, touched_at, {', '.join(COLUMNS)}) "
            f"VALUES ({_marks(3 + len(COLUMNS))}) ON CONFLICT (model, artifact_digest) "
            f"DO UPDATE SET touched_at = excluded.touched_at, {_SUMS}",
            [interval.model, interval.artifact_digest, self._passed_s(), *interval.counts.columns().values()],
        )
        self._db.execute(
            "DELETE FROM totals WHERE rowid NOT IN (SELECT rowid FROM totals ORDER BY touched_at DESC LIMIT ?)",
            [_MAX_TOTALS],
        )

    def _renumber(self, above: int) -> None:
        # from the newest down, so that no two rows ever share a number
        rows = self._db.execute("SELECT sequence FROM records ORDER BY sequence DESC").fetchall()
        for index, (sequence,) in enumerate(rows):
            new = above + len(rows) - index
            self._db.execute("UPDATE records SET sequence = ? WHERE sequence = ?", [new, sequence])
        self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'records'")
        self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?)", [above + len(rows)])
        self._db.execute("UPDATE sent SET sequence = ?", [above])

    def _make_room(self) -> None:
        while self._is_full():
            if self._settings.when_full != "merge" or not self._fold():
                self._db.execute("DELETE FROM records WHERE sequence = (SELECT min(sequence) FROM records)")
                self.dropped += 1

    def _is_full(self) -> bool:
        count = self._count()
        if count == 0:
            return False
        pages, free, page_bytes = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return count >= self._settings.max_records or (pages - free) * page_bytes >= self._settings.max_bytes

    def _fold(self) -> bool:
        """Fold the two oldest unsent records of the artifact that has most of them; False when none has two."""
        row = self._db.execute(
            "SELECT model, artifact_digest FROM records WHERE sequence > ? GROUP BY model, artifact_digest "
            "HAVING count(*) > 1 ORDER BY count(*) DESC LIMIT 1",
            [self._sent()],
        ).fetchone()
        if row is None:
            return False
        (first,), (second,) = self._db.execute(
            "SELECT sequence FROM records WHERE sequence > ? AND model = ? AND artifact_digest = ? "
            "ORDER BY sequence LIMIT 2",
            [self._sent(), *row],
        ).fetchall()
        sums = ", ".join(f"{name} = {name} + (SELECT {name} FROM records WHERE sequence = :first)" for name in COLUMNS)
        self._db.execute(
            f"UPDATE records SET {sums}, "
            "started_at = min(started_at, (SELECT started_at FROM records WHERE sequence = :first)), "
            "ended_at = max(ended_at, (SELECT ended_at FROM records WHERE sequence = :first)) WHERE sequence = :second",
            {"first": first, "second": second},
        )
        self._db.execute("DELETE FROM records WHERE sequence = ?", [first])
        return True

    def _expire(self) -> None:
        oldest_s = self._passed_s() - self._settings.ttl_s
        self.dropped += self._db.execute("DELETE FROM records WHERE stored_at < ?", [oldest_s]).rowcount

    def _passed_s(self) -> float:
        return self._passed_before_s + self._now() - self._opened_at

    def _latest_s(self) -> float:
        """Read what had passed when the file was last written; nothing is known of the time since."""
        query = (
            "SELECT max(coalesce((SELECT max(touched_at) FROM totals), 0), coalesce(max(stored_at), 0)) FROM records"
        )
        return float(self._db.execute(query).fetchone()[0])

    def _sent(self) -> int:
        return int(self._db.execute("SELECT sequence FROM sent").fetchone()[0])

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        dropped = self.dropped
        with _storage_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self.dropped = dropped
                if self._db.in_transaction:  # a full disk has SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise
            self.depth = self._count()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        _refuse_newer(db, path)  # before the first statement that changes the file
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # an append that returned survives a power cut
        db.execute("PRAGMA journal_size_limit = 1048576")
        db.execute("BEGIN IMMEDIATE")
        _upgrade(db)
        db.execute("COMMIT")
    except BaseException:
        db.close()  # an upgrade that was cut short is rolled back: the file stays as the older release wrote it
        raise
    return db


def _refuse_newer(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file of a newer release.

    Raises:
        NewerState: the file has a later schema version, or counters that this release does not know. Opened all the
            same, those counters would be lost with every record that the service acknowledges.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    unknown = _columns(db, "records") - {"sequence", "stored_at", *_RECORD}
    if version > SCHEMA_VERSION or unknown:
        raise newer_state(f"outbox {path}", found=max(version, SCHEMA_VERSION + 1), known=SCHEMA_VERSION)


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
    if db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
        # dates, by a clock that may have been set since: ages begin now, and the order of the totals stays
        db.execute("UPDATE records SET stored_at = 0")
        db.execute("UPDATE totals SET touched_at = touched_at - (SELECT max(touched_at) FROM totals)")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none when there is no such table."""
    return {str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")}


def _counts(row: Sequence[int]) -> OutcomeCounts:
    return OutcomeCounts(**dict(zip(COUNTERS, row, strict=True)))


def _marks(number: int) -> str:
    return ", ".join("?" * number)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}") from error
