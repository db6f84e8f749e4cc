"""Settings of tenants: who may call, by which credential, and how much. Reads nothing by itself."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_core.policy.admission import Role

_Rate = Annotated[float, msgspec.Meta(ge=0.0)]
_Limit = Annotated[int, msgspec.Meta(ge=0)]


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
    tokens_per_minute: _Limit = 0
    tokens_per_day: _Limit = 0
