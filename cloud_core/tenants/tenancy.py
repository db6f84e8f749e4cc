"""All about tenants of one core: who calls, what each has left, and what is written of that from time to time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cloud_core.policy.admission import Tenant
from cloud_core.registry.registry import Registry
from cloud_core.settings import CoreSettings
from cloud_core.state import Database, api_keys
from cloud_core.tenants.accounts import tenant_of
from cloud_core.tenants.callers import Callers
from cloud_core.tenants.keys import ApiKeys
from cloud_core.tenants.settings import TenantSettings
from cloud_core.tenants.sight import SeenRegistry
from cloud_core.tenants.usage import Usage
from penstock.policy.token_budget import Moment
from penstock.process.telemetry import log

if TYPE_CHECKING:
    from cloud_core.tenants.oidc import OidcIssuer

_log = logging.getLogger(__name__)


class Tenancy:
    """Made once for a core in which callers prove who they are.

    Attributes:
        callers: who may call.
        keys: that operators make.
        usage: what tenants used.
    """

    def __init__(self, settings: CoreSettings, database: Database, now: Callable[[], float]) -> None:
        """Read what is kept, and go on with it.

        Args:
            now: the event loop's clock.
        """
        self._flush_s = settings.serving.spending_flush_s
        known = {tenant.name: tenant_of(tenant) for tenant in settings.tenants}
        self.keys = ApiKeys(database, wall_clock=time.time, max_keys=settings.auth.max_keys, known=known)
        self._issuer = _issuer(settings, now, known)
        self.callers = Callers(
            settings.tenants, lambda: Moment(now=now(), at=time.time()), keys=self.keys, issuer=self._issuer
        )
        self.usage = Usage(database, settings.usage, wall_clock=time.time)
        for name, used in self.usage.of_today().items():
            account = self.callers.accounts.get(name)
            if account is not None:
                account.resume(day=self.usage.today(), requests=used.requests, rows=used.rows)
        if not (settings.tenants or settings.auth.oidc.issuer or len(self.keys)):
            log(_log, logging.WARNING, "nobody has a credential yet", make_one="penstock core key create --data-dir")

    def replace(self, tenants: Sequence[TenantSettings]) -> None:
        """Know these tenants from now on; all at once."""
        known = {tenant.name: tenant_of(tenant) for tenant in tenants}
        self.keys.know(known)
        if self._issuer is not None:
            self._issuer.know(known)
        self.callers.replace(tenants)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what runs beside the core's other tasks."""
        tasks = {"tenants": self._write()}
        if self._issuer is not None:
            tasks["identity provider"] = self._issuer.reader.run()
        return tasks

    async def _write(self) -> None:
        """Write what has changed, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what has changed now."""
        await self.usage.flush()
        await self.keys.flush()


def _issuer(settings: CoreSettings, now: Callable[[], float], known: Mapping[str, Tenant]) -> OidcIssuer | None:
    if not settings.auth.oidc.issuer:
        return None
    from cloud_core.tenants.oidc import OidcIssuer  # an extra

    return OidcIssuer(settings.auth.oidc, now=now, wall_clock=time.time, known=known)


def seen_by(tenancy: Tenancy | None, registry: Registry) -> Registry | SeenRegistry:
    """Return the registry that the data plane looks into."""
    return SeenRegistry(registry) if tenancy is not None and tenancy.callers.hides else registry


def tenancy_of(settings: CoreSettings, database: Database, now: Callable[[], float]) -> Tenancy | None:
    """Make it; None where everybody may call, and keys that there are say nothing."""
    if settings.wants_credentials:
        return Tenancy(settings, database, now)
    if kept := len(database.run_now(api_keys.read)):
        effect = "everybody may call; set auth.required = true, or have [[tenants]]"
        log(_log, logging.WARNING, "keys are not looked at", keys=kept, because=effect)
    return None
