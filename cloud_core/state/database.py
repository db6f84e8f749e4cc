"""The database: opens it, upgrades its schema, runs transactions one at a time on one thread.

SQLite in the data directory, or PostgreSQL by a URL. Owns durability: when :meth:`Database.run` returns, its changes
survive ``kill -9`` and a power cut (WAL with ``synchronous=FULL``; PostgreSQL's ``synchronous_commit`` as it is set
there). Knows no table's meaning; those are ``catalog`` and ``fleet`` beside it.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, Insert, Table, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from cloud_core.state import postgresql
from cloud_core.state.upgrades import upgrade
from penstock.artifact.blobs import disk_errors
from penstock.errors import InUse, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")
Transaction = Connection
"""What a piece of work gets. Named here so that nothing outside ``cloud_core.state`` imports SQLAlchemy."""

_NO_ROOM_FOR_INDEX = ("SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP")


class _NoRoomForIndex(StorageError):
    """The write-ahead log's index, a file beside the database that is shared with other processes, cannot be made."""


class Database:
    """Runs transactions on one SQLite file (or in memory, for tests and simulations), or on PostgreSQL; one at a time.

    Memory is what the database says, so that one core at a time has it: by a lock on a file, or by one of PostgreSQL's
    that its session holds. One thread of our own keeps waiting for it off the event loop.
    """

    def __init__(self, engine: Engine, *, where: str, lock: IO[bytes] | None, has_thread: bool = False) -> None:
        self._engine, self._where, self._lock = engine, where, lock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state") if lock or has_thread else None

    def __repr__(self) -> str:
        return f"Database({self._where!r})"

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open or create the file and bring its schema up to date.

        Raises:
            NewerState: a newer Penstock wrote it; nothing in it was changed.
            StorageError: it is not writable, no database, or locked by another core.
        """
        with disk_errors(f"creating {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = exclusive(path)
        try:
            return cls._opened(f"sqlite:///{path}", str(path), lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def connect(
        cls, url: str, *, connect_s: float = 5.0, statement_s: float = 30.0, is_looked_at: bool = False
    ) -> Database:
        """Open a database of PostgreSQL and bring its schema up to date.

        Args:
            url: ``postgresql://user:password@host:port/name``, as libpq takes it. The password is never shown.
            connect_s: how long a connection may take to be made.
            statement_s: how long one statement may take.
            is_looked_at: takes no lock, and leaves its schema as it is: for who only reads.

        Raises:
            ConfigError: no URL of a database. MissingExtra: psycopg is not installed. DatabaseAway: nobody answers
            there, or it lets nobody in. NewerState: a newer Penstock wrote it; nothing in it was changed. InUse:
            another core has it.
        """
        engine = postgresql.engine_of(url, connect_s=connect_s, statement_s=statement_s)
        if not is_looked_at:
            postgresql.keep_alone(engine, postgresql.shown(url))
        database = cls(engine, where=postgresql.shown(url), lock=None, has_thread=True)
        return database if is_looked_at else cls._checked(database)

    @classmethod
    def of(cls, engine: Engine, where: str) -> Database:
        """Take an engine that somebody made, and bring its schema up to date; work runs in the caller's thread.

        Raises:
            NewerState: a newer Penstock wrote it.
        """
        return cls._checked(cls(engine, where=where, lock=None))

    @classmethod
    def in_memory(cls) -> Database:
        """Open a database that is gone when closed; work runs in the caller's thread."""
        return cls._opened("sqlite://", "memory", None)

    @classmethod
    def _opened(cls, url: str, where: str, lock: IO[bytes] | None) -> Database:
        try:
            return cls._tried(url, where, lock, index_in_memory=False)
        except _NoRoomForIndex:
            # SQLite keeps it in memory where it need not be shared: a full disk must not keep a core from serving
            effect = "it is kept in memory, and nobody else can read or back up the database"
            log(_log, logging.WARNING, "no room for the index of the database", database=where, until_restart=effect)
            return cls._tried(url, where, lock, index_in_memory=True)

    @classmethod
    def _tried(cls, url: str, where: str, lock: IO[bytes] | None, *, index_in_memory: bool) -> Database:
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": 5})
        if engine.dialect.name == "sqlite":
            _tune_sqlite(engine, ("locking_mode=EXCLUSIVE",) if index_in_memory else ())
        return cls._checked(cls(engine, where=where, lock=lock))

    @classmethod
    def _checked(cls, database: Database) -> Database:
        try:
            database.run_now(lambda tx: upgrade(tx, database._where))
        except BaseException:
            database._engine.dispose()
            raise
        return database

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction; durable when this returns, rolled back when it raises.

        Raises:
            StorageError: the disk said no. DatabaseAway: PostgreSQL does not answer. Whatever ``work`` raises.
        """
        if self._thread is None:
            return self.run_now(work)
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._thread, self.run_now, work))

    def run_now(self, work: Callable[[Transaction], T]) -> T:
        """Do the same in the caller's thread: for start-up and tests.

        Raises:
            StorageError: the disk said no. DatabaseAway: PostgreSQL does not answer. Whatever ``work`` raises.
        """
        with _database_errors(self._where), self._engine.begin() as transaction:
            return work(transaction)

    def close(self) -> None:
        """Finish what is queued and close the file."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()


async def to_its_end(work: Awaitable[T]) -> T:
    """Await work that must not stop half-way. A cancelled caller stays until it is done, and is cancelled then.

    Otherwise a client that hangs up between a commit and what follows from it would leave memory behind the disk, and
    locks open while a thread still writes.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: there is no caller left to tell
        raise


def uncancelled(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Make a coroutine method that runs :func:`to_its_end`."""

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await to_its_end(method(*args, **kwargs))

    return call


def upsert(
    transaction: Transaction, table: Table, rows: Sequence[Mapping[str, Any]], *, leave: Sequence[str] = ()
) -> None:
    """Insert rows; of those whose primary key is there already, replace all columns but the ones in ``leave``."""
    if rows:
        transaction.execute(_upsert(transaction.dialect.name, table, tuple(rows[0]), tuple(leave)), list(rows))


@functools.cache  # building the statement costs several times what running it does
def _upsert(dialect: str, table: Table, names: tuple[str, ...], leave: tuple[str, ...]) -> Insert:
    statement: Any = sqlite.insert(table)
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql  # a core with SQLite starts 6% faster without it

        statement = postgresql.insert(table)
    keys = [column.name for column in table.primary_key]
    changed = {name: statement.excluded[name] for name in names if name not in keys and name not in leave}
    made: Insert = statement.on_conflict_do_update(index_elements=keys, set_=changed)
    return made


def _tune_sqlite(engine: Engine, first: tuple[str, ...]) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves; sqlite3 would leave DDL outside of transactions
        for pragma in (*first, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def exclusive(file: Path) -> IO[bytes]:
    """Take the lock of a database's file; it is held until what is returned is closed.

    Raises:
        InUse: a core has it. StorageError: the directory is not writable.
    """
    path = file.with_name(file.name + ".lock")
    with disk_errors(f"opening {path}"):
        held = path.open("ab")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise InUse(f"{path.parent} is in use by another core; stop it, or choose another data_dir") from None
    return held


@contextmanager
def _database_errors(where: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if (refused := postgresql.refused(error, where)) is not None:
            raise refused from error
        cause = str(error.orig)
        if getattr(error.orig, "sqlite_errorname", "") in _NO_ROOM_FOR_INDEX:
            raise _NoRoomForIndex(f"{where}: {cause}") from error
        if "full" in cause:
            cause += "; free some space and try again"
        raise StorageError(f"{where}: {cause}") from error
