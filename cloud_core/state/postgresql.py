"""What is different where the core's database is PostgreSQL: its URL, its sessions, its errors.

SQLAlchemy imports psycopg, and nothing here does. Decides nothing about tables.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from penstock.errors import ConfigError, DatabaseAway, InUse, StorageError, missing_extra

_ALONE = 0x50454E53  # "PENS": the number of the lock that the core has which uses a database
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
    values = {
        "statement_timeout": limit_ms,
        "lock_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "tcp_keepalives_idle": 5,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
    }
    options = " ".join(f"-c {name}={value}" for name, value in values.items())
    try:
        engine = create_engine(
            _parsed(url),
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(2, round(connect_s)),
                "options": options,
                "application_name": "penstock core",
            },
        )
    except ModuleNotFoundError as error:
        raise missing_extra("psycopg", "postgres", "a database of PostgreSQL") from error

    return engine


def keep_alone(engine: Engine, where: str) -> None:
    """Have each connection take the lock of the one core that may use the database, before anything else.

    A connection that breaks gives it up. The one after it takes it again, unless another core was quicker: then this
    core writes nothing any more, and says so. A server holds on to a session whose machine is gone for as long as TCP
    does; the session asks for seconds.
    """

    @event.listens_for(engine, "connect")
    def take(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            has_it = cursor.execute(f"SELECT pg_try_advisory_lock({_ALONE})").fetchone()[0]
        connection.commit()
        if not has_it:
            connection.close()
            raise InUse(f"{where} is in use by another core; stop it, or set cluster.standby = true to wait for it")


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
        return DatabaseAway(f"{where}: {cause}; it is overloaded, or somebody holds a lock: try again")
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
