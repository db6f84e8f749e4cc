"""Outcome records on their way to the fleet service: a bounded, durable queue in SQLite.

Owns the sequence: it increases for as long as the device lives, across restarts, and also after the queue was emptied.
A record is deleted only when the service said that it is durable there.

Owns the *instance* too, the name of this data directory: sequences count within it, so that a copy of the directory,
which goes on with the same sequences, is not taken for a repetition of the original. It is here and not in a file of
its own, because it has to change in one transaction with what becomes of the records: those that a copy finds keep the
instance of the original, which may deliver them as well, and are counted once; what comes later has the new one. When
the queue is lost, so is the instance, and the sequence that begins again is a new one.

Beside them, the totals of each artifact, so that counters go on after a restart. Sends nothing itself
(``edge_agent.reporting.delivery``).

When the queue is full and ``when_full`` is ``merge``, the two oldest records of one artifact that were never sent are
folded into one: counts are kept, their resolution in time is not. Only when there is no such pair is the oldest record
dropped, and counted. A record that was sent, here or by the original of a copy, keeps its counts: the service may have
it already under that sequence.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.policy.place import NOWHERE, Place, is_elsewhere, learned
from edge_agent.reporting.outbox_file import RECORD, connect, storage_errors
from edge_agent.serving.counts import IntervalCounts
from edge_agent.settings import OutboxSettings
from penstock.errors import StorageError
from penstock.process.telemetry import log
from penstock.wire.outcomes import COLUMNS, COUNTERS, NOTHING, OutcomeCounts

_log = logging.getLogger(__name__)
_SUMS = ", ".join(f"{name} = {name} + excluded.{name}" for name in COLUMNS)
_MAX_TOTALS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One queued interval, and its number in the order of the queue."""

    sequence: int
    interval: IntervalCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Holds the oldest records: of one instance, ascending by sequence."""

    instance: str
    records: tuple[Record, ...]


class Outbox:
    """The queue. Not thread-safe: its owner makes one call at a time, from any thread."""

    def __init__(
        self, path: Path, settings: OutboxSettings, *, now: Callable[[], float], place: Place = NOWHERE
    ) -> None:
        """Open or create the file, and bring an older one up to date. One that is no database is set aside.

        A file that was copied here from another place gets a new instance.

        Args:
            place: where the data directory is now.
            now: a clock that nobody sets, such as ``time.monotonic``. What has passed goes on from one opening to the
                next: a record's age is time in which the device ran, whatever its calendar says.

        Raises:
            NewerState: a newer Penstock wrote the file.
            StorageError: the disk is full or not writable.
        """
        self._path, self._settings, self._now = path, settings, now
        self.instance, self.dropped, self.depth = "", 0, 0
        with storage_errors(path):
            try:
                self._db = connect(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log(_log, logging.ERROR, "outbox unreadable, set aside", file=path, error=error)
                os.replace(path, path.with_suffix(".bad"))
                self._db = connect(path)
            self._settle(place)
            self._opened_at, self._passed_before_s = now(), self._latest_s()
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
                    f"INSERT INTO records (stored_at, {', '.join(RECORD)}) VALUES ({_marks(1 + len(RECORD))})",
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
        with storage_errors(self._path):
            row = self._db.execute(query, [model, artifact_digest]).fetchone()
        return _counts(row) if row else NOTHING

    def batch(self, *, instance: str | None = None) -> Batch:
        """Return the oldest records, at most ``max_batch`` of one instance; from now on they count as sent.

        Args:
            instance: what records that were never sent are sent under; None for the one of this directory, "" for a
                service that does not know of instances.

        Raises:
            StorageError: that they were sent could not be made durable; do not send them.
        """
        mine = self.instance if instance is None else instance
        columns = f"sequence, instance, model, artifact_digest, started_at, ended_at, {', '.join(COUNTERS)}"
        with storage_errors(self._path):
            oldest = self._db.execute("SELECT coalesce(instance, ?) FROM records ORDER BY sequence LIMIT 1", [mine])
            (chosen,) = oldest.fetchone() or (mine,)
            query = f"SELECT {columns} FROM records WHERE coalesce(instance, ?) = ? ORDER BY sequence LIMIT ?"
            rows = self._db.execute(query, [mine, chosen, self._settings.max_batch]).fetchall()
        if any(row[1] is None for row in rows):
            with self._transaction():
                self._db.execute(
                    "UPDATE records SET instance = ? WHERE instance IS NULL AND sequence <= ?", [chosen, rows[-1][0]]
                )
        records = tuple(
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
            for sequence, _, model, artifact_digest, started_at, ended_at, *counts in rows
        )
        return Batch(instance=chosen, records=records)

    def acknowledge(self, instance: str, durable_sequence: int) -> None:
        """Drop records of an instance up to ``durable_sequence``.

        A sequence beyond any that was ever given out means one of two things. Of an instance that is not ours, the
        original has gone on delivering, and has counted what we found of it. Of ours (or without one), this queue is an
        older state of itself, or was lost, under a name that the service knows: it would take our records for old
        ones, which it has counted, and drop them. They are renumbered to follow on.

        Raises:
            StorageError: the disk is not writable; the records stay and will be sent again, which is harmless.
        """
        last = self.last_sequence()
        with self._transaction():
            if durable_sequence > last and instance in ("", self.instance):
                log(_log, logging.WARNING, "outbox renumbered", last_sequence=last, durable_sequence=durable_sequence)
                self._renumber(instance, durable_sequence)
            else:
                self._db.execute(
                    "DELETE FROM records WHERE instance = ? AND sequence <= ?", [instance, durable_sequence]
                )

    def renew_instance(self) -> str:
        """Take a new instance, because another agent has the same; return it. Records from before keep the old one.

        Raises:
            StorageError: the disk is not writable; the instance stays as it is.
        """
        (place,) = self._db.execute("SELECT place FROM instance").fetchone()
        key = uuid.uuid4().hex
        with self._transaction():
            self._take_instance(key, place)
        self.instance = key
        return key

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

    def _settle(self, place: Place) -> None:
        """Find out whether this is the directory that the instance was made for; take a new one where it is not."""
        row = self._db.execute("SELECT key, place FROM instance").fetchone()
        before = msgspec.json.decode(row[1], type=Place) if row else None
        if row and before is not None and not is_elsewhere(before, place):
            self.instance = row[0]
            found = learned(before, place)
            with contextlib.suppress(StorageError):  # a full disk: it is noted another time
                if found != before:
                    with self._transaction():
                        self._db.execute("UPDATE instance SET place = ?", [msgspec.json.encode(found).decode()])
            return
        key = uuid.uuid4().hex
        with self._transaction():
            self._take_instance(key, msgspec.json.encode(place).decode())
        if row:
            log(_log, logging.WARNING, "the data directory was copied or restored: it counts apart from its original",
                instance=key, was=row[0])  # fmt: skip
        self.instance = key

    def _take_instance(self, key: str, place: str) -> None:
        self._db.execute(
            "UPDATE records SET instance = coalesce((SELECT key FROM instance), '') WHERE instance IS NULL"
        )
        self._db.execute("INSERT OR REPLACE INTO instance VALUES (1, ?, ?)", [key, place])

    def _renumber(self, instance: str, above: int) -> None:
        # from the newest down, so that no two rows ever share a number; what another instance has sent keeps its own
        rows = self._db.execute(
            "SELECT sequence FROM records WHERE coalesce(instance, ?) = ? ORDER BY sequence DESC", [instance, instance]
        ).fetchall()
        for index, (sequence,) in enumerate(rows):
            new = above + len(rows) - index
            self._db.execute("UPDATE records SET sequence = ?, instance = NULL WHERE sequence = ?", [new, sequence])
        self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'records'")
        self._db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('records', ?)", [above + len(rows)])

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
            "SELECT model, artifact_digest FROM records WHERE instance IS NULL GROUP BY model, artifact_digest "
            "HAVING count(*) > 1 ORDER BY count(*) DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return False
        (first,), (second,) = self._db.execute(
            "SELECT sequence FROM records WHERE instance IS NULL AND model = ? AND artifact_digest = ? "
            "ORDER BY sequence LIMIT 2",
            row,
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

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM records").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        dropped = self.dropped
        with storage_errors(self._path):
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


def _counts(row: Sequence[int]) -> OutcomeCounts:
    return OutcomeCounts(**dict(zip(COUNTERS, row, strict=True)))


def _marks(number: int) -> str:
    return ", ".join("?" * number)
