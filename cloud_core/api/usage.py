"""``GET /v2/_penstock/usage``, for ``penstock core usage``: what tenants used of which models."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from cloud_core.tenants.usage import Usage
from penstock.errors import Conflict, InvalidInput
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action

PATH = "/v2/_penstock/usage"
_EPOCH = date(1970, 1, 1)
_BY = ("day", "all")
_SAYS = Operation(
    summary="Say what tenants used of which models",
    group="tenants",
    query={
        "since": "The first day (UTC), as 2026-11-30; 30 days ago without it.",
        "until": "The last day; today without it.",
        "tenant": "One tenant; all without it.",
        "by": "day: a row for each day; all: one for all of them together.",
    },
    answers={JSON: dict[str, Any]},
)


def usage_route(usage: Usage | None) -> Route:
    """Make the row; where everybody may call nothing is counted, and it says so."""

    async def show(request: Request) -> Reply:
        if usage is None:
            raise Conflict("this core lets everybody in, so that nobody's usage is counted; have [[tenants]] or keys")
        today = datetime.now(UTC).date()
        since = _day(request, "since", today - timedelta(days=30))
        until = _day(request, "until", today)
        by = request.query.get("by", "day")
        if by not in _BY:
            raise InvalidInput(f"by={by[:20]!r} is neither of {', '.join(_BY)}", field="by")
        found = await usage.find(
            since=(since - _EPOCH).days,
            until=(until - _EPOCH).days,
            tenant=request.query.get("tenant", ""),
            is_by_day=by == "day",
        )
        rows = [
            {
                **({} if row.day is None else {"day": str(_EPOCH + timedelta(days=row.day))}),
                "tenant": row.tenant,
                "model": row.model,
                **{name: getattr(row.used, name) for name in type(row.used).__slots__},
            }
            for row in found
        ]
        return json_reply({"since": str(since), "until": str(until), "usage": rows})

    return Route("GET", PATH, show, Action.OPERATE, says=_SAYS)


def _day(request: Request, name: str, otherwise: date) -> date:
    text = request.query.get(name, "")
    if not text:
        return otherwise
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{name}={text[:40]!r} is no day such as 2026-11-30", field=name) from None
