"""``POST /v2/_penstock/registry/gc``, for ``penstock core gc``: an extension, named as OCI distribution names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloud_core.policy.garbage import KINDS, Stored
from cloud_core.registry.registry import Registry
from penstock.errors import InvalidInput
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action

PATH = "/v2/_penstock/registry/gc"
MAX_LISTED = 1000
_SAYS = Operation(
    summary="Remove what nothing in the registry refers to",
    group="registry",
    query={"dry_run": "true: list it and remove nothing."},
    answers={JSON: dict[str, Any]},
)


def gc_route(registry: Registry) -> Route:
    """Make the row that collects garbage, or with ``?dry_run=true`` only lists it."""

    async def collect(request: Request) -> Reply:
        found = await registry.garbage.collect(is_dry_run=_flag(request, "dry_run"))
        now = registry.now().timestamp()
        settings = registry.settings
        document = {
            "is_dry_run": found.is_dry_run,
            "removed": _totals(found.removed),
            "young": _totals(found.young),
            "limits": {"orphan_ttl_s": settings.orphan_ttl_s, "upload_ttl_s": settings.upload_ttl_s},
            "items": [
                {"kind": one.kind, "name": one.name, "size_bytes": one.size_bytes, "age_s": now - one.touched_at}
                for one in found.removed[:MAX_LISTED]
            ],
            "failed": [{"name": one.name, "reason": one.reason} for one in found.failed[:MAX_LISTED]],
        }
        return json_reply(document)

    return Route("POST", PATH, collect, Action.PUSH, says=_SAYS)


def _totals(found: Sequence[Stored]) -> dict[str, Any]:
    totals: dict[str, Any] = {kind: {"count": 0, "size_bytes": 0} for kind in KINDS}
    for one in found:
        totals[one.kind]["count"] += 1
        totals[one.kind]["size_bytes"] += one.size_bytes
    return totals


def _flag(request: Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false"):
        raise InvalidInput(f"{name}={text[:20]!r} is neither true nor false", field=name)
    return text == "true"
