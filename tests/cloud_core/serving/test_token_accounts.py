"""What tenants have spent of a day outlives a restart of the core; a kill costs what was not written yet."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloud_core.app import ENDPOINTS_FILE, Core
from cloud_core.serving.token_accounts import SpendingKeeper, TokenAccounts
from cloud_core.state import Database, spending
from cloud_core.tenants.settings import TenantSettings
from penstock.errors import QuotaExceeded
from penstock.generation.values import GenerationRequest
from tests.cloud_core.rig import core_settings, soon

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
TENANTS = [
    TenantSettings(name="acme", token="token-of-acme", tokens_per_day=100),
    TenantSettings(name="free", token="token-of-free", tokens_per_minute=100),
]


def request(tokens: int, id: str = "r") -> GenerationRequest:
    return GenerationRequest(id=id, prompt_ids=(1,) * (tokens - 1), max_new_tokens=1)


def accounts(database: Database, date: Callable[[], datetime] = lambda: NOON) -> TokenAccounts:
    return TokenAccounts(TENANTS, lambda: 0.0, date, spent=database.run_now(spending.read))


def spend(some: TokenAccounts, tenant: str, tokens: int) -> None:
    some.reserve(tenant, request(tokens))
    some.settle(tenant, "r", tokens)


async def test_what_was_spent_is_still_spent_after_a_restart_and_free_on_the_next_day(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "core.db")
    first = accounts(database)
    assert first.has_days
    keeper = SpendingKeeper(first, database, flush_s=1.0)
    for tokens in (60, 10):
        spend(first, "acme", tokens)
        spend(first, "free", tokens)
        await keeper.flush()
    database.close()

    database = Database.open(tmp_path / "core.db")
    again = accounts(database)
    with pytest.raises(QuotaExceeded, match="30 of 100 a day are left"):
        again.reserve("acme", request(31))
    spend(again, "acme", 30)
    spend(again, "free", 100)  # a rate is not kept
    tomorrow = accounts(database, lambda: NOON + timedelta(days=1))
    spend(tomorrow, "acme", 100)
    database.close()


async def test_days_that_are_over_are_forgotten(tmp_path: Path) -> None:
    database = Database.in_memory()
    day = {"a": spending.DaySpent(day=5, tokens=1), "b": spending.DaySpent(day=5, tokens=2)}
    database.run_now(lambda tx: spending.write(tx, day))
    database.run_now(lambda tx: spending.write(tx, {"a": spending.DaySpent(day=6, tokens=3)}))
    assert database.run_now(spending.read) == {"a": spending.DaySpent(day=6, tokens=3)}
    database.close()


async def test_a_clock_that_steps_back_gives_nothing_back() -> None:
    database = Database.in_memory()
    later = {"acme": spending.DaySpent(day=int(NOON.timestamp() // 86_400) + 1, tokens=90)}
    database.run_now(lambda tx: spending.write(tx, later))
    with pytest.raises(QuotaExceeded, match="10 of 100"):
        accounts(database).reserve("acme", request(11))
    database.close()


async def test_a_core_writes_while_it_runs_and_when_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tenants = [{"name": "acme", "token": "token-of-acme", "tokens_per_day": 100}]
    settings = core_settings(tmp_path / "core", tenants=tenants, serving={"spending_flush_s": 0.05})

    def kept() -> list[tuple[int]]:
        with sqlite3.connect(f"file:{tmp_path / 'core' / 'core.db'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT tokens FROM token_spending").fetchall()

    async with await Core.start(settings) as core:
        spend(core.texts.accounts, "acme", 20)
        await soon(lambda: kept() == [(20,)])
        spend(core.texts.accounts, "acme", 5)
    assert kept() == [(25,)]
    assert "was killed" not in caplog.text
    (tmp_path / "core" / ENDPOINTS_FILE).write_text("{}")  # as a core leaves it that is killed
    async with await Core.start(settings) as core:
        assert core.texts.accounts.spent()["acme"].tokens == 25
    assert "the core before this one was killed" in caplog.text
