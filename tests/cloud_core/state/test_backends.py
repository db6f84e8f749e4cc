"""The contract of the core's stores, held by SQLite and by PostgreSQL; and what only PostgreSQL has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, create_engine, insert, select

from cloud_core.state import Database, Transaction, api_keys, catalog, spending, tables, traffic, upgrades, usage
from cloud_core.state import fleet as rows
from penstock.errors import ConfigError, DatabaseAway, InUse, NewerState, StorageError
from penstock.wire.outcomes import OutcomeCounts
from tests.postgresql import PostgreSql, postgresql

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with postgresql() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    opened = opener(request, tmp_path)()
    yield opened
    opened.close()


def opener(request: pytest.FixtureRequest, directory: Path) -> Callable[[], Database]:
    if request.param == "sqlite":
        return lambda: Database.open(directory / "state.db")
    url = request.getfixturevalue("server").new_database("contract")
    return lambda: Database.connect(url)


# -- the contract ----------------------------------------------------------------------------------------------------


def manifest(digest: str, **changes: Any) -> catalog.ManifestRow:
    plain: dict[str, Any] = {
        "repository": "digits",
        "digest": digest,
        "media_type": "index",
        "artifact_type": "",
        "subject": "",
        "annotations": '{"a": "ö"}',
        "size_bytes": 3_000_000_000,
        "is_artifact": True,
        "pushed_at": 1.25,
    }
    return catalog.ManifestRow(**(plain | changes))


def test_the_catalog_keeps_manifests_in_order_tags_that_move_and_the_first_default(database: Database) -> None:
    first, second = manifest("sha256:2"), manifest("sha256:1", pushed_at=2.5)
    for row, tag in ((first, "v1"), (second, "v2"), (first, "v1"), (second, "latest"), (first, "latest")):
        database.run_now(lambda tx, row=row, tag=tag: catalog.put_manifest(tx, row, tag))
    found = database.run_now(catalog.snapshot)
    assert found.manifests == (first, second), "in order of arrival, once each"
    assert [(tag.tag, tag.digest) for tag in found.tags] == [
        ("latest", "sha256:2"),
        ("v1", "sha256:2"),
        ("v2", "sha256:1"),
    ]
    assert found.defaults == {"digits": "sha256:2"}
    database.run_now(lambda tx: catalog.set_default(tx, "digits", "sha256:1", 3.0))
    assert database.run_now(lambda tx: catalog.users_of(tx, "digits", "sha256:1")) == ["the default version"]
    database.run_now(lambda tx: catalog.delete_tag(tx, "digits", "v1"))
    database.run_now(lambda tx: catalog.delete_manifest(tx, "digits", "sha256:2"))
    found = database.run_now(catalog.snapshot)
    assert (found.manifests, [tag.tag for tag in found.tags], found.defaults) == (
        (second,),
        ["v2"],
        {"digits": "sha256:1"},
    )


def test_what_relies_on_an_artifact_is_named(database: Database) -> None:
    def work(tx: Transaction) -> None:
        rows.set_release(tx, rows.ReleaseRow(model="digits", digest="sha256:1", certificates=("sha256:c",)))
        rows.assign(
            tx,
            [
                rows.AssignmentRow(
                    device_id="cam-1", model="digits", digest="sha256:1", rollout_id="r", certificate_digest="sha256:c"
                )
            ],
        )

    database.run_now(work)
    assert database.run_now(lambda tx: catalog.users_of(tx, "digits", "sha256:c")) == [
        "the fleet's release",
        "device cam-1",
    ]


DEVICE = rows.DeviceRow(device_id="cam-1", reported='{"x": 1}', first_seen=1.5, last_seen=2.5)
INSTANCE = rows.InstanceRow(device_id="cam-1", instance="i", durable_sequence=2**40, updated_at=3.5)
COUNTS = rows.CountsRow(
    device_id="cam-1",
    instance="i",
    artifact_digest="sha256:1",
    model="digits",
    counts=OutcomeCounts(kept=2**40, escalated=1, audited=7, audit_harm=3),
    updated_at=4.5,
)
POOL = rows.PoolRow(
    artifact_digest="sha256:1",
    certificate_digest="sha256:c",
    model="digits",
    rounds="[]",
    strength=1e-300,
    started_at=1.0,
    updated_at=2.0,
    alarmed_at=None,
)
EVIDENCE = rows.EvidenceRow(
    device_id="cam-1",
    instance="i",
    artifact_digest="sha256:1",
    certificate_digest="sha256:c",
    document="{}",
    has_vote=True,
)
TRUST = rows.TrustRow(
    device_id="cam-1", model="digits", artifact_digest="sha256:1", certificate_digest="sha256:c", trusted_at=9.0
)
ROLLOUT = rows.RolloutRow(number=3, rollout_id="digits-v1-3", model="digits", state="running", document='{"a":1}')


def fill(tx: Transaction) -> None:
    rows.save_devices(tx, [DEVICE])
    rows.record_outcomes(tx, DEVICE, INSTANCE, [COUNTS])
    rows.record_evidence(tx, pools=[POOL], devices=[EVIDENCE], closed=[], dropped=[])
    rows.save_rollout(tx, ROLLOUT)
    rows.note_number(tx, 3)
    rows.record_handed(tx, "cam-1", [3], 5.0)
    rows.trust(tx, [TRUST])


def test_the_fleet_reads_back_what_it_wrote(database: Database) -> None:
    database.run_now(fill)
    database.run_now(fill)  # a second time changes nothing
    found = database.run_now(rows.read)
    assert found.devices == (DEVICE,)
    assert found.instances == (INSTANCE,)
    assert found.counts == (COUNTS,)
    assert found.pools == (POOL,)
    assert found.evidence == (EVIDENCE,)
    assert found.rollouts == (ROLLOUT,)
    assert found.trusts == (TRUST,)
    assert (found.handed, found.last_number) == (((3, "cam-1"),), 3)
    later = replace(DEVICE, first_seen=99.0, last_seen=99.0)
    database.run_now(lambda tx: rows.save_devices(tx, [later]))
    assert database.run_now(rows.read).devices == (replace(later, first_seen=1.5),), "the first time stays"


def test_the_fleet_forgets_devices_instances_rounds_and_rollouts(database: Database) -> None:
    database.run_now(fill)
    promise = ("sha256:1", "sha256:c")
    database.run_now(lambda tx: rows.record_evidence(tx, pools=[], devices=[], closed=[promise], dropped=[]))
    assert [one.has_vote for one in database.run_now(rows.read).evidence] == [False]
    database.run_now(lambda tx: rows.record_evidence(tx, pools=[], devices=[], closed=[], dropped=[promise]))
    database.run_now(lambda tx: rows.drop_counts(tx, "cam-1", "i", ["sha256:1"]))
    database.run_now(lambda tx: rows.drop_rollouts(tx, [3]))
    database.run_now(lambda tx: rows.drop_handed(tx, [3]))
    found = database.run_now(rows.read)
    assert (found.pools, found.evidence, found.counts, found.rollouts, found.handed) == ((), (), (), (), ())
    database.run_now(lambda tx: rows.forget_instances(tx, "cam-1", ["i"]))
    assert database.run_now(rows.read).instances == ()
    database.run_now(lambda tx: rows.forget_devices(tx, ["cam-1"]))
    found = database.run_now(rows.read)
    assert (found.devices, found.trusts) == ((), ())


def test_actions_of_operators_are_kept_in_order_up_to_a_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ACTIONS", 3)
    actions = [rows.ActionRow(at=float(n), who="anna", action="plan", subject=f"s{n}", reason="") for n in range(5)]
    for action in actions:
        database.run_now(lambda tx, action=action: rows.record_action(tx, action))
    assert database.run_now(rows.read).actions == tuple(actions[2:])


def test_traffic_and_spending_read_back_what_they_wrote(database: Database) -> None:
    database.run_now(lambda tx: traffic.write(tx, "digits", '{"split": 1}', 1.0))
    database.run_now(lambda tx: traffic.write(tx, "other", "{}", 1.0))
    database.run_now(lambda tx: traffic.write(tx, "other", "", 2.0))
    assert database.run_now(traffic.read) == {"digits": '{"split": 1}'}
    today = spending.DaySpent(day=20_000, tokens=2**40)
    database.run_now(lambda tx: spending.write(tx, {"shop": replace(today, day=19_999)}))
    database.run_now(lambda tx: spending.write(tx, {"shop": today}))
    assert database.run_now(spending.read) == {"shop": today}


def test_keys_and_usage_read_back_what_they_wrote(database: Database) -> None:
    key = api_keys.KeyRow(
        id="k1",
        hash="ff" * 32,
        tenant="shop",
        role="client",
        device_id="",
        note="",
        created_at=1.0,
        created_by="anna",
        expires_at=None,
        last_used_at=None,
    )
    database.run_now(lambda tx: api_keys.add(tx, key))
    database.run_now(lambda tx: api_keys.add(tx, replace(key, id="k0", hash="ee" * 32)))
    database.run_now(lambda tx: api_keys.used(tx, {"k1": 9.5}))
    assert database.run_now(api_keys.read) == (
        replace(key, id="k0", hash="ee" * 32),
        replace(key, last_used_at=9.5),
    )
    database.run_now(lambda tx: api_keys.drop(tx, "k0"))
    assert [one.id for one in database.run_now(api_keys.read)] == ["k1"]
    some = usage.Used(requests=2**40, failed=1, rows=3, bytes=2**41, tokens=5, device_s=0.25)
    database.run_now(lambda tx: usage.write(tx, 20_000, {("shop", "digits"): some}, oldest_day=19_000))
    database.run_now(lambda tx: usage.write(tx, 20_000, {("shop", "digits"): some}, oldest_day=19_000))
    assert database.run_now(lambda tx: usage.read_day(tx, 20_000)) == {("shop", "digits"): some}
    database.run_now(lambda tx: usage.write(tx, 20_001, {("shop", "digits"): some}, oldest_day=19_000))

    def found(tx: Transaction, is_by_day: bool) -> list[tuple[int | None, int, float]]:
        rows = usage.find(tx, since=20_000, until=20_001, tenant="shop", is_by_day=is_by_day, limit=10)
        return [(row.day, row.used.requests, row.used.device_s) for row in rows]

    assert database.run_now(lambda tx: found(tx, False)) == [(None, 2**41, 0.5)]
    assert database.run_now(lambda tx: found(tx, True)) == [(20_000, 2**40, 0.25), (20_001, 2**40, 0.25)]


async def test_what_a_failed_transaction_did_is_undone_and_the_next_one_works(database: Database) -> None:
    def work(tx: Transaction) -> None:
        fill(tx)
        raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        await database.run(work)
    assert (database.run_now(rows.read).devices, database.run_now(rows.read).last_number) == ((), 0)


async def test_a_statement_that_the_database_refuses_is_an_error_that_names_the_database(database: Database) -> None:
    with pytest.raises(StorageError) as caught:
        await database.run(lambda tx: tx.exec_driver_sql("INSERT INTO tags (repository) VALUES ('a')"))
    assert not isinstance(caught.value, DatabaseAway)
    assert caught.value.message.startswith(("postgresql://", "/"))


@pytest.mark.parametrize("request_for", ["sqlite", "postgresql"])
def test_everything_is_there_after_closing_and_opening(
    request_for: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.param = request_for
    open_it = opener(request, tmp_path)
    first = open_it()
    first.run_now(fill)
    before = first.run_now(rows.read)
    first.close()
    second = open_it()
    assert second.run_now(rows.read) == before
    second.close()


# -- upgrades on PostgreSQL ------------------------------------------------------------------------------------------


def moved(file: Path, url: str) -> None:
    """Put tables of an older release, as its SQLite had them, into PostgreSQL."""
    old, metadata = create_engine(f"sqlite:///{file}"), MetaData()
    metadata.reflect(old)
    for column in (column for table in metadata.tables.values() for column in table.columns):
        column.type = column.type.as_generic()
    new = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with old.connect() as source, new.begin() as target:
        metadata.create_all(target)
        for table in metadata.sorted_tables:
            found = [dict(row) for row in source.execute(select(table)).mappings()]
            if found:
                target.execute(insert(table), found)
    old.dispose()
    new.dispose()


@pytest.mark.parametrize("name", sorted(file.name for file in GOLDEN.glob("state-*.db")))
def test_state_of_an_older_release_becomes_the_same_on_both(name: str, server: PostgreSql, tmp_path: Path) -> None:
    copied = tmp_path / name
    copied.write_bytes((GOLDEN / name).read_bytes())
    url = server.new_database("older")
    moved(copied, url)
    ours, theirs = Database.open(copied), Database.connect(url)
    for read in (rows.read, catalog.snapshot, traffic.read, spending.read):
        assert sorted_rows(theirs.run_now(read)) == sorted_rows(ours.run_now(read)), read
    version = select(tables.schema_version.c.version)
    assert theirs.run_now(lambda tx: tx.execute(version).scalar()) == upgrades.SCHEMA_VERSION
    for database in (ours, theirs):
        database.run_now(fill)
        database.close()


def sorted_rows(found: Any) -> Any:
    """Rows without an order of their own come in any."""
    if not hasattr(found, "__slots__"):
        return found
    return {name: _sorted(getattr(found, name)) for name in type(found).__slots__}


def _sorted(value: Any) -> Any:
    return sorted(value, key=repr) if isinstance(value, tuple) else value


def test_a_newer_release_in_postgresql_is_refused_and_left_as_it_is(server: PostgreSql) -> None:
    url = server.new_database("newer")
    Database.connect(url).close()
    server.execute("UPDATE schema_version SET version = 99", "DROP TABLE tags", database="newer")
    with pytest.raises(NewerState, match="start the version that wrote it"):
        Database.connect(url)
    with pytest.raises(Exception, match="tags"):
        server.execute("SELECT * FROM tags", database="newer")


# -- what only PostgreSQL has ----------------------------------------------------------------------------------------


def test_one_core_at_a_time_has_a_database_and_the_next_one_gets_it_when_it_is_gone(server: PostgreSql) -> None:
    url = server.new_database("alone")
    first = Database.connect(url)
    with pytest.raises(InUse, match="in use by another core"):
        Database.connect(url)
    looked_at = Database.connect(url, is_looked_at=True)
    assert looked_at.run_now(upgrades.version_of) == upgrades.SCHEMA_VERSION
    looked_at.close()
    first.close()
    Database.connect(url).close()


def test_a_core_that_lost_its_place_to_another_writes_nothing_any_more(server: PostgreSql) -> None:
    url = server.new_database("lost")
    first = Database.connect(url)
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'lost' AND pid <> pg_backend_pid()"
    )
    second = Database.connect(url)
    with pytest.raises(InUse):
        first.run_now(fill)
    assert second.run_now(rows.read).devices == ()
    second.close()
    first.run_now(fill)  # it is free again
    first.close()


def test_a_database_that_goes_away_is_said_and_used_again_when_it_is_back(server: PostgreSql) -> None:
    database = Database.connect(server.new_database("gone"))
    database.run_now(fill)
    server.stop()
    with pytest.raises(DatabaseAway, match=r"postgresql://penstock@127.0.0.1:\d+/gone: .* see that PostgreSQL"):
        database.run_now(fill)
    server.start()
    assert database.run_now(rows.read).devices == (DEVICE,)
    database.close()


def test_a_database_that_cannot_be_opened_says_why_and_never_shows_the_password(server: PostgreSql) -> None:
    at = f"127.0.0.1:{server.port}"
    for url, error, words in (
        ("postgresql://core:s3cret@127.0.0.1:1/penstock", DatabaseAway, "refused"),
        (f"postgresql://penstock:s3cret@{at}/nowhere", DatabaseAway, '"nowhere" does not exist'),
        (f"postgresql://nobody:s3cret@{at}/postgres", DatabaseAway, '"nobody" does not exist'),
        (f"mysql://core:s3cret@{at}/penstock", ConfigError, "expected postgresql://USER:PASSWORD@HOST:5432/NAME"),
        (f"postgresql://core:s3cret@{at}", ConfigError, "expected postgresql://USER:PASSWORD@HOST:5432/NAME"),
        ("s3cret", ConfigError, "not a URL"),
    ):
        with pytest.raises(error, match=words) as caught:
            Database.connect(url)
        assert "s3cret" not in caught.value.message
