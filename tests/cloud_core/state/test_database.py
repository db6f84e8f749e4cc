"""Durability, exclusivity and the schema's version."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.service import FleetService
from cloud_core.policy.rollouts import rollout
from cloud_core.registry.registry import Registry
from cloud_core.state import Database, catalog, tables, upgrades
from cloud_core.state import fleet as rows
from cloud_core.state.database import Transaction, _upsert
from penstock.errors import NewerState, StorageError
from penstock.wire.outcomes import OutcomeCounts

WRITER = """
import asyncio, sys
from pathlib import Path
from cloud_core.fleet.fleet_store import FleetStore
from cloud_core.fleet.service import FleetService
from cloud_core.registry.registry import Registry
from cloud_core.state import Database, catalog, tables, upgrades

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
    device = rows.DeviceRow(device_id="a", reported="{}", first_seen=1.0, last_seen=1.0)
    instance = rows.InstanceRow(device_id="a", instance="i", durable_sequence=7, updated_at=1.0)
    await database.run(lambda tx: rows.record_outcomes(tx, device, instance, []))
    stored = database.run_now(rows.read)
    assert (stored.devices, stored.instances) == ((device,), (instance,))
    await database.run(lambda tx: rows.save_devices(tx, [device]))
    assert database.run_now(rows.read).instances == (instance,)
    database.close()


def test_the_same_statements_work_for_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in tables.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        names = tuple(column.name for column in table.columns)
        if table.primary_key.columns and len(names) > len(table.primary_key.columns):
            statement = str(_upsert("postgresql", table, names, ()).compile(dialect=dialect))
            assert "ON CONFLICT" in statement


# -- databases of other releases -------------------------------------------------------------------------------------


GOLDEN = Path(__file__).parent / "golden" / "state-1.db"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copy(GOLDEN, tmp_path / "state.db"))


def altered(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_a_database_of_the_previous_release_is_upgraded_with_its_data_intact(golden: Path) -> None:
    database = Database.open(golden)
    stored, catalogue = database.run_now(rows.read), database.run_now(catalog.snapshot)
    version = database.run_now(lambda tx: tx.exec_driver_sql("SELECT version FROM schema_version").scalar())
    database.close()
    assert version == upgrades.SCHEMA_VERSION
    assert {device.device_id for device in stored.devices} == {"cam-1", "cam-2"}
    assert [(one.device_id, one.instance, one.durable_sequence) for one in stored.instances] == [
        ("cam-1", "", 5),
        ("cam-2", "", 0),
    ]
    (counts,) = stored.counts
    assert counts.counts == OutcomeCounts(kept=70, escalated=20, unreachable=6, failed=4, audited=60, audit_harm=30)
    assert [(row.number, row.rollout_id, row.state) for row in stored.rollouts] == [
        (1, "digits-v2-1", "stopped_by_gate"),
        (2, "digits-v2-2", "paused"),
    ]
    assert {row.device_id for row in stored.assignments} == {"cam-1", "cam-2"}
    assert {tag.tag for tag in catalogue.tags} == {"v1", "v2"}
    assert set(catalogue.defaults) == {"digits"}
    assert [(row.model, row.digest) for row in stored.releases] == list(catalogue.defaults.items())


def test_certificates_that_devices_have_by_the_previous_release_are_written_down_at_the_first_start(
    golden: Path, tmp_path: Path
) -> None:
    """Version 3: what devices run has its certificate; until then the newest was looked up at each heartbeat."""
    database = Database.open(golden)
    FleetService.open(database, Registry.open(tmp_path, database))
    stored = database.run_now(rows.read)
    database.close()
    assert {row.certificate_digest for row in stored.assignments} == {""}  # there are no blobs here to find one in
    assert {row.certificates for row in stored.releases} == {()}
    assert {row.rollout_id for row in stored.assignments} <= {"digits-v2-1", "digits-v2-2"}


def test_rollouts_of_the_previous_release_are_read_with_their_verdicts(golden: Path, tmp_path: Path) -> None:
    """Version 2: a verdict is a list of named tests; the old fields become two of them."""
    database = Database.open(golden)
    store = FleetStore(database, Registry.open(tmp_path, database), database.run_now(rows.read))
    stopped, paused = store.get("digits-v2-1"), store.get("digits-v2-2")
    database.close()
    verdict = stopped.rollout.waves[0].verdict
    assert verdict is not None
    assert verdict.verdict == "fail"
    assert verdict.reason.startswith("harm above the promise: 30 of 60 audited rows harmful")
    harm, failures = verdict.test("harm"), verdict.test("failures")
    assert harm is not None
    assert (harm.verdict, harm.measured, harm.limit, harm.samples) == ("fail", 0.5, 0.03, 60)
    assert failures is not None
    assert (failures.verdict, failures.e_value) == ("pass", 0.72675)
    assert paused.rollout.state == "paused"
    (waiting,) = paused.rollout.waves
    assert waiting.verdict is not None
    assert (waiting.verdict.verdict, waiting.verdict.wake_at is not None) == ("hold", True)


def test_what_devices_delivered_before_instances_belongs_to_the_one_without_a_name(tmp_path: Path) -> None:
    """Version 4: sequences, counts and evidence by device and instance. What was counted stays so, and counts once."""
    copied = Path(shutil.copy(GOLDEN.with_name("state-3.db"), tmp_path / "state.db"))
    database = Database.open(copied)
    stored = database.run_now(rows.read)
    assert {(one.device_id, one.instance): one.durable_sequence for one in stored.instances} == {
        ("cam-1", ""): 6,
        ("cam-2", ""): 1,
    }
    assert sorted((row.device_id, row.instance, row.counts.audited) for row in stored.counts) == [
        ("cam-1", "", 4),
        ("cam-1", "", 50),
        ("cam-2", "", 7),
    ]
    assert sorted((row.device_id, row.instance, row.has_vote) for row in stored.evidence) == [
        ("cam-1", "", True),
        ("cam-1", "", True),
        ("cam-2", "", True),
    ]
    columns = database.run_now(lambda tx: tx.exec_driver_sql("SELECT name FROM pragma_table_info('devices')").all())
    assert ("durable_sequence",) not in columns
    service = FleetService.open(database, Registry.open(tmp_path, database))
    (first, second) = service.devices()
    assert [sum(counts.audited for counts in one.outcomes.values()) for one in (first, second)] == [54, 7]
    assert service.rollout().rollout.state == "paused"
    database.close()
    Database.open(copied).close()  # a second time there is nothing to do


def test_what_an_abort_left_where_it_was_stays_there_and_no_number_is_given_twice(tmp_path: Path) -> None:
    """Version 5: which devices an abort kept, since when devices run what they run, and the last number."""
    copied = Path(shutil.copy(GOLDEN.with_name("state-4.db"), tmp_path / "state.db"))
    told = set(read_as_it_is(copied, "SELECT device_id, digest FROM assignments"))
    database = Database.open(copied)
    stored = database.run_now(rows.read)
    service = FleetService.open(database, Registry.open(tmp_path, database))
    aborted = service.rollout("digits-v2-1").rollout
    assert (aborted.is_kept, aborted.kept) == (True, ("cam-1", "cam-4"))
    wanted = {(name, one.artifact_digest) for name, one in rollout.desired_all(aborted).items()}
    assert wanted == told, "an abort of an older release had told both devices of its wave"
    assert [(event.who, event.reason) for event in aborted.events] == [("", "")] * len(aborted.events)
    assert {row.runs_since for row in stored.devices} == {"{}"}
    assert stored.last_number == 2
    assert [view.runs_since for view in service.devices()] == [{}] * 4
    assert service.rollout().waiting_plans == ("digits-v2-2",)
    database.close()
    Database.open(copied).close()  # a second time there is nothing to do


def read_as_it_is(path: Path, statement: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def test_a_counter_that_the_database_does_not_have_begins_at_0(golden: Path) -> None:
    altered(golden, "ALTER TABLE outcome_counts DROP COLUMN audit_harm")
    database = Database.open(golden)
    (counts,) = database.run_now(rows.read).counts
    assert counts.counts == OutcomeCounts(kept=70, escalated=20, unreachable=6, failed=4, audited=60)
    changed = replace(counts, counts=OutcomeCounts(audit_harm=3))
    (device, _) = database.run_now(rows.read).devices
    instance = rows.InstanceRow(device_id="cam-1", instance="", durable_sequence=6, updated_at=1.0)
    database.run_now(lambda tx: rows.record_outcomes(tx, device, instance, [changed]))
    assert database.run_now(rows.read).counts == (changed,)
    database.close()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE schema_version SET version = 99", "ALTER TABLE outcome_counts ADD COLUMN invented BIGINT DEFAULT 0"],
)
def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(golden: Path, statement: str) -> None:
    altered(golden, statement)
    before = golden.read_bytes()
    with pytest.raises(NewerState, match="start the version that wrote it, or use another data directory"):
        Database.open(golden)
    assert golden.read_bytes() == before


def test_an_upgrade_that_is_cut_short_leaves_the_old_database(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(transaction: Transaction) -> None:
        upgrades._verdicts_as_tests(transaction)
        raise ValueError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(upgrades, "STEPS", {2: broken})
        with pytest.raises(ValueError, match="cut short"):
            Database.open(golden)
    with sqlite3.connect(golden) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchone() == (1,)
    connection.close()
    Database.open(golden).close()
