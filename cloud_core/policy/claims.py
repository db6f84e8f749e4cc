"""Decides whose a token of an identity provider is, from its verified claims, and when to read the provider's keys.

Values in, values out. What verifies a signature is ``cloud_core.tenants.oidc``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud_core.policy.admission import Role

_MIGHT: Sequence[Role] = ("admin", "device", "client", "observer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """How claims become a tenant and a role.

    Attributes:
        tenant: of every token; "" for what ``tenant_claim`` says.
        tenant_claim: path of a claim, dots lead into objects.
        role_claim: path of the claim with roles, a list or words in a text; "" for none.
        roles: what its values stand for.
        default_role: of tokens without such a value; "" refuses them.
    """

    tenant: str
    tenant_claim: str
    role_claim: str
    roles: Mapping[str, Role]
    default_role: Role | str


def tenant_and_role(claims: Mapping[str, Any], rules: ClaimRules) -> tuple[str, Role] | None:
    """Return the tenant's name and the mightiest role that the claims give; None where they give none."""
    tenant = rules.tenant or _at(claims, rules.tenant_claim)
    if not isinstance(tenant, str) or not tenant:
        return None
    said = _at(claims, rules.role_claim) if rules.role_claim else None
    values = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
    given = {rules.roles[value] for value in values if isinstance(value, str) and value in rules.roles}
    for role in _MIGHT:
        if role in given or (not given and role == rules.default_role):
            return tenant, role
    return None


def next_read_at(*, read_at: float | None, is_asked: bool, refresh_s: float, min_refresh_s: float) -> float:
    """Say when the provider's keys should be read: at once at first, in time, and sooner where a token asks for it."""
    if read_at is None:
        return 0.0
    return read_at + (min_refresh_s if is_asked else refresh_s)


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """Look a claim up by its whole name first: those of some providers are URLs, with dots in them."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
