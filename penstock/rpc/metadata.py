"""gRPC metadata as the headers that it stands for: what a server reads of a call, and what goes back in trailers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.wire.context import AUTHORIZATION, HEADERS, REQUEST_ID, RequestContext
from penstock.wire.credentials import PeerCertificate

Metadata = tuple[tuple[str, str], ...]
_NONE: Mapping[str, str] = {}


def headers_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    """Pick a request context's headers out of a call's metadata. Of one that is given twice the first counts."""
    found = _NONE
    for name, value in metadata or ():
        if name in HEADERS and name not in found and isinstance(value, str):
            found = {**found, name: value}
    return found


def callers_headers(call: Any, *, takes_certificates: bool) -> Mapping[str, str]:
    """Pick a context's headers out of a call; who sends no credential is known by a certificate.

    Args:
        takes_certificates: False does not look at it.
    """
    found = headers_in(call.invocation_metadata())
    if not takes_certificates or AUTHORIZATION in found or (peer := peer_of(call.auth_context())) is None:
        return found
    return {**found, AUTHORIZATION: peer}


def peer_of(found: Mapping[str, Iterable[bytes]]) -> PeerCertificate | None:
    """Make a credential of what gRPC says of a verified certificate; None without one."""
    if "x509_pem_cert" not in found:
        return None
    kinds = {"DNS": "peer_dns", "URI": "peer_uri", "EMAIL": "peer_email", "CN": "x509_common_name"}
    return PeerCertificate.of(
        f"{kind}:{value.decode('utf-8', 'replace')}" for kind, key in kinds.items() for value in found.get(key, ())
    )


def echoed(context: RequestContext) -> Metadata:
    """Return the trailers of every answer to a request: its id, where it has one."""
    return ((REQUEST_ID, context.request_id),) if context.request_id else ()
