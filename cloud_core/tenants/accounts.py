"""What each tenant with limits or rights of its own has in flight and has spent, in memory.

Owns the states; what may be taken of them is ``policy.tenant_limits``', which models may be asked
``policy.admission``'s. Tenants that may do everything have no account, so that they cost a request one look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import msgspec

from cloud_core.policy import admission, tenant_limits
from cloud_core.policy.admission import Tenant
from cloud_core.policy.tenant_limits import UNLIMITED, TenantLimits
from cloud_core.tenants.settings import TenantSettings
from penstock.errors import NotFound
from penstock.policy.token_bucket import TokenBucket
from penstock.policy.token_budget import Moment
from penstock.wire.context import RequestContext

R = TypeVar("R")

_EVERY_MODEL = "*"


class Account:
    """One tenant's. Everything happens on the event loop's thread.

    Attributes:
        state: what it has left and has spent.
    """

    __slots__ = ("_moment", "limits", "state", "tenant")

    def __init__(self, tenant: Tenant, limits: TenantLimits, moment: Callable[[], Moment]) -> None:
        self.tenant, self.limits, self._moment = tenant, limits, moment
        self.state = tenant_limits.opened(limits, moment().now)

    @property
    def is_restricted(self) -> bool:
        """Say whether there are models that it may not ask for."""
        return self.tenant.models is not None

    def admit(self, model: str, size_bytes: int | None, route: Callable[[], R]) -> R:
        """Let a request begin for which ``route`` finds a way. What is refused for another reason costs nothing here.

        Args:
            size_bytes: of its body; None where nobody knows before it is read.

        Raises:
            PermissionDenied: the tenant may not ask for the model. NotFound: as ``route``, but naming no others.
            QuotaExceeded, TooLarge, InvalidInput: as :func:`cloud_core.policy.tenant_limits.begin`.
        """
        admission.check_model(self.tenant, model)
        try:
            found = route()
        except NotFound:
            if self.is_restricted:
                raise not_found(model) from None
            raise
        self.state = tenant_limits.begin(self.limits, self.state, size_bytes, self._moment(), self.tenant.name)
        return found

    def take_rows(self, rows: int) -> None:
        """Count the rows of a request.

        Raises:
            QuotaExceeded, InvalidInput: as :func:`cloud_core.policy.tenant_limits.take_rows`.
        """
        self.state = tenant_limits.take_rows(self.limits, self.state, rows, self._moment(), self.tenant.name)

    def within_rights(self, context: RequestContext) -> RequestContext:
        """Give a request the priority that its tenant may have."""
        priority = tenant_limits.priority_within(self.limits, context.priority)
        return context if priority == context.priority else msgspec.structs.replace(context, priority=priority)

    def end(self) -> None:
        """Count a request that is over."""
        self.state = tenant_limits.end(self.state)

    def change(self, tenant: Tenant, limits: TenantLimits) -> None:
        """Have other rights and limits from now on; what was spent, and what is in flight, still counts."""
        if limits != self.limits:
            fresh = tenant_limits.opened(limits, self._moment().now)
            self.state = replace(self.state, requests=fresh.requests, rows=fresh.rows, bytes=fresh.bytes)
        self.tenant, self.limits = tenant, limits

    def resume(self, *, day: int, requests: int, rows: int) -> None:
        """Go on with what was spent on a day when a core ran before."""
        self.state = tenant_limits.opened(self.limits, self._moment().now, day=day, requests=requests, rows=rows)


def not_found(model: str) -> NotFound:
    """Make the refusal of a name for who may not see all of them: it lists none."""
    return NotFound(f"no model or version {model[:200]!r} that this credential may ask for")


def accounts_of(tenants: Iterable[TenantSettings], moment: Callable[[], Moment]) -> dict[str, Account]:
    """Open the accounts of tenants that may not do everything, by name."""
    found = {}
    for settings in tenants:
        tenant, limits = tenant_of(settings), limits_of(settings)
        if tenant.models is not None or limits != UNLIMITED:
            found[tenant.name] = Account(tenant, limits, moment)
    return found


def tenant_of(settings: TenantSettings) -> Tenant:
    """Make what authentication gives."""
    models = None if _EVERY_MODEL in settings.models else settings.models
    return Tenant(name=settings.name, role=settings.role, device_id=settings.device_id, models=models)


def limits_of(settings: TenantSettings) -> TenantLimits:
    """Make what a policy is told of a tenant's limits."""
    return TenantLimits(
        requests=_bucket(settings.rate_requests_per_s, settings.burst_requests),
        rows=_bucket(settings.rate_rows_per_s, settings.burst_rows),
        bytes=_bucket(settings.rate_bytes_per_s, settings.burst_bytes),
        max_inflight=settings.max_inflight_requests,
        requests_per_day=settings.requests_per_day,
        rows_per_day=settings.rows_per_day,
        best_priority=settings.best_priority,
    )


def _bucket(rate: float, burst: float) -> TokenBucket | None:
    return TokenBucket(rate=rate, burst=burst or max(rate, 1.0)) if rate else None
