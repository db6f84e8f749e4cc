"""``/v2/_penstock/keys``, for ``penstock core key``: keys are made, listed and revoked while the core runs."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import msgspec

from cloud_core.api.rpc.fleet_codec import operator_of
from cloud_core.fleet.operator_actions import OperatorActions
from cloud_core.policy.admission import Role
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.state.api_keys import KeyRow
from cloud_core.tenants.keys import ApiKeys, Wanted, Work
from penstock.errors import Conflict, InvalidInput, TooLarge
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action
from penstock.wire.device_ids import check_device_id

PATH = "/v2/_penstock/keys"
_MAX_BODY_BYTES = 16 * 1024
_SHOWS = Operation(summary="List the keys of callers", group="tenants", answers={JSON: dict[str, Any]})
_MAKES = Operation(
    summary="Make a key, which is shown this once",
    group="tenants",
    asks={JSON: dict[str, Any]},
    answers={JSON: dict[str, Any]},
    status=201,
)
_REVOKES = Operation(
    summary="Revoke a key",
    group="tenants",
    query={"who": "Who does it, for the record.", "reason": "Why, for the record."},
    answers={JSON: dict[str, Any]},
)
_NOT_KEPT = {"Cache-Control": "no-store"}


class _Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that is asked for."""

    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    role: Role = "client"
    device_id: str = ""
    note: Annotated[str, msgspec.Meta(max_length=255)] = ""
    days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] | None = None
    who: str = ""
    reason: str = ""


def key_routes(keys: ApiKeys | None, actions: OperatorActions) -> list[Route]:
    """List the rows for keys; without any, as where everybody may call, they say so."""

    def held() -> ApiKeys:
        if keys is None:
            raise Conflict(
                "this core lets everybody in, so that a key would say nothing; set auth.required = true, or have "
                "[[tenants]], and start it again"
            )
        return keys

    async def show(request: Request) -> Reply:
        return json_reply({"keys": [document(row) for row in held().rows()]})

    async def create(request: Request) -> Reply:
        wanted, by = read_wanted(await _body(request), request.context.tenant)
        row, key = await held().create(wanted, partial(_act, actions, by))
        reply = json_reply({**document(row), "key": key}, status=201)
        return Reply(status=201, body=reply.body, headers={**reply.headers, **_NOT_KEPT})

    async def revoke(request: Request) -> Reply:
        by = operator_of(request.query.get("who", ""), request.query.get("reason", ""), request.context.tenant)
        row = await held().revoke(request.names["id"], partial(_act, actions, by))
        return json_reply(document(row))

    return [
        Route("GET", PATH, show, Action.OPERATE, says=_SHOWS),
        Route("POST", PATH, create, Action.OPERATE, says=_MAKES),
        Route("DELETE", f"{PATH}/{{id}}", revoke, Action.OPERATE, says=_REVOKES),
    ]


def document(row: KeyRow) -> dict[str, Any]:
    """Say what may be known of a key: neither itself nor its hash."""
    return {
        "id": row.id,
        "tenant": row.tenant,
        "role": row.role,
        "device_id": row.device_id,
        "note": row.note,
        "created_at": _time(row.created_at),
        "created_by": row.created_by,
        "expires_at": _time(row.expires_at),
        "last_used_at": _time(row.last_used_at),
    }


async def _act(actions: OperatorActions, by: Operator, command: str, subject: str, work: Work) -> None:
    await actions.act(command, subject, by, work)


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.body.chunks(_MAX_BODY_BYTES):
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise TooLarge(f"a key takes at most {_MAX_BODY_BYTES} bytes to ask for", limit_bytes=_MAX_BODY_BYTES)
    return bytes(data)


def read_wanted(body: bytes, tenant: str = "") -> tuple[Wanted, Operator]:
    """Read which key is wanted, and who wants it.

    Args:
        tenant: that the credential of the request belongs to.

    Raises:
        InvalidInput: what is wrong with it.
    """
    try:
        asked = msgspec.json.decode(body, type=_Asked)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"body: {error}", field="body") from None
    if not asked.tenant.isprintable() or not asked.note.isprintable():
        raise InvalidInput("tenant and note are text on one line", field="tenant")
    if asked.device_id:
        check_device_id(asked.device_id)
    by = operator_of(asked.who, asked.reason, tenant)
    wanted = Wanted(
        tenant=asked.tenant, role=asked.role, device_id=asked.device_id, note=asked.note, days=asked.days, by=by.who
    )
    return wanted, by


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
