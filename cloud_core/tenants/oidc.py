"""Knows tokens of an identity provider: JWTs that it signed with a key of its set. The only importer of PyJWT.

Everything is done in memory and nothing waits: a token whose key is not here is refused with a hint to try again, and
the keys are read again beside. A verified token is remembered by its hash until it expires or the keys change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from cloud_core.policy.admission import Tenant
from cloud_core.policy.claims import ClaimRules, tenant_and_role
from cloud_core.tenants.jwks import KeyReader
from cloud_core.tenants.settings import OidcSettings
from penstock.errors import Unavailable, missing_extra

try:
    import jwt
except ImportError as error:
    raise missing_extra("PyJWT", "oidc", "auth.oidc.issuer") from error

_MAX_TOKEN_CHARS = 16 * 1024
_RETRY_AFTER_S = 1.0
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("EdDSA",)}


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


class OidcIssuer:
    """Everything here runs on the event loop's thread.

    Attributes:
        reader: reads the provider's keys; run it.
    """

    def __init__(
        self,
        settings: OidcSettings,
        *,
        now: Callable[[], float],
        wall_clock: Callable[[], float],
        known: Mapping[str, Tenant],
    ) -> None:
        """
        Args:
            now: the event loop's clock.
            wall_clock: UNIX seconds.
            known: tenants of the settings by name; there are no others.
        """
        self._settings, self._wall_clock, self._known = settings, wall_clock, known
        self._rules = ClaimRules(
            tenant=settings.tenant,
            tenant_claim=settings.tenant_claim,
            role_claim=settings.role_claim,
            roles=settings.roles,
            default_role=settings.default_role,
        )
        self._keys: dict[str, jwt.PyJWK] = {}
        self._entries: list[dict[str, Any]] = []
        self._verified: dict[bytes, tuple[Tenant, float]] = {}
        self.reader = KeyReader(settings, self._take_keys, now)

    def know(self, known: Mapping[str, Tenant]) -> None:
        """Say which tenants the settings have from now on."""
        self._known = known
        self._verified.clear()

    def tenant_of(self, token: str, key: bytes) -> Tenant | None:
        """Return whose token this is; None for one that is not valid, as ``cloud_core.tenants.callers`` asks."""
        found = self._verified.get(key)
        if found is not None:
            if found[1] > self._wall_clock():
                return found[0]
            del self._verified[key]
        if len(token) > _MAX_TOKEN_CHARS or token.count(".") != 2:
            return None
        signer = self._signer(token)
        claims = None if signer is None else self._claims(token, signer)
        given = None if claims is None else tenant_and_role(claims, self._rules)
        if claims is None or given is None or given[0] not in self._known:
            return None
        tenant = replace(self._known[given[0]], role=given[1])
        if len(self._verified) >= self._settings.max_cached_tokens:
            self._verified.pop(next(iter(self._verified)))
        self._verified[key] = tenant, float(claims["exp"]) + self._settings.leeway_s
        return tenant

    def _signer(self, token: str) -> jwt.PyJWK | None:
        """Return the key that a token says it is signed with; None where it says nothing that could be right."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        if header.get("alg") not in self._settings.algorithms:
            return None
        name = header.get("kid", "")
        if not name and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        found = self._keys.get(name) if isinstance(name, str) else None
        if found is None and (self.reader.ask() or not self.reader.has_read):
            raise Unavailable(
                "the keys of the identity provider are being read; try again", retry_after_s=_RETRY_AFTER_S
            )
        return found

    def _claims(self, token: str, signer: jwt.PyJWK) -> dict[str, Any] | None:
        # a key verifies with algorithms of its own kind only, whatever the token says of itself
        families = _FAMILIES.get(signer.key_type or "", ())
        algorithms = [name for name in self._settings.algorithms if name.startswith(families)] if families else []
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=signer.key,
                algorithms=algorithms,
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            return None
        return claims

    def _take_keys(self, data: bytes) -> None:
        """
        Raises:
            Unavailable: it is no set of public keys.
        """
        try:
            entries = msgspec.json.decode(data, type=_KeySet).keys
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Unavailable(f"auth.oidc.jwks: what is there is no set of keys: {str(error)[:200]}") from error
        keys: dict[str, jwt.PyJWK] = {}
        for entry in entries:
            with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError):  # of a kind that nobody here knows
                key = jwt.PyJWK(entry)
                if key.key_type in _FAMILIES and key.public_key_use in (None, "sig") and "d" not in entry:
                    keys[key.key_id or ""] = key
        if not keys:
            raise Unavailable("auth.oidc.jwks: there is no public key in it that verifies signatures")
        if entries != self._entries:
            self._verified.clear()  # a key that is gone must not be trusted for longer
        self._keys, self._entries = keys, entries
