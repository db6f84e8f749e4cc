"""Settings of tenants: who may call, by which credential, and how much. Reads nothing by itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from cloud_core.policy.admission import Role

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_Rate = Annotated[float, msgspec.Meta(ge=0.0)]
_Limit = Annotated[int, msgspec.Meta(ge=0)]


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that an identity provider signs (OpenID Connect, JWT), taken beside others. Needs the extra ``oidc``.

    Attributes:
        issuer: the ``iss`` that tokens must have; "" takes none.
        audience: the ``aud`` that tokens must have.
        jwks: where the provider's public keys are: an https URL, http on this machine, or a file.
        algorithms: that a signature may have; those that sign with a secret that both sides hold are not among them.
        tenant: the tenant of every such token; "" for what ``tenant_claim`` says.
        tenant_claim: the claim that names the tenant, one of ``[[tenants]]``; dots lead into objects.
        role_claim: the claim with roles, groups or scopes, a text or a list; "" for none.
        roles: what values of ``role_claim`` stand for, such as ``{"ml-admins" = "admin"}``; the mightiest one counts.
        default_role: of tokens without such a value; "" refuses them.
        leeway_s: by which clocks may differ.
        refresh_s: public keys are read again so often.
        min_refresh_s: and at most so often where a token names a key that is not known.
        max_cached_tokens: that are not verified again until they expire, or the provider's keys change.
    """

    issuer: str = ""
    audience: str = ""
    jwks: str = ""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256")
    tenant: str = ""
    tenant_claim: str = "tenant"
    role_claim: str = ""
    roles: dict[str, Role] = msgspec.field(default_factory=dict)
    default_role: Role | Literal[""] = "client"
    leeway_s: Annotated[float, msgspec.Meta(ge=0.0, le=600.0)] = 30.0
    refresh_s: Annotated[float, msgspec.Meta(ge=1.0, le=86_400.0)] = 300.0
    min_refresh_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600.0)] = 10.0
    max_cached_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000

    def __post_init__(self) -> None:
        if self.issuer and not (self.audience and self.jwks and self.algorithms):
            raise ValueError("issuer: tokens are taken where audience, jwks and algorithms are given, too")
        host = re.match(r"http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?/", self.jwks)
        if self.jwks.startswith("http://") and host is None:
            raise ValueError("jwks: keys that come over http can be anybody's; use https, or a file")


class AuthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How callers prove who they are, beside the tokens of ``[[tenants]]``.

    Attributes:
        required: everybody needs a credential, also where there are no ``[[tenants]]``: a key that ``penstock core key
            create`` made. Where there are tenants or an issuer it is so anyway.
        max_keys: keys that may exist at a time.
        oidc: tokens of an identity provider.
    """

    required: bool = False
    max_keys: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    oidc: OidcSettings = OidcSettings()


class UsageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long it is known what tenants used (``penstock core usage``).

    Attributes:
        keep_days: days that are kept.
        max_pairs: pairs of tenant and model that are counted apart on a day; what more there is counts for the model
            ``(others)`` of its tenant, as do metrics with it.
    """

    keep_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 400
    max_pairs: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000


class TenantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[tenants]]`` entry: who may call, and how much.

    Attributes:
        name: what logs call it.
        token: the bearer token that its requests carry, of at least 8 characters; "" for a tenant that is known by its
            keys, its certificates or its identity provider only.
        certificates: patterns of names in certificates of clients (``tls.client_ca``): ``DNS:kiosk-*.example``,
            ``URI:spiffe://shop/*``, ``EMAIL:ops@example.org``, ``CN:kiosk-7``. Who shows one needs no token; of
            several tenants that fit, the first one counts.
        role: ``client`` may ask models; ``device`` may also pull artifacts and report; ``observer`` may read metrics
            and nothing else; ``admin`` may do everything.
        device_id: the only device that it may report for; "" for any device, so that the devices of a fleet may share
            a token.
        models: patterns of the names of models that it may ask for and see, such as ``["digits", "shop-*"]``; a refusal
            says nothing about others.
        rate_rows_per_s: rows it may send; 0 is unlimited.
        burst_rows: at once; 0 means one second's worth.
        rate_requests_per_s: requests it may send; 0 is unlimited.
        burst_requests: requests at once; 0 means one second's worth, and one at least.
        rate_bytes_per_s: bytes of bodies it may send, counted before they are read; 0 is unlimited.
        burst_bytes: bytes at once, and the largest body; 0 means one second's worth.
        max_inflight_requests: requests that are admitted and not yet answered; 0 is unlimited.
        requests_per_day: requests of a day, which begins at midnight UTC; 0 is unlimited. What was spent outlives a
            restart of the core (``serving.spending_flush_s``).
        rows_per_day: rows of a day; 0 is unlimited.
        best_priority: requests that ask for a better priority get this one; 1 is the highest, 2 ranks as the default.
        share: its part of a model's time while others wait for it, too, relative to theirs. Shares come before
            priorities, which order the requests of one tenant.
        tokens_per_minute: of language models, prompts and answers together, as many at once; 0 is unlimited.
        tokens_per_day: tokens of prompts and answers for a day, which begins at midnight UTC; what was spent outlives
            a restart of the core (``serving.spending_flush_s``).
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    token: Annotated[str, msgspec.Meta(max_length=512)] = ""
    certificates: tuple[Annotated[str, msgspec.Meta(pattern=r"^(DNS|URI|EMAIL|CN):.{1,500}$")], ...] = ()
    role: Role = "admin"
    device_id: str = ""
    models: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=255)], ...] = ("*",)
    rate_rows_per_s: _Rate = 0.0
    burst_rows: _Rate = 0.0
    rate_requests_per_s: _Rate = 0.0
    burst_requests: _Limit = 0
    rate_bytes_per_s: _Rate = 0.0
    burst_bytes: _Limit = 0
    max_inflight_requests: _Limit = 0
    requests_per_day: _Limit = 0
    rows_per_day: _Limit = 0
    best_priority: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    share: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)] = 1.0
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0
