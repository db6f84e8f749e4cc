"""What tenants have spent and reserved of their tokens, in memory and, from time to time, on disk.

What may be reserved is ``penstock.policy.token_budget``'s. What a day's requests took is written at most
``serving.spending_flush_s`` after they ended, and at the end of the core: whoever kills it gives tenants so much back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from cloud_core.state import Database, spending
from cloud_core.state.spending import DaySpent
from cloud_core.tenants.settings import TenantSettings
from penstock.errors import StorageError
from penstock.generation.values import GenerationRequest
from penstock.policy.token_budget import Moment, TokenQuota
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class TokenAccounts:
    """What each tenant with a quota has spent and reserved; bounded by the number of tenants.

    Attributes:
        tokens: of prompts and answers since the start, by tenant, for metrics.
    """

    def __init__(
        self,
        tenants: Sequence[TenantSettings],
        now: Callable[[], float],
        date: Callable[[], datetime],
        *,
        spent: Mapping[str, DaySpent],
    ) -> None:
        """``spent``: as it was kept when a core ran before; only what is of today counts."""
        self._now, self._date = now, date
        self._quotas = _quotas(tenants)
        self._accounts = {name: quota.account(self._moment()) for name, quota in self._quotas.items()}
        for name, before in spent.items():
            if name in self._quotas:
                self._accounts[name] = self._quotas[name].resumed(
                    self._accounts[name], day=before.day, spent=before.tokens
                )
        self.tokens: dict[str, int] = {}

    def replace(self, tenants: Sequence[TenantSettings]) -> None:
        """Keep to the quotas of these tenants from now on. What was spent of a day, or is reserved, still counts."""
        quotas = _quotas(tenants)
        for name, quota in quotas.items():
            before = self._accounts.get(name)
            if before is None:
                self._accounts[name] = quota.account(self._moment())
            elif quota != self._quotas[name]:
                self._accounts[name] = replace(
                    quota.account(self._moment()), open=before.open, day=before.day, spent=before.spent
                )
        self._accounts = {name: self._accounts[name] for name in quotas}
        self._quotas = quotas

    @property
    def has_days(self) -> bool:
        """Say whether any tenant has tokens of a day, so that they have to be kept."""
        return any(quota.per_day is not None for quota in self._quotas.values())

    def reserve(self, tenant: str, asked: GenerationRequest) -> None:
        """Set aside what a request can take.

        Raises:
            QuotaExceeded: it is not there now. InvalidInput: it is never there.
        """
        quota = self._quotas.get(tenant)
        if quota is not None:
            answer = asked.max_new_tokens if asked.options is None else asked.options.tokens
            most = len(asked.prompt_ids) + answer
            self._accounts[tenant] = quota.reserve(self._accounts[tenant], asked.id, most, self._moment())

    def settle(self, tenant: str, request: str, used: int) -> None:
        """Count what a request took, however it ended, and give the rest back."""
        self.tokens[tenant] = self.tokens.get(tenant, 0) + used
        quota = self._quotas.get(tenant)
        if quota is not None:
            self._accounts[tenant] = quota.settle(self._accounts[tenant], request, used, self._moment())

    def spent(self) -> dict[str, DaySpent]:
        """Return what tenants with tokens of a day have spent of their day."""
        return {
            name: DaySpent(day=account.day, tokens=account.spent)
            for name, account in self._accounts.items()
            if self._quotas[name].per_day is not None and account.spent
        }

    def _moment(self) -> Moment:
        return Moment(now=self._now(), at=self._date().timestamp())


def _quotas(tenants: Sequence[TenantSettings]) -> dict[str, TokenQuota]:
    return {
        tenant.name: TokenQuota(per_minute=tenant.tokens_per_minute or None, per_day=tenant.tokens_per_day or None)
        for tenant in tenants
        if tenant.tokens_per_minute or tenant.tokens_per_day
    }


class SpendingKeeper:
    """Writes what has changed of the accounts."""

    def __init__(self, accounts: TokenAccounts, database: Database, *, flush_s: float) -> None:
        """``flush_s``: time between two writes."""
        self._accounts, self._database, self._flush_s = accounts, database, flush_s
        self._written = accounts.spent()

    async def run(self) -> None:
        """Write whenever something changed, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what changed since the last time. A disk that says no is told, and tried again the next time."""
        spent = self._accounts.spent()
        changed = {name: one for name, one in spent.items() if self._written.get(name) != one}
        if not changed:
            return
        try:
            await self._database.run(partial(spending.write, spent=changed))
        except StorageError as error:
            log(_log, logging.WARNING, "tokens that tenants have spent are not written", error=error.message)
        else:
            self._written = spent
