"""What tenants asked of models, day by day. SQL only: what counts is ``cloud_core.tenants.usage``'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, select

from cloud_core.state import tables
from cloud_core.state.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What was used.

    Attributes:
        requests: that were admitted.
        failed: of them, those that were not answered.
        rows: of requests that were decoded.
        bytes: of bodies, or of their tensors where they are larger.
        tokens: of prompts and answers.
        device_s: seconds of the engine that ran, shared among the rows of a batch.
    """

    requests: int = 0
    failed: int = 0
    rows: int = 0
    bytes: int = 0
    tokens: int = 0
    device_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """What one tenant used of one model, on a day or on several.

    Attributes:
        day: its number since 1970, in UTC; None for all that were asked for together.
    """

    day: int | None
    tenant: str
    model: str
    used: Used


_COUNTS = tuple(Used.__slots__)


def read_day(transaction: Transaction, day: int) -> dict[tuple[str, str], Used]:
    """Return what is kept of a day, by tenant and model."""
    table = tables.usage_days
    columns = [table.c[name] for name in _COUNTS]
    found = transaction.execute(select(table.c.tenant, table.c.model, *columns).where(table.c.day == day))
    return {(tenant, model): Used(**dict(zip(_COUNTS, counts, strict=True))) for tenant, model, *counts in found}


def write(transaction: Transaction, day: int, used: Mapping[tuple[str, str], Used], *, oldest_day: int) -> None:
    """Keep what was used on a day so far, and forget the days before the oldest one."""
    rows = [
        {"day": day, "tenant": tenant, "model": model, **{name: getattr(one, name) for name in _COUNTS}}
        for (tenant, model), one in used.items()
    ]
    upsert(transaction, tables.usage_days, rows)
    transaction.execute(delete(tables.usage_days).where(tables.usage_days.c.day < oldest_day))


def find(
    transaction: Transaction, *, since: int, until: int, tenant: str, is_by_day: bool, limit: int
) -> tuple[UsageRow, ...]:
    """Sum up what was used from one day to another, both counted; at most ``limit`` rows, the oldest first.

    Args:
        tenant: "" for all.
        is_by_day: a row for each day; otherwise one for all of them.
    """
    table = tables.usage_days
    keys = [*([table.c.day] if is_by_day else []), table.c.tenant, table.c.model]
    sums = [func.sum(table.c[name]) for name in _COUNTS]
    asked = select(*keys, *sums).where(table.c.day >= since, table.c.day <= until)
    if tenant:
        asked = asked.where(table.c.tenant == tenant)
    found = []
    for row in transaction.execute(asked.group_by(*keys).order_by(*keys).limit(limit)):
        day, (name, model, *counts) = (row[0], row[1:]) if is_by_day else (None, row)
        values = {key: type(getattr(_NOTHING, key))(n) for key, n in zip(_COUNTS, counts, strict=True)}
        found.append(UsageRow(day=day, tenant=name, model=model, used=Used(**values)))
    return tuple(found)


_NOTHING = Used()
