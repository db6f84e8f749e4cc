"""Brings a database that an older Penstock wrote up to date: numbered steps, all of them in one transaction.

A step works on plain SQL and JSON as they were in its time and imports nothing that a later release may change. A step
that was released is never edited. New counters (``penstock.wire.outcomes``) need no step: their columns are added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import insert, inspect, select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateColumn

from cloud_core.state import tables
from penstock.errors import newer_state


def upgrade(transaction: Connection, where: str) -> None:
    """Create the tables of a new database, or bring an older one up to date.

    Raises:
        NewerState: a newer Penstock wrote it; nothing was changed.
    """
    found = version_of(transaction)
    unknown = _count_columns(transaction) - {column.name for column in tables.outcome_counts.columns}
    if found > SCHEMA_VERSION or unknown:
        raise newer_state(where, found=max(found, SCHEMA_VERSION + 1), known=SCHEMA_VERSION)
    for number in range(found + 1, SCHEMA_VERSION + 1) if found else ():
        STEPS[number](transaction)
    tables.metadata.create_all(transaction)
    _add_counters(transaction)
    if not found:
        transaction.execute(insert(tables.schema_version).values(version=SCHEMA_VERSION))
    elif found < SCHEMA_VERSION:
        transaction.execute(update(tables.schema_version).values(version=SCHEMA_VERSION))


def _verdicts_as_tests(transaction: Connection) -> None:
    """Turn the fields that a gate's verdict had for each test into a list of named tests."""
    rows = transaction.execute(text("SELECT number, document FROM rollouts")).all()
    for number, document in rows:
        content = json.loads(document)
        for wave in content["rollout"]["waves"]:
            if wave["verdict"]:
                wave["verdict"] = _verdict_2(wave["verdict"], content["rollout"]["plan"])
        transaction.execute(
            text("UPDATE rollouts SET document = :document WHERE number = :number"),
            {"document": json.dumps(content, separators=(",", ":")), "number": number},
        )


def _verdict_2(old: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Keep what version 1 knew of its two tests; which of them a failure came from is told by their e-values."""
    crossed = 1 / plan["gate"]["alpha"]
    audited, harm = old["audited"], old["audit_harm"]
    tests = [
        {"name": "failures", "measured": 0.0, "limit": plan["gate"]["max_failure_rate"], "samples": 0,
         "e_value": old["failure_e_value"]},
        {"name": "harm", "measured": harm / audited if audited else 0.0, "limit": old["promised_harm"],
         "samples": audited, "e_value": old["harm_e_value"]},
    ]  # fmt: skip
    for test in tests:
        is_failed = test["e_value"] >= crossed
        test["verdict"] = "fail" if is_failed else "pass"
        test["reason"] = old["reason"] if is_failed else f"evidence {test['e_value']:,.0f} to 1"
    return {"verdict": old["verdict"], "reason": old["reason"], "tests": tests, "wake_at": old["wake_at"]}


def _what_devices_run(transaction: Connection) -> None:
    """Keep what devices run apart from what the core serves by default, with the certificates that belong to it.

    Until now they were the same, under the newest certificate: NULL, which is looked up and written down at the start.
    """
    transaction.execute(text("ALTER TABLE assignments ADD COLUMN certificate_digest VARCHAR(71)"))
    transaction.execute(
        text(
            "CREATE TABLE releases (model VARCHAR(255) NOT NULL PRIMARY KEY, digest VARCHAR(71) NOT NULL, "
            "certificates TEXT)"
        )
    )
    transaction.execute(text("INSERT INTO releases (model, digest) SELECT model, digest FROM defaults"))
    for number, document in transaction.execute(text("SELECT number, document FROM rollouts")).all():
        content = json.loads(document)
        default = content["rollout"].get("previous_default", "")
        if default:
            content["rollout"]["previous_release"] = {"artifact_digest": default, "certificates": None}
        transaction.execute(
            text("UPDATE rollouts SET document = :document WHERE number = :number"),
            {"document": json.dumps(content, separators=(",", ":")), "number": number},
        )


def _instances_of_devices(transaction: Connection) -> None:
    """Count by data directory as well as by device: what was delivered until now belongs to the one without a name."""
    transaction.execute(
        text(
            "CREATE TABLE device_instances (device_id VARCHAR(128) NOT NULL, instance VARCHAR(64) NOT NULL, "
            "durable_sequence BIGINT NOT NULL, updated_at DOUBLE PRECISION NOT NULL, "
            "PRIMARY KEY (device_id, instance))"
        )
    )
    transaction.execute(
        text("INSERT INTO device_instances SELECT device_id, '', durable_sequence, last_seen FROM devices")
    )
    transaction.execute(text("ALTER TABLE devices DROP COLUMN durable_sequence"))
    counters = sorted(_count_columns(transaction) - {"device_id", "artifact_digest", "model", "updated_at"})
    _with_instance(
        transaction,
        "outcome_counts",
        keys=["artifact_digest VARCHAR(71)"],
        others=[
            "model VARCHAR(255) NOT NULL",
            *(f"{name} BIGINT DEFAULT '0' NOT NULL" for name in counters),
            "updated_at DOUBLE PRECISION NOT NULL",
        ],
    )
    if inspect(transaction).has_table("device_evidence"):  # databases of before have no such table
        _with_instance(
            transaction,
            "device_evidence",
            keys=["artifact_digest VARCHAR(71)", "certificate_digest VARCHAR(71)"],
            others=["document TEXT NOT NULL", "has_vote BOOLEAN NOT NULL"],
        )


def _with_instance(transaction: Connection, table: str, *, keys: list[str], others: list[str]) -> None:
    """Make a table again, with ``instance`` in its primary key: few databases change one in place."""
    names = [column.split()[0] for column in (*keys, *others)]
    key_names = ", ".join(["device_id", "instance", *names[: len(keys)]])
    columns = ["device_id VARCHAR(128) NOT NULL", "instance VARCHAR(64) NOT NULL", *(f"{key} NOT NULL" for key in keys)]
    transaction.execute(text(f"ALTER TABLE {table} RENAME TO {table}_3"))
    transaction.execute(text(f"CREATE TABLE {table} ({', '.join([*columns, *others])}, PRIMARY KEY ({key_names}))"))
    copied = ", ".join(names)
    transaction.execute(
        text(f"INSERT INTO {table} (device_id, instance, {copied}) SELECT device_id, '', {copied} FROM {table}_3")
    )
    transaction.execute(text(f"DROP TABLE {table}_3"))


def _what_stays_where_it_is(transaction: Connection) -> None:
    """Keep which devices an abort left where they were, since when devices run what they run, and the last number.

    Until now an abort that kept went on for every device of a released wave; what was told so stays told so.
    """
    transaction.execute(text("ALTER TABLE devices ADD COLUMN runs_since TEXT DEFAULT '{}' NOT NULL"))
    transaction.execute(text("CREATE TABLE counters (name VARCHAR(32) NOT NULL PRIMARY KEY, last INTEGER NOT NULL)"))
    transaction.execute(text("INSERT INTO counters SELECT 'rollouts', COALESCE(MAX(number), 0) FROM rollouts"))
    for number, document in transaction.execute(text("SELECT number, document FROM rollouts")).all():
        content = json.loads(document)
        rollout = content["rollout"]
        if not rollout.get("is_kept"):
            continue
        released = len(rollout["waves"])
        rollout["kept"] = [one["device_id"] for one in rollout["plan"]["devices"] if one["wave"] < released]
        transaction.execute(
            text("UPDATE rollouts SET document = :document WHERE number = :number"),
            {"document": json.dumps(content, separators=(",", ":")), "number": number},
        )


def _what_was_said_of_traffic(transaction: Connection) -> None:
    """Keep splits, shadows, pins and the like: a release that knows nothing of them must not serve without them."""
    transaction.execute(
        text(
            "CREATE TABLE traffic (model VARCHAR(255) NOT NULL PRIMARY KEY, document TEXT NOT NULL, "
            "changed_at DOUBLE PRECISION NOT NULL)"
        )
    )


STEPS: Mapping[int, Callable[[Connection], None]] = {
    2: _verdicts_as_tests,
    3: _what_devices_run,
    4: _instances_of_devices,
    5: _what_stays_where_it_is,
    6: _what_was_said_of_traffic,
}
"""By the version that a step leads to."""

SCHEMA_VERSION = max(STEPS)
"""What this release writes."""


def version_of(transaction: Connection) -> int:
    """Return the version of the database; 0 for a new one."""
    if not inspect(transaction).has_table(tables.schema_version.name):
        return 0
    return int(transaction.execute(select(tables.schema_version.c.version)).scalar_one_or_none() or 0)


def _count_columns(transaction: Connection) -> set[str]:
    looked_at = inspect(transaction)
    if not looked_at.has_table(tables.outcome_counts.name):
        return set()
    return {column["name"] for column in looked_at.get_columns(tables.outcome_counts.name)}


def _add_counters(transaction: Connection) -> None:
    """Add columns for counters that are new; in rows from before, they were never counted and are 0."""
    found = _count_columns(transaction)
    for column in tables.outcome_counts.columns:
        if column.name not in found:
            definition = CreateColumn(column).compile(dialect=transaction.dialect)
            transaction.execute(text(f"ALTER TABLE {tables.outcome_counts.name} ADD COLUMN {definition}"))
