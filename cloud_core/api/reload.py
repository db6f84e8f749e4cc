"""``POST /v2/_penstock/reload``, for ``penstock core reload``: the settings are read again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from cloud_core.policy.reloading import Difference
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action

PATH = "/v2/_penstock/reload"
_SAYS = Operation(
    summary="Read the settings again, and take on what can be",
    group="server",
    answers={JSON: dict[str, Any]},
)


def reload_route(reload: Callable[[], Awaitable[tuple[Difference, ...]]]) -> Route:
    """Make the row; it answers with each setting that changed, and whether it is in force now."""

    async def act(_: Request) -> Reply:
        return json_reply({"changes": [asdict(one) for one in await reload()]})

    return Route("POST", PATH, act, Action.OPERATE, says=_SAYS)
