"""Who calls: the one place that turns a credential into a tenant, and looks whether it may do what it asks for.

Credentials are tokens from the settings, keys, tokens of an identity provider, and certificates that TLS has verified.
Everything is looked up in memory; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from cloud_core.policy import admission
from cloud_core.policy.admission import Tenant
from cloud_core.tenants.accounts import Account, accounts_of, tenant_of
from cloud_core.tenants.keys import ApiKeys
from cloud_core.tenants.settings import TenantSettings
from cloud_core.tenants.sight import look_as
from penstock.policy.access import Action
from penstock.policy.fair_shares import FairShares
from penstock.policy.token_budget import Moment
from penstock.wire.credentials import PeerCertificate


class Issuer(Protocol):
    """Knows the tokens of an identity provider."""

    def tenant_of(self, token: str, key: bytes) -> Tenant | None:
        """Return whose token this is; None for one that is not valid.

        Args:
            key: the token's hash, by which a verified one is remembered.

        Raises:
            Unavailable: the provider's keys are not here yet.
        """
        ...


_MAX_CERTIFICATES = 10_000


class Callers:
    """All who may call, and their accounts. Where nobody has to prove who they are there is none of this.

    Attributes:
        accounts: by name, of tenants that may not do everything.
        keys: made by operators.
        hides: whether there are tenants that may not see everything.
    """

    def __init__(
        self,
        tenants: Iterable[TenantSettings],
        moment: Callable[[], Moment],
        *,
        keys: ApiKeys | None = None,
        issuer: Issuer | None = None,
    ) -> None:
        """
        Args:
            keys: None where there are none.
            issuer: knows tokens of an identity provider; None takes none.
        """
        self.keys, self._issuer = keys, issuer
        self._moment = moment
        self.accounts: dict[str, Account] = {}
        self.hides = False
        self._certificates: tuple[tuple[Tenant, Sequence[str]], ...] = ()
        self._weights: dict[str, float] = {}
        self._by_names: dict[tuple[str, ...], Tenant | None] = {}
        self._tokens: Mapping[bytes, Tenant] = {}
        self.replace(tenants)

    def replace(self, tenants: Iterable[TenantSettings]) -> None:
        """Know these tenants from now on, and no others; all at once. Who stays keeps what it has spent."""
        known = tuple(tenants)
        found = accounts_of(known, self._moment)
        for name, account in found.items():
            if (before := self.accounts.get(name)) is not None:
                before.change(account.tenant, account.limits)
                found[name] = before
        certificates = tuple((tenant_of(one), one.certificates) for one in known if one.certificates)
        tokens = admission.by_token((one.token, tenant_of(one)) for one in known if one.token)
        self.accounts.clear()  # the same mapping: the data plane looks into it at each request
        self.accounts.update(found)
        self.hides = any(one.is_restricted for one in found.values())
        self._certificates, self._tokens = certificates, tokens
        self._weights = {one.name: one.share for one in known if admission.may(one.role, Action.INFER)}
        self._by_names.clear()

    def identify(self, authorization: str, action: Action | None, *, device_id: str | None = None) -> Tenant:
        """Return who presents a credential, and may do ``action``; None is anything.

        Args:
            device_id: that it reports for; None where it reports nothing.

        Raises:
            Unauthenticated: no known credential. PermissionDenied: one whose role does not include the action, or that
                is another device's.
        """
        if isinstance(authorization, PeerCertificate):
            tenant = self._by_certificate(authorization)
        else:
            token = admission.bearer_token(authorization)
            key = admission.hashed(token)
            tenant = self._tokens.get(key) or self._by_key(key)
            if tenant is None and self._issuer is not None:
                tenant = self._issuer.tenant_of(token, key)
        if tenant is None:
            raise admission.nobody()
        if action is not None:
            admission.authorize(tenant, action)
        if device_id is not None:
            admission.check_device(tenant, device_id)
        if self.hides:
            look_as(tenant)
        return tenant

    def are_several(self) -> bool:
        """Say whether tenants may have to share: more than one may ask models."""
        if len(self._weights) > 1 or self._issuer is not None:
            return True
        return self.keys is not None and len(self.keys.tenants | self._weights.keys()) > 1

    def fair_shares(self) -> FairShares:
        """Make the shares of tenants in one replica's time."""
        return FairShares(lambda tenant: self._weights.get(tenant, 1.0), self.are_several)

    @property
    def takes_certificates(self) -> bool:
        """Say whether a certificate may stand for a token."""
        return bool(self._certificates)

    def _by_key(self, key: bytes) -> Tenant | None:
        return None if self.keys is None else self.keys.tenant_of(key)

    def _by_certificate(self, certificate: PeerCertificate) -> Tenant | None:
        """Look the names of a certificate up; a connection makes many requests with the same ones."""
        names = certificate.names
        if names not in self._by_names:
            if len(self._by_names) >= _MAX_CERTIFICATES:
                self._by_names.clear()
            self._by_names[names] = admission.by_names(self._certificates, names)
        return self._by_names[names]
