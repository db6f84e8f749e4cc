"""gRPC metadata as the headers that it stands for: what a server reads of a call, and what goes back in trailers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.wire.context import HEADERS, REQUEST_ID, RequestContext

Metadata = tuple[tuple[str, str], ...]
_NONE: Mapping[str, str] = {}


def headers_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    """Pick a request context's headers out of a call's metadata. Of one that is given twice the first counts."""
    found = _NONE
    for name, value in metadata or ():
        if name in HEADERS and name not in found and isinstance(value, str):
            found = {**found, name: value}
    return found


def echoed(context: RequestContext) -> Metadata:
    """Return the trailers of every answer to a request: its id, where it has one."""
    return ((REQUEST_ID, context.request_id),) if context.request_id else ()
