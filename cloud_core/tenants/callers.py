"""Who calls: the one place that turns a credential into a tenant, and looks whether it may do what it asks for.

Credentials are tokens from the settings. Everything is looked up in memory; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cloud_core.policy import admission
from cloud_core.policy.admission import Tenant
from cloud_core.tenants.accounts import Account, accounts_of, tenant_of
from cloud_core.tenants.settings import TenantSettings
from penstock.policy.access import Action
from penstock.policy.token_budget import Moment


class Callers:
    """All who may call, and their accounts. Where nobody has to prove who they are there is none of this.

    Attributes:
        accounts: by name, of tenants that may not do everything.
    """

    def __init__(self, tenants: Iterable[TenantSettings], moment: Callable[[], Moment]) -> None:
        known = tuple(tenants)
        self.accounts: Mapping[str, Account] = accounts_of(known, moment)
        self._tokens = admission.by_token((one.token, tenant_of(one)) for one in known if one.token)

    def identify(self, authorization: str, action: Action | None, *, device_id: str | None = None) -> Tenant:
        """Return who presents a credential, and may do ``action``; None is anything.

        Args:
            device_id: that it reports for; None where it reports nothing.

        Raises:
            Unauthenticated: no known credential. PermissionDenied: one whose role does not include the action, or that
                is another device's.
        """
        tenant = self._tokens.get(admission.hashed(admission.bearer_token(authorization)))
        if tenant is None:
            raise admission.nobody()
        if action is not None:
            admission.authorize(tenant, action)
        if device_id is not None:
            admission.check_device(tenant, device_id)
        return tenant
