"""What is different where the core's database is PostgreSQL: its URL, its sessions, its errors.

SQLAlchemy imports psycopg, and nothing here does. Decides nothing about tables.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from penstock.errors import ConfigError, DatabaseAway, StorageError, missing_extra

_ONE_WRITER = 0x50454E53  # "PENS": one transaction at a time over all cores, as SQLite has it in one file
_DRIVER = "postgresql+psycopg"
# classes of SQLSTATE: connection, no such user or password, no such database, resources, an operator's intervention
_AWAY = ("08", "28", "3D", "53", "57")
_TOO_LONG = ("55P03", "57014")  # a lock, or a statement, was waited for in vain


def engine_of(url: str, *, connect_s: float, statement_s: float) -> Engine:
    """Make an engine with one connection, which is looked at before each transaction and made again where it broke.

    Raises:
        ConfigError: no URL of a database. MissingExtra: psycopg is not installed.
    """
    limit_ms = int(statement_s * 1000)
    options = (
        f"-c statement_timeout={limit_ms} -c lock_timeout={limit_ms} -c idle_in_transaction_session_timeout={limit_ms}"
    )
    try:
        engine = create_engine(
            _parsed(url),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": max(2, round(connect_s)), "options": options} | _names_us(),
        )
    except ModuleNotFoundError as error:
        raise missing_extra("psycopg", "postgres", "a database of PostgreSQL") from error

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ONE_WRITER})")

    return engine


def shown(url: str) -> str:
    """Return a URL that may be logged: without its password.

    Raises:
        ConfigError: no URL of a database.
    """
    return _parsed(url).set(drivername="postgresql", query={}).render_as_string(hide_password=True)


def refused(error: DBAPIError, where: str) -> StorageError | None:
    """Turn what PostgreSQL, or the way to it, said into an error with advice; None for another database's error."""
    state = getattr(error.orig, "sqlstate", "")
    if state == "":  # psycopg's errors have one, or None where no server said anything
        return None
    cause = " ".join(str(error.orig).split())
    if state in _TOO_LONG:
        return DatabaseAway(f"{where}: {cause}; another core holds it, or it is overloaded: try again")
    if state is None or error.connection_invalidated or state[:2] in _AWAY:
        return DatabaseAway(f"{where}: {cause}; see that PostgreSQL runs there and lets this core in, then try again")
    return StorageError(f"{where}: {cause}")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError(f"database: not a URL; expected {_EXAMPLE}") from None
    if parsed.drivername not in ("postgresql", "postgres", _DRIVER) or not parsed.database:
        raise ConfigError(f"database: {parsed.drivername}: not a database that a core can use; expected {_EXAMPLE}")
    return parsed.set(drivername=_DRIVER)


_EXAMPLE = "postgresql://USER:PASSWORD@HOST:5432/NAME, or nothing for SQLite in data_dir"


def _names_us() -> dict[str, Any]:
    return {"application_name": "penstock core"}
