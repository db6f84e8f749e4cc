"""What tenants have spent of their tokens on a day, so that a core that is started again knows it.

SQL only: what may be spent is ``penstock.policy.token_budget``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, select

from cloud_core.state import tables
from cloud_core.state.database import Transaction, upsert


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySpent:
    """Tokens of one tenant.

    Attributes:
        day: its number since 1970, in UTC.
    """

    day: int
    tokens: int


def read(transaction: Transaction) -> dict[str, DaySpent]:
    """Return what is kept, by tenant."""
    table = tables.token_spending
    rows = transaction.execute(select(table.c.tenant, table.c.day, table.c.tokens))
    return {tenant: DaySpent(day=day, tokens=tokens) for tenant, day, tokens in rows}


def write(transaction: Transaction, spent: Mapping[str, DaySpent]) -> None:
    """Keep what some tenants have spent, and forget the days before."""
    rows = [{"tenant": name, "day": one.day, "tokens": one.tokens} for name, one in spent.items()]
    upsert(transaction, tables.token_spending, rows)
    latest = max((one.day for one in spent.values()), default=0)
    transaction.execute(delete(tables.token_spending).where(tables.token_spending.c.day < latest))
