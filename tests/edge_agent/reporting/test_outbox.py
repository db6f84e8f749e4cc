"""The durable queue: order, bounds, and that no count is lost or counted twice."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.policy.place import Place
from edge_agent.reporting.outbox import Outbox
from edge_agent.reporting.outbox_file import SCHEMA_VERSION
from edge_agent.serving.counts import IntervalCounts
from edge_agent.settings import OutboxSettings
from penstock.errors import NewerState, StorageError
from penstock.wire.outcomes import COLUMNS, COUNTERS, OutcomeCounts

SETTINGS = OutboxSettings(max_records=8, max_batch=3, ttl_s=1000.0)
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def interval(requests: int = 1, *, artifact: str = "a", at: float = NOW) -> IntervalCounts:
    return IntervalCounts(
        model="m", artifact_digest=artifact, counts=OutcomeCounts(kept=requests), started_at=at, ended_at=at + 1
    )


Open = Callable[..., Outbox]


@pytest.fixture
def open_outbox(tmp_path: Path) -> Iterator[Open]:
    opened: list[Outbox] = []

    def open_one(clock: Callable[[], float] = lambda: NOW, **changes: Any) -> Outbox:
        outbox = Outbox(tmp_path / "outbox.sqlite", msgspec.structs.replace(SETTINGS, **changes), now=clock)
        opened.append(outbox)
        return outbox

    yield open_one
    for outbox in opened:
        outbox.close()


def sequences(outbox: Outbox) -> list[int]:
    return [record.sequence for record in outbox.batch().records]


def rows(outbox: Outbox) -> int:
    return int(outbox._db.execute("SELECT coalesce(sum(requests), 0) FROM records").fetchone()[0])


@pytest.mark.parametrize("existing", [False, True])
def test_nobody_else_may_read_it_whatever_the_umask_is(open_outbox: Open, tmp_path: Path, existing: bool) -> None:
    before = os.umask(0)
    try:
        if existing:  # as an earlier release left it
            (tmp_path / "outbox.sqlite").touch(0o666)
        open_outbox().append([interval()])
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("outbox.sqlite", "outbox.sqlite-shm", "outbox.sqlite-wal"), 0o600)


def test_records_come_out_in_order_and_leave_when_acknowledged(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(i) for i in range(1, 6)])
    assert [(record.sequence, record.interval.counts.requests) for record in outbox.batch().records] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]
    outbox.acknowledge(outbox.instance, 2)
    assert sequences(outbox) == [3, 4, 5]
    assert outbox.depth == 3
    outbox.acknowledge(outbox.instance, 5)
    assert outbox.batch().records == ()
    assert outbox.depth == 0


def test_nothing_in_a_record_is_changed_on_its_way(open_outbox: Open) -> None:
    outbox = open_outbox()
    counts = OutcomeCounts(**{name: 1 + number for number, name in enumerate(COUNTERS)})
    found = IntervalCounts(model="m", artifact_digest="sha256:x", counts=counts, started_at=1.25, ended_at=2.5)
    outbox.append([found])
    assert outbox.batch().records[0].interval == found


def test_the_sequence_survives_restarts_and_emptying(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(), interval()])
    outbox.batch()
    outbox.acknowledge(outbox.instance, 2)
    outbox.close()
    again = open_outbox()
    again.append([interval()])
    assert sequences(again) == [3]


def test_an_acknowledged_record_does_not_come_back(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval()])
    outbox.batch()
    outbox.acknowledge(outbox.instance, 1)
    outbox.acknowledge(outbox.instance, 1)
    outbox.acknowledge(outbox.instance, 0)
    outbox.close()
    assert open_outbox().batch().records == ()


def test_full_merges_the_oldest_unsent_records_and_loses_no_count(open_outbox: Open) -> None:
    outbox = open_outbox()
    for i in range(40):
        outbox.append([interval(1, at=NOW + i)])
    assert outbox.depth == 8
    assert rows(outbox) == 40
    assert outbox.dropped == 0
    first = outbox.batch().records[0].interval
    assert first.started_at == NOW
    assert first.counts.requests == 33


def test_a_record_that_was_sent_keeps_its_counts(open_outbox: Open) -> None:
    """The service may have it already: counts merged into it would be taken for a duplicate."""
    outbox = open_outbox()
    outbox.append([interval(1) for _ in range(8)])
    sent = outbox.batch()
    for _ in range(20):
        outbox.append([interval(1)])
    assert outbox.batch() == sent
    assert rows(outbox) == 28


def test_that_a_record_was_sent_is_remembered_across_a_restart(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(1) for _ in range(8)])
    sent = outbox.batch()
    outbox.close()
    again = open_outbox()
    again.append([interval(1) for _ in range(20)])
    assert again.batch() == sent


def test_records_of_different_artifacts_are_never_merged(open_outbox: Open) -> None:
    outbox = open_outbox()
    for i in range(30):
        outbox.append([interval(1, artifact="ab"[i % 2])])
    query = "SELECT artifact_digest, sum(requests) FROM records GROUP BY artifact_digest"
    found = dict(outbox._db.execute(query).fetchall())
    assert found == {"a": 15, "b": 15}


def test_the_oldest_is_dropped_and_counted_when_nothing_can_be_merged(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(1, artifact=f"a{i}") for i in range(10)])
    assert outbox.depth == 8
    assert outbox.dropped == 2
    assert sequences(outbox) == [3, 4, 5]


def test_overwrite_drops_the_oldest(open_outbox: Open) -> None:
    outbox = open_outbox(when_full="overwrite")
    outbox.append([interval(i) for i in range(10)])
    assert outbox.dropped == 2
    assert sequences(outbox) == [3, 4, 5]


def test_bytes_are_bounded_too(open_outbox: Open, tmp_path: Path) -> None:
    outbox = open_outbox(max_records=10**6, max_bytes=128 * 1024)
    for _ in range(20):
        outbox.append([interval(1, artifact="sha256:" + "a" * 64) for _ in range(100)])
    assert rows(outbox) == 2000
    outbox.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 128 * 1024


def test_old_records_are_given_up_and_counted(open_outbox: Open) -> None:
    clock = Clock()
    outbox = open_outbox(clock)
    outbox.append([interval(1)])
    clock.now += 999
    outbox.append([interval(2)])
    assert outbox.depth == 2
    clock.now += 2
    outbox.append([interval(3)])
    assert [record.interval.counts.requests for record in outbox.batch().records] == [2, 3]
    assert outbox.dropped == 1


@pytest.mark.parametrize("jump_s", [10 * 365 * 86400.0, -10 * 365 * 86400.0])
def test_a_clock_that_begins_elsewhere_after_a_restart_ages_nothing(open_outbox: Open, jump_s: float) -> None:
    clock = Clock()
    outbox = open_outbox(clock)
    outbox.append([interval(1)])
    clock.now += 900
    outbox.append([interval(2)])
    outbox.close()
    clock.now += jump_s
    outbox = open_outbox(clock)
    clock.now += 90
    outbox.append([interval(3)])
    assert outbox.depth == 3
    clock.now += 20  # what passed before the restart counts
    outbox.append([interval(4)])
    assert [record.interval.counts.requests for record in outbox.batch().records] == [2, 3, 4]
    assert outbox.dropped == 1


def test_records_with_dates_of_an_earlier_release_begin_to_age_when_they_are_read(
    open_outbox: Open, tmp_path: Path
) -> None:
    shutil.copy(GOLDEN.with_name("outbox-1.sqlite"), tmp_path / "outbox.sqlite")
    clock = Clock()
    outbox = open_outbox(clock)
    kept = outbox.depth
    clock.now += 999
    outbox.append([interval(1)])
    assert (kept > 0, outbox.depth) == (True, kept + 1)
    clock.now += 2
    outbox.append([interval(2)])
    assert (outbox.depth, outbox.dropped) == (2, kept)


def test_a_lost_queue_continues_above_what_the_service_has_seen(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(i) for i in range(1, 5)])
    outbox.acknowledge(outbox.instance, 1000)
    assert outbox.depth == 4, "these were not counted: the service took them for old ones"
    found = [(record.sequence, record.interval.counts.kept) for record in outbox.batch().records]
    assert found == [(1001, 1), (1002, 2), (1003, 3)]
    outbox.acknowledge(outbox.instance, 1003)
    outbox.append([interval(9)])
    assert sequences(outbox) == [1004, 1005]


def test_totals_survive_emptying_and_restart(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(3), interval(4), interval(5, artifact="b")])
    outbox.batch()
    outbox.acknowledge(outbox.instance, 3)
    outbox.close()
    again = open_outbox()
    assert again.totals("m", "a") == OutcomeCounts(kept=7)
    assert again.totals("m", "never") == OutcomeCounts()


def test_an_append_is_all_or_nothing(open_outbox: Open) -> None:
    outbox = open_outbox()
    bad = interval(2**70)
    with pytest.raises((StorageError, OverflowError)):
        outbox.append([interval(1), bad])
    assert outbox.depth == 0
    assert rows(outbox) == 0
    outbox.append([interval(1)])
    assert outbox.depth == 1


def test_a_full_disk_refuses_and_keeps_what_was_there(open_outbox: Open) -> None:
    outbox = open_outbox(max_records=10**6)
    outbox.append([interval(1)])
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="full"):
        outbox.append([interval(1, artifact="x" * 1000) for _ in range(100)])
    assert outbox.depth == rows(outbox) == 1
    outbox._db.execute("PRAGMA max_page_count = 100000")
    outbox.append([interval(1)])
    assert rows(outbox) == 2


@pytest.mark.parametrize("golden", ["outbox-1.sqlite", "outbox-2.sqlite"])
def test_a_file_with_large_pages_gets_small_ones_and_keeps_all(open_outbox: Open, tmp_path: Path, golden: str) -> None:
    path = tmp_path / "outbox.sqlite"
    shutil.copy(GOLDEN.with_name(golden), path)
    with sqlite3.connect(path) as db:
        counted = db.execute("SELECT sum(kept), max(sequence) FROM records").fetchall()
    db.close()
    outbox = open_outbox()
    assert outbox._db.execute("PRAGMA page_size").fetchone()[0] == 1024
    assert outbox._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert outbox._db.execute("SELECT sum(kept), max(sequence) FROM records").fetchall() == counted


def test_a_file_that_is_no_database_is_set_aside(open_outbox: Open, tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"not a database, but long enough to look like one" * 100)
    outbox = open_outbox()
    outbox.append([interval(1)])
    assert outbox.depth == 1
    assert (tmp_path / "outbox.bad").exists()


def test_a_directory_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Outbox(tmp_path / "no" / "outbox.sqlite", SETTINGS, now=lambda: NOW)


def test_an_append_that_returned_survives_kill_9(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from edge_agent.reporting.outbox import Outbox
from edge_agent.settings import OutboxSettings
from tests.edge_agent.reporting.test_outbox import interval
outbox = Outbox(Path(sys.argv[1]), OutboxSettings(), now=lambda: 1.8e9)
for i in range(5):
    outbox.append([interval(1)])
outbox._db.execute("BEGIN IMMEDIATE")
outbox._db.execute("DELETE FROM records")
os.kill(os.getpid(), 9)
"""
    path = tmp_path / "outbox.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    outbox = Outbox(path, SETTINGS, now=lambda: NOW)
    assert outbox.depth == rows(outbox) == 5
    outbox.close()


def test_writes_are_synchronous(open_outbox: Open) -> None:
    db: sqlite3.Connection = open_outbox()._db
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_the_log_is_written_over_and_does_not_grow(open_outbox: Open) -> None:
    """Each commit to a log that grows has the file system write its own journal too: 94 MB a day in place of 27."""
    outbox = open_outbox()
    for _ in range(100):
        outbox.append([interval(1)])
        outbox.batch()
        outbox.acknowledge(outbox.instance, outbox.last_sequence())
    log = outbox._path.with_name(outbox._path.name + "-wal")
    assert log.stat().st_size < 150 * 1024


def written() -> Counter[str]:
    """Return what this process wrote so far: bytes handed over, and bytes of whole pages (none on a tmpfs)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return Counter({name: int(number) for name, number in (line.split(": ") for line in lines) if "w" in name})


def test_at_the_defaults_a_device_writes_less_than_50_mb_a_day(tmp_path: Path) -> None:
    """One hour of one request a second, with a fleet service that takes everything at once."""
    clock, defaults = Clock(), OutboxSettings()
    outbox = Outbox(tmp_path / "outbox.sqlite", defaults, now=clock)
    before = written()
    for _ in range(round(3600 / defaults.flush_s)):
        outbox.append([interval(round(defaults.flush_s), artifact="sha256:" + "a" * 64, at=clock.now)])
        clock.now += defaults.flush_s
        while batch := outbox.batch().records:
            outbox.acknowledge(outbox.instance, batch[-1].sequence)
    outbox.close()
    found = written() - before
    assert 24 * max(found["wchar"], found["write_bytes"]) < 30e6, "the file system needs some for its journal"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=4)),
        st.tuples(st.just("deliver"), st.booleans()),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_the_service_counts_exactly_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """Whatever is delivered, lost on the way back, merged or restarted: each count arrives once."""
    path = tmp_path_factory.mktemp("outbox") / "outbox.sqlite"
    outbox = Outbox(path, SETTINGS, now=lambda: NOW)
    appended: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    durable = 0

    def deliver(is_reply_lost: bool) -> None:
        nonlocal durable
        batch = outbox.batch().records
        assert [record.sequence for record in batch] == sorted(record.sequence for record in batch)
        for record in batch:
            if record.sequence > durable:
                durable = record.sequence
                counted[record.interval.artifact_digest] += record.interval.counts.requests
        if not is_reply_lost:
            outbox.acknowledge(outbox.instance, durable)

    for what, value in steps:
        if what == "append":
            outbox.append([interval(requests, artifact=artifact) for artifact, requests in value])
            for artifact, requests in value:
                appended[artifact] += requests
        elif what == "deliver":
            deliver(is_reply_lost=value)
        else:
            outbox.close()
            outbox = Outbox(path, SETTINGS, now=lambda: NOW)
        assert outbox.depth <= SETTINGS.max_records
    while outbox.depth:
        deliver(is_reply_lost=False)
    assert outbox.dropped == 0
    assert counted == appended
    outbox.close()


# -- files of other releases ----------------------------------------------------------------------------------------


GOLDEN = Path(__file__).parent / "golden" / "outbox-0.sqlite"


def altered(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def test_an_outbox_of_the_previous_release_is_read_and_goes_on(open_outbox: Open, tmp_path: Path) -> None:
    shutil.copy(GOLDEN, tmp_path / "outbox.sqlite")
    outbox = open_outbox(max_batch=10)
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    found = [(r.sequence, r.interval.artifact_digest, r.interval.counts) for r in outbox.batch().records]
    assert found == [
        (2, one, OutcomeCounts(kept=7, escalated=3)),
        (3, one, OutcomeCounts(kept=1, unreachable=2, failed=4, audited=3, audit_harm=1)),
        (4, two, OutcomeCounts(kept=10)),
    ]
    assert outbox.totals("digits", one) == OutcomeCounts(
        kept=13, escalated=3, unreachable=2, failed=4, audited=4, audit_harm=1
    ), "also of the record that was acknowledged: the audit goes on where it was"
    assert outbox._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_the_sequence_of_an_emptied_outbox_of_the_previous_release_goes_on(open_outbox: Open, tmp_path: Path) -> None:
    shutil.copy(GOLDEN, tmp_path / "outbox.sqlite")
    altered(tmp_path / "outbox.sqlite", "DELETE FROM records")
    outbox = open_outbox()
    outbox.append([interval(1)])
    assert sequences(outbox) == [5]


@pytest.mark.parametrize("name", ["kept", "audited", "audit_harm"])
def test_a_counter_that_a_file_does_not_have_begins_at_0(open_outbox: Open, tmp_path: Path, name: str) -> None:
    shutil.copy(GOLDEN, tmp_path / "outbox.sqlite")
    altered(tmp_path / "outbox.sqlite", *(f"ALTER TABLE {table} DROP COLUMN {name}" for table in ("records", "totals")))
    outbox = open_outbox(max_batch=10)
    assert [getattr(record.interval.counts, name) for record in outbox.batch().records] == [0, 0, 0]
    counts = OutcomeCounts(**{name: 9})
    outbox.append([IntervalCounts(model="m", artifact_digest="a", counts=counts, started_at=0.0, ended_at=1.0)])
    outbox.acknowledge("", 4)
    assert outbox.batch().records[-1].interval.counts == counts
    assert outbox.totals("m", "a") == counts


@pytest.mark.parametrize(
    "statement", ["PRAGMA user_version = 99", "ALTER TABLE records ADD COLUMN invented INTEGER NOT NULL DEFAULT 0"]
)
def test_an_outbox_of_a_newer_release_is_refused_and_left_as_it_is(
    open_outbox: Open, tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "outbox.sqlite"
    shutil.copy(GOLDEN, path)
    altered(path, statement)
    before = path.read_bytes()
    with pytest.raises(NewerState, match="start the version that wrote it"):
        open_outbox()
    assert path.read_bytes() == before
    assert not path.with_suffix(".bad").exists()


def test_opening_an_outbox_that_is_up_to_date_writes_nothing(open_outbox: Open) -> None:
    """On a full disk it still opens, and the totals of the audit are known."""
    open_outbox().close()
    path = open_outbox()._path
    before = path.read_bytes()
    outbox = open_outbox()
    assert outbox._db.total_changes == 0
    assert not path.with_name(path.name + "-wal").stat().st_size
    assert path.read_bytes() == before


def test_the_tables_of_this_schema_version_are_these(open_outbox: Open) -> None:
    """A changed table is a decision: raise SCHEMA_VERSION, keep a golden file of the old one, write its upgrade."""
    assert SCHEMA_VERSION == 3
    outbox = open_outbox()
    counts = [(name, "INTEGER", 1, "0") for name in COLUMNS]
    tables = {
        name: [tuple(row[1:5]) for row in outbox._db.execute(f"PRAGMA table_info({name})")]
        for name in ("records", "totals", "instance")
    }
    assert tables == {
        "records": [("sequence", "INTEGER", 0, None), ("instance", "TEXT", 0, None),
                    ("stored_at", "REAL", 1, None), ("model", "TEXT", 1, None),
                    ("artifact_digest", "TEXT", 1, None), *counts, ("started_at", "REAL", 1, None),
                    ("ended_at", "REAL", 1, None)],
        "totals": [("model", "TEXT", 1, None), ("artifact_digest", "TEXT", 1, None), ("touched_at", "REAL", 1, None),
                   *counts],
        "instance": [("one", "INTEGER", 0, None), ("key", "TEXT", 1, None), ("place", "TEXT", 1, None)],
    }  # fmt: skip


def test_what_an_outbox_of_before_instances_holds_goes_up_without_one(open_outbox: Open, tmp_path: Path) -> None:
    """Version 3: the service may have some of it, under no instance; sent under one it would be counted twice."""
    shutil.copy(GOLDEN.with_name("outbox-2.sqlite"), tmp_path / "outbox.sqlite")
    outbox = open_outbox(max_batch=10)
    outbox.append([interval(9)])
    batch = outbox.batch()
    assert (batch.instance, [record.sequence for record in batch.records]) == ("", [2, 3, 4, 5])
    outbox.acknowledge("", 5)
    batch = outbox.batch()
    assert (batch.instance, [record.sequence for record in batch.records]) == (outbox.instance, [6])
    assert len(outbox.instance) == 32


# -- copies of the data directory ------------------------------------------------------------------------------------

HERE = Place(inode=7, changed_at_ns=1_000)
THERE = Place(inode=8, changed_at_ns=2_000)


def test_the_instance_stays_over_restarts_and_is_another_one_in_a_copy(tmp_path: Path) -> None:
    def opened(name: str, place: Place) -> Outbox:
        return Outbox(tmp_path / name, SETTINGS, now=lambda: NOW, place=place)

    first = opened("a.sqlite", HERE)
    first.append([interval(1)])
    first.close()
    again = opened("a.sqlite", HERE)
    assert again.instance == first.instance
    again.close()
    shutil.copy(tmp_path / "a.sqlite", tmp_path / "b.sqlite")
    copy = opened("b.sqlite", THERE)
    assert copy.instance != first.instance
    assert copy.batch().instance == first.instance, "what it found is the original's, and counted once"
    copy.close()
    restarted = opened("b.sqlite", THERE)
    assert restarted.instance == copy.instance
    restarted.close()


def test_a_lost_queue_has_a_new_instance(open_outbox: Open, tmp_path: Path) -> None:
    outbox = open_outbox()
    outbox.close()
    (tmp_path / "outbox.sqlite").unlink()
    assert open_outbox().instance != outbox.instance


def test_a_directory_whose_witness_was_touched_keeps_its_instance_and_its_queue(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path, SETTINGS, now=lambda: NOW, place=HERE)
    outbox.append([interval(1)])
    outbox.close()
    touched = Outbox(path, SETTINGS, now=lambda: NOW, place=replace(HERE, changed_at_ns=5))
    assert (touched.instance, touched.depth) == (outbox.instance, 1)
    touched.close()


def test_an_agent_that_is_asked_to_renew_counts_apart_from_then_on(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(1), interval(2)])
    before = outbox.instance
    after = outbox.renew_instance()
    outbox.append([interval(3)])
    batch = outbox.batch()
    assert (batch.instance, [record.sequence for record in batch.records]) == (before, [1, 2])
    outbox.acknowledge(before, 50)  # the other one has gone on under the old name
    batch = outbox.batch()
    assert (batch.instance, [record.sequence for record in batch.records]) == (after, [3])
    outbox.close()
    assert open_outbox().instance == after


def test_a_service_of_before_gets_no_instance_and_what_it_got_stays_so(open_outbox: Open) -> None:
    outbox = open_outbox()
    outbox.append([interval(1), interval(2)])
    assert outbox.batch(instance="").instance == ""
    outbox.append([interval(3)])
    batch = outbox.batch()  # the service was updated, and the reply to the first delivery was lost
    assert (batch.instance, [record.sequence for record in batch.records]) == ("", [1, 2])
    outbox.acknowledge("", 2)
    assert outbox.batch().instance == outbox.instance


def test_what_a_copy_found_is_never_merged(tmp_path: Path) -> None:
    """The original may have delivered one of two: merged into the other, it would be counted twice."""
    first = Outbox(tmp_path / "a.sqlite", SETTINGS, now=lambda: NOW, place=HERE)
    first.append([interval(1) for _ in range(4)])
    first.close()
    shutil.copy(tmp_path / "a.sqlite", tmp_path / "b.sqlite")
    copy = Outbox(tmp_path / "b.sqlite", SETTINGS, now=lambda: NOW, place=THERE)
    copy.append([interval(1) for _ in range(30)])
    batch = copy.batch()
    assert [(record.sequence, record.interval.counts.kept) for record in batch.records] == [(1, 1), (2, 1), (3, 1)]
    copy.close()


COPIES = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 2), st.integers(1, 9)),
        st.tuples(st.just("deliver"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("restart"), st.integers(0, 2), st.none()),
        st.tuples(st.just("copy"), st.integers(0, 2), st.none()),
    ),
    max_size=40,
)


class Copies:
    """Directories that are copies of each other, and a service that counts by instance."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.durable: Counter[str] = Counter()
        self.counted = self.appended = 0
        self.outboxes = [self.opened(0)]

    def opened(self, number: int) -> Outbox:
        place = Place(inode=1 + number, changed_at_ns=1 + number)
        return Outbox(self.root / f"{number}.sqlite", SETTINGS, now=lambda: NOW, place=place)

    def append(self, number: int, rows: int) -> None:
        if self.outboxes[number].depth < SETTINGS.max_records - 1:  # beyond it a copy drops, and says so
            self.outboxes[number].append([interval(rows)])
            self.appended += rows

    def deliver(self, number: int, is_reply_lost: bool) -> None:
        batch = self.outboxes[number].batch()
        for record in batch.records:
            if record.sequence > self.durable[batch.instance]:
                self.durable[batch.instance] = record.sequence
                self.counted += record.interval.counts.requests
        if batch.records and not is_reply_lost:
            self.outboxes[number].acknowledge(batch.instance, self.durable[batch.instance])

    def restart(self, number: int, _: None) -> None:
        self.outboxes[number].close()
        self.outboxes[number] = self.opened(number)

    def copy(self, number: int, _: None) -> None:
        if len(self.outboxes) < 3:
            self.outboxes[number].close()
            shutil.copy(self.root / f"{number}.sqlite", self.root / f"{len(self.outboxes)}.sqlite")
            self.outboxes[number] = self.opened(number)
            self.outboxes.append(self.opened(len(self.outboxes)))


@settings(max_examples=60, deadline=None)
@given(steps=COPIES)
def test_of_a_directory_and_its_copies_every_count_arrives_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """Whatever is copied, and when: rows from before are counted once, rows from after all of them."""
    copies = Copies(tmp_path_factory.mktemp("copies"))
    for what, index, value in steps:
        getattr(copies, what)(index % len(copies.outboxes), value)
    for number, outbox in enumerate(copies.outboxes):
        while outbox.depth:
            copies.deliver(number, is_reply_lost=False)
        assert outbox.dropped == 0
        outbox.close()
    assert copies.counted == copies.appended
