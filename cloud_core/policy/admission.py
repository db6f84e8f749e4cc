"""Decides who may send, and how much. Plain functions of values and ``now``.

Decides; keeps no bucket, reads no header, waits for nothing. The data plane holds the states that are handed back here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.errors import InvalidInput, PermissionDenied, QuotaExceeded, Unauthenticated
from penstock.policy.access import Action
from penstock.policy.token_bucket import BucketState, TokenBucket

ANONYMOUS = ""
_SCHEME = "bearer "


Role = Literal["admin", "device", "client"]


_ALLOWED: Mapping[Role, frozenset[Action]] = {
    "admin": frozenset(Action),
    "device": frozenset({Action.INFER, Action.PULL, Action.REPORT}),
    "client": frozenset({Action.INFER}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Says who calls, and what the caller may do.

    Attributes:
        device_id: the only device that it may report for; "" for any.
        bucket: limits rows a second; None is no limit.
    """

    name: str
    role: Role = "admin"
    device_id: str = ""
    bucket: TokenBucket | None = None


def by_token(tenants: Iterable[tuple[str, Tenant]]) -> Mapping[bytes, Tenant]:
    """Index tenants by the hash of their token: looking one up takes no longer for a token that is nearly right."""
    return {_hashed(token): tenant for token, tenant in tenants}


def authenticate(tenants: Mapping[bytes, Tenant], authorization: str) -> Tenant:
    """Return the tenant whose ``Authorization: Bearer`` value this is.

    Raises:
        Unauthenticated: no such credential. Says nothing about what exists.
    """
    if authorization[: len(_SCHEME)].lower() == _SCHEME:
        tenant = tenants.get(_hashed(authorization[len(_SCHEME) :].strip()))
        if tenant is not None:
            return tenant
    raise Unauthenticated("a credential is needed: send 'Authorization: Bearer TOKEN' with a token that is known here")


def authorize(tenant: Tenant, action: Action) -> None:
    """Check that a tenant may do something.

    Raises:
        PermissionDenied: the tenant's role does not include the action. Says nothing about what exists.
    """
    if action not in _ALLOWED[tenant.role]:
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


def take_rows(tenant: Tenant, state: BucketState, rows: int, now: float) -> BucketState:
    """Take ``rows`` from a tenant's rate; return the bucket's new state.

    Raises:
        QuotaExceeded: over the rate; says when the rows would be there.
        InvalidInput: more rows in one request than the tenant's burst, so that waiting would not help.
    """
    bucket = tenant.bucket
    if bucket is None:
        return state
    after, wait_s = bucket.take(state, rows, now)
    if wait_s == 0.0:
        return after
    if math.isinf(wait_s):
        raise InvalidInput(
            f"inputs: {rows} rows in one request, but tenant {tenant.name!r} may send {bucket.burst:g} at once",
            field="inputs",
        )
    raise QuotaExceeded(
        f"tenant {tenant.name!r} is over its rate of {bucket.rate:g} rows a second; try again in {wait_s:.2f} s",
        limit=int(bucket.burst),
        remaining=max(0, int(after.tokens)),
        reset_s=wait_s,
    )


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
