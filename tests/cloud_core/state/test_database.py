"""Durability, exclusivity and the schema's version."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from cloud_core.state import Database, catalog, tables
from cloud_core.state import fleet as rows
from cloud_core.state.database import Transaction, _upsert
from penstock.errors import StorageError

WRITER = """
import asyncio, sys
from pathlib import Path
from cloud_core.state import Database, catalog, tables

async def main():
    database = Database.open(Path(sys.argv[1]))
    for n in range(1_000_000):
        await database.run(lambda tx: catalog.set_default(tx, f"model-{n}", "sha256:0", n))
        print(n, flush=True)

asyncio.run(main())
"""


def defaults(database: Database) -> dict[str, str]:
    return database.run_now(catalog.snapshot).defaults


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
    acknowledged = max([acknowledged, *map(int, rest)])
    database = Database.open(file)
    assert len(defaults(database)) >= acknowledged + 1
    database.close()


async def test_a_failed_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")

    def work(transaction: Transaction) -> None:
        catalog.set_default(transaction, "digits", "sha256:1", 0.0)
        raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        await database.run(work)
    assert defaults(database) == {}
    database.close()


def test_it_is_tuned_for_durability(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    assert database.run_now(lambda tx: tx.exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"
    assert database.run_now(lambda tx: tx.exec_driver_sql("PRAGMA synchronous").scalar()) == 2  # FULL
    database.close()


def test_two_cores_cannot_share_a_data_directory(tmp_path: Path) -> None:
    first = Database.open(tmp_path / "state.db")
    with pytest.raises(StorageError, match="in use by another core"):
        Database.open(tmp_path / "state.db")
    first.close()
    Database.open(tmp_path / "state.db").close()


def test_a_schema_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    Database.open(file).close()
    connection = sqlite3.connect(file)
    connection.execute("UPDATE schema_version SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="schema version 99, this Penstock knows 1"):
        Database.open(file)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(b"this is not a database " * 100)
    with pytest.raises(StorageError, match="not a database"):
        Database.open(file)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="a file is where a directory should be"):
        Database.open(tmp_path / "file" / "state.db")


async def test_a_full_disk_is_a_storage_error_with_advice(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    await database.run(lambda tx: tx.exec_driver_sql("PRAGMA max_page_count = 1"))
    row = rows.RolloutRow(number=1, rollout_id="a", model="m", state="planned", document="x" * 5_000_000)
    with pytest.raises(StorageError, match="free some space"):
        await database.run(lambda tx: rows.save_rollout(tx, row))
    assert database.run_now(rows.read).rollouts == ()
    database.close()


async def test_a_device_whose_first_heartbeat_is_not_on_disk_keeps_its_sequence(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    device = rows.DeviceRow(device_id="a", reported="{}", first_seen=1.0, last_seen=1.0, durable_sequence=0)
    await database.run(lambda tx: rows.record_outcomes(tx, device, 7, []))
    await database.run(lambda tx: rows.save_devices(tx, [device]))
    (stored,) = database.run_now(rows.read).devices
    assert stored.durable_sequence == 7
    database.close()


def test_the_same_statements_work_for_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in tables.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        names = tuple(column.name for column in table.columns)
        if table.primary_key.columns and len(names) > len(table.primary_key.columns):
            statement = str(_upsert("postgresql", table, names, ()).compile(dialect=dialect))
            assert "ON CONFLICT" in statement
