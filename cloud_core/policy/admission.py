"""Decides who calls, and what the caller may do. Plain functions of values.

Decides; reads no header, waits for nothing. How much somebody may send is ``tenant_limits``'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from penstock.errors import PermissionDenied, Unauthenticated
from penstock.policy.access import Action

ANONYMOUS = ""
_SCHEME = "bearer "


Role = Literal["admin", "device", "client", "observer"]


_ALLOWED: Mapping[Role, frozenset[Action]] = {
    "admin": frozenset(Action),
    "device": frozenset({Action.INFER, Action.PULL, Action.REPORT}),
    "client": frozenset({Action.INFER}),
    "observer": frozenset({Action.SCRAPE}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Says who calls, and what the caller may do.

    Attributes:
        device_id: the only device that it may report for; "" for any.
        models: patterns of the names that it may ask for, ``*`` for any characters; None is all of them.
    """

    name: str
    role: Role = "admin"
    device_id: str = ""
    models: tuple[str, ...] | None = None


ANYBODY = Tenant(name=ANONYMOUS)
"""Who calls where nobody has to say who they are."""


def by_token(tenants: Iterable[tuple[str, Tenant]]) -> Mapping[bytes, Tenant]:
    """Index tenants by the hash of their token: looking one up takes no longer for a token that is nearly right."""
    return {hashed(token): tenant for token, tenant in tenants}


def by_names(tenants: Iterable[tuple[Tenant, Sequence[str]]], names: Sequence[str]) -> Tenant | None:
    """Return the first tenant of whose patterns one fits one of the names in a certificate; None for nobody's."""
    for tenant, patterns in tenants:
        if any(fnmatchcase(name, pattern) for pattern in patterns for name in names):
            return tenant
    return None


def bearer_token(authorization: str) -> str:
    """Return the token of an ``Authorization: Bearer`` value.

    Raises:
        Unauthenticated: it is none.
    """
    if authorization[: len(_SCHEME)].lower() == _SCHEME:
        return authorization[len(_SCHEME) :].strip()
    raise nobody()


def nobody() -> Unauthenticated:
    """Make the refusal of a credential that is none, or that nobody knows. Says nothing about what exists."""
    return Unauthenticated("a credential is needed: send 'Authorization: Bearer TOKEN' with a token that is known here")


def may(role: Role, action: Action) -> bool:
    """Say whether a role includes an action."""
    return action in _ALLOWED[role]


def authorize(tenant: Tenant, action: Action) -> None:
    """Check that a tenant may do something.

    Raises:
        PermissionDenied: the tenant's role does not include the action. Says nothing about what exists.
    """
    if not may(tenant.role, action):
        raise PermissionDenied(f"a token with the role {tenant.role!r} may not do this; use one whose role allows it")


def check_device(tenant: Tenant, device_id: str) -> None:
    """Check that a tenant may report for a device: one that has an identity of its own, for itself alone.

    Raises:
        PermissionDenied: it is another device's report.
    """
    if tenant.device_id and device_id != tenant.device_id:
        raise PermissionDenied(
            f"this token belongs to device {tenant.device_id!r} and may not report for {device_id[:80]!r}; give each "
            "device the token of its own [[tenants]] entry"
        )


def may_ask(tenant: Tenant, model: str) -> bool:
    """Say whether a tenant may ask for a model, and know that it exists."""
    return tenant.models is None or any(fnmatchcase(model, pattern) for pattern in tenant.models)


def check_model(tenant: Tenant, model: str) -> None:
    """Check that a tenant may ask for a model.

    Raises:
        PermissionDenied: it may not. Says the same of models that exist and of others.
    """
    if not may_ask(tenant, model):
        raise PermissionDenied("this credential may not ask for this name; use one that may, or a model that it may")


def hashed(token: str) -> bytes:
    """Return what a token is kept and found by."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
