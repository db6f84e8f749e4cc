"""The tables of the current schema version. Plain SQL types only: SQLite has them, and PostgreSQL.

Times are UNIX seconds (UTC); documents are JSON text, validated by whoever owns them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text

from penstock.wire.outcomes import COLUMNS

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

manifests = Table(
    "manifests",
    metadata,
    # order of arrival: "the newest certificate" is the one with the largest id
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("repository", String(255), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("media_type", String(255), nullable=False),
    Column("artifact_type", String(255), nullable=False),
    Column("subject", String(71), nullable=False),
    Column("annotations", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("is_artifact", Boolean, nullable=False),
    Column("pushed_at", Double, nullable=False),
    Index("manifests_by_digest", "repository", "digest", unique=True),
)

tags = Table(
    "tags",
    metadata,
    Column("repository", String(255), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("digest", String(71), nullable=False),
    Column("pushed_at", Double, nullable=False),
)

defaults = Table(
    "defaults",
    metadata,
    Column("model", String(255), primary_key=True),
    Column("digest", String(71), nullable=False),
    Column("set_at", Double, nullable=False),
)

traffic = Table(
    "traffic",
    metadata,
    # what operators said about a model's traffic: a split, a shadow, pins, unloaded versions, a version policy
    Column("model", String(255), primary_key=True),
    Column("document", Text, nullable=False),
    Column("changed_at", Double, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(128), primary_key=True),
    Column("reported", Text, nullable=False),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    # JSON: when a model was first seen to run what it runs, by model; 0 or absent: from before that was kept
    Column("runs_since", Text, nullable=False, server_default="{}"),
)

device_instances = Table(
    "device_instances",
    metadata,
    # data directories behind one device id, each with sequences of its own; empty: what older agents delivered
    Column("device_id", String(128), primary_key=True),
    Column("instance", String(64), primary_key=True),
    Column("durable_sequence", BigInteger, nullable=False),
    Column("updated_at", Double, nullable=False),
)

outcome_counts = Table(
    "outcome_counts",
    metadata,
    Column("device_id", String(128), primary_key=True),
    Column("instance", String(64), primary_key=True),
    Column("artifact_digest", String(71), primary_key=True),
    Column("model", String(255), nullable=False),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in COLUMNS),
    Column("updated_at", Double, nullable=False),
)

evidence_pools = Table(
    "evidence_pools",
    metadata,
    Column("artifact_digest", String(71), primary_key=True),
    Column("certificate_digest", String(71), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("rounds", Text, nullable=False),
    Column("strength", Double, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("alarmed_at", Double, nullable=True),
)

device_evidence = Table(
    "device_evidence",
    metadata,
    Column("device_id", String(128), primary_key=True),
    Column("instance", String(64), primary_key=True),
    Column("artifact_digest", String(71), primary_key=True),
    Column("certificate_digest", String(71), primary_key=True),
    Column("document", Text, nullable=False),
    # beside the document, because the end of a round makes all of them false at once
    Column("has_vote", Boolean, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("device_id", String(128), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("digest", String(71), nullable=False),  # empty: the device should run nothing
    Column("rollout_id", String(255), nullable=False),
    Column("certificate_digest", String(71), nullable=True),  # NULL: from before it was kept
)

releases = Table(
    "releases",
    metadata,
    # what devices run that have no assignment: written when a rollout over the whole fleet succeeds
    Column("model", String(255), primary_key=True),
    Column("digest", String(71), nullable=False),  # empty: the model was removed
    Column("certificates", Text, nullable=True),  # JSON list; NULL: from before they were kept
)

trusts = Table(
    "trusts",
    metadata,
    # an operator's word that a device's audit of a promise should begin without evidence
    Column("device_id", String(128), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("artifact_digest", String(71), nullable=False),
    Column("certificate_digest", String(71), nullable=False),
    Column("trusted_at", Double, nullable=False),
)

operator_actions = Table(
    "operator_actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("who", String(255), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(512), nullable=False),
    Column("reason", Text, nullable=False),
)

handed = Table(
    "handed",
    metadata,
    # devices that were told to run the artifact of an active rollout
    Column("rollout", Integer, primary_key=True, autoincrement=False),
    Column("device_id", String(128), primary_key=True),
    Column("handed_at", Double, nullable=False),
)

token_spending = Table(
    "token_spending",
    metadata,
    # what tenants took on a day, in days since 1970; written from time to time
    Column("tenant", String(64), primary_key=True),
    Column("day", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    # what callers hold; of the key itself only the hash is here
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("tenant", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("device_id", String(128), nullable=False),
    Column("note", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("expires_at", Double, nullable=True),
    Column("last_used_at", Double, nullable=True),
)

usage_days = Table(
    "usage_days",
    metadata,
    # what tenants asked of models on a day, in days since 1970; written from time to time
    Column("day", Integer, primary_key=True),
    Column("tenant", String(64), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("device_s", Double, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    # the last number that was given: one that was deleted is not given again
    Column("name", String(32), primary_key=True),
    Column("last", Integer, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rollout_id", String(255), nullable=False, unique=True),
    Column("model", String(255), nullable=False),
    Column("state", String(32), nullable=False),
    Column("document", Text, nullable=False),
)
