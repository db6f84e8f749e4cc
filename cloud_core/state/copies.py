"""Copies of a core's SQLite file, made while a core may be writing to it, by SQLite's own way of backing up.

Takes no lock of a core's, and changes nothing in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from cloud_core.state import tables
from cloud_core.state.database import Database
from penstock.artifact.blobs import disk_errors
from penstock.errors import StorageError


def copy_file(source: Path, target: Path) -> int:
    """Copy a database as it is at one moment into a new file, durably; return the version of its schema.

    Raises:
        StorageError: it is not there, no database, or damaged; or the disk said no.
    """
    with disk_errors(f"writing {target}"):
        target.unlink(missing_ok=True)
    made = create_engine(f"sqlite:///{target}")
    try:
        _copy(source, made)
        with made.connect() as connection:
            damage = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            if damage != "ok":
                raise StorageError(f"{source}: damaged: {damage}")
            connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
            return int(connection.execute(select(tables.schema_version.c.version)).scalar_one())
    except DBAPIError as error:
        raise StorageError(f"{source}: {error.orig}") from error
    finally:
        made.dispose()


def opened_copy(source: Path) -> tuple[Database, int]:
    """Copy a database into memory and bring the copy up to date; return it, and the version that the file has.

    Raises:
        StorageError: as :func:`copy_file`. NewerState: a newer Penstock wrote it.
    """
    made = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    try:
        _copy(source, made)
        with made.connect() as connection:
            is_ours = inspect(connection).has_table(tables.schema_version.name)
            found = connection.execute(select(tables.schema_version.c.version)).scalar() if is_ours else 0
        return Database.of(made, str(source)), int(found or 0)
    except DBAPIError as error:
        made.dispose()
        raise StorageError(f"{source}: {error.orig}") from error
    except BaseException:
        made.dispose()
        raise


def _copy(source: Path, made: Engine) -> None:
    if not source.is_file():
        raise StorageError(f"{source}: there is no such file")
    read = create_engine(f"sqlite:///file:{source}?mode=ro&uri=true", connect_args={"timeout": 5})
    try:
        connection, target = read.raw_connection(), made.raw_connection()
        try:
            backed_up: Any = connection.driver_connection
            backed_up.backup(target.driver_connection)
        except read.dialect.loaded_dbapi.Error as error:
            raise StorageError(f"{source}: {error}") from error
        finally:
            connection.close()
            target.close()
    finally:
        read.dispose()
