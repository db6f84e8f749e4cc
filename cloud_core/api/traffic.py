"""What operators say about models over HTTP: ``/v2/_penstock/models``, and the repository calls of the inference
protocol, which load and unload. Decodes, calls ``cloud_core.traffic``, encodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypedDict, TypeVar

import msgspec

from cloud_core.api.rpc.fleet_codec import operator_of
from cloud_core.policy.rollouts.rollout import Operator
from cloud_core.policy.traffic import CanaryGate, Traffic
from cloud_core.serving.settings import version_policy
from cloud_core.traffic.service import TrafficService
from penstock.errors import InvalidInput
from penstock.http.operations import JSON, Operation, Shape
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action

PATH = "/v2/_penstock/models"
_MAX_BODY_BYTES = 64 * 1024
_IGNORED = frozenset({"unload_dependents"})  # Triton's; nothing depends on a model here

T = TypeVar("T")
_Do = Callable[[str, Any, Operator], Awaitable[Traffic]]


class _Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every command carries."""

    version: str = ""
    who: str = ""
    reason: str = ""


class _Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: str
    percent: float


class _Split(_Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    arms: tuple[_Arm, ...]
    sticky: str = ""
    steps: tuple[float, ...] = ()
    gate: CanaryGate = CanaryGate()


class _Shadow(_Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    share: float = 0.1


class _Pin(_Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    is_pinned: bool = True


class _Keep(_Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    versions: str = ""


class _Repository(msgspec.Struct, frozen=True, kw_only=True):
    parameters: dict[str, bool | int | float | str] = {}


class _Listed(TypedDict):
    models: list[dict[str, Any]]


def _says(summary: str, kind: type[_Said] | None = None, answers: Shape = dict[str, Any]) -> Operation:
    """Describe a row of operators' commands."""
    asks = {} if kind is None else {JSON: kind}
    needs_body = kind is not None and kind is _Split
    return Operation(summary=summary, group="traffic", asks=asks, needs_body=needs_body, answers={JSON: answers})


_LOAD = Operation(
    summary="Load a model, as Triton's clients ask for it",
    group="models",
    asks={JSON: _Repository},
    needs_body=False,
    answers={JSON: dict[str, Any]},
)
_UNLOAD = replace(_LOAD, summary="Unload a model, as Triton's clients ask for it")


class TrafficApi:
    """The rows of operators' commands about models."""

    def __init__(self, service: TrafficService) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """List the rows. They go before those of the registry, which takes the rest of ``/v2``."""
        service = self._service
        commands: list[tuple[str, str, type[_Said], _Do]] = [
            ("split", "Divide the requests of a model that name no version", _Split, self._split),
            ("advance", "Take the next step of a split", _Said, lambda model, said, by: service.advance(model, by)),
            ("end", "End a split", _Said, lambda model, said, by: service.end(model, by)),
            ("shadow", "Copy answered requests to a version; to none, where none is named", _Shadow, self._shadow),
            ("pin", "Keep a version in memory, or let it go", _Pin, self._pin),
            ("versions", "Say which versions of a model are served", _Keep, self._keep),
            ("load", "Load a version, or what was unloaded", _Said, self._load),
            ("unload", "Take a version out of memory, or all of a model", _Said, self._unload),
        ]
        may = Action.OPERATE
        return [
            Route("GET", PATH, self._all, may, says=_says("Show what was said of every model", answers=_Listed)),
            Route("GET", f"{PATH}/{{model}}", self._one, may, says=_says("Show what was said of a model")),
            *(
                Route("POST", f"{PATH}/{{model}}/{name}", self._command(kind, do), may, says=_says(what, kind))
                for name, what, kind, do in commands
            ),
            *(
                Route("POST", f"/v2/repository/models/{{model}}/{name}", self._repository(do), may, says=says)
                for name, do, says in (("load", service.load, _LOAD), ("unload", service.unload, _UNLOAD))
            ),
        ]

    async def _all(self, request: Request) -> Reply:
        return json_reply({"models": [self._document(model) for model in self._service.models()]})

    async def _one(self, request: Request) -> Reply:
        return json_reply(self._document(request.names["model"]))

    def _command(self, kind: type[_Said], do: _Do) -> Callable[[Request], Awaitable[Reply]]:
        async def handle(request: Request) -> Reply:
            said = await _body(request, kind)
            model = request.names["model"]
            await do(model, said, operator_of(said.who, said.reason, request.context.tenant))
            return json_reply(self._document(model))

        return handle

    def _repository(
        self, do: Callable[[str, str, Operator], Awaitable[Traffic]]
    ) -> Callable[[Request], Awaitable[Reply]]:
        async def handle(request: Request) -> Reply:
            given = (await _body(request, _Repository)).parameters
            version, by = repository_call(given, request.context.tenant)
            await do(request.names["model"], version, by)
            return json_reply({})

        return handle

    async def _split(self, model: str, said: _Split, by: Operator) -> Traffic:
        arms = [(arm.version, arm.percent) for arm in said.arms]
        return await self._service.split(model, arms, by, sticky=said.sticky, steps=said.steps, gate=said.gate)

    async def _shadow(self, model: str, said: _Shadow, by: Operator) -> Traffic:
        return await self._service.shadow(model, said.version, said.share, by)

    async def _pin(self, model: str, said: _Pin, by: Operator) -> Traffic:
        return await self._service.pin(model, said.version, by, is_pinned=said.is_pinned)

    async def _load(self, model: str, said: _Said, by: Operator) -> Traffic:
        return await self._service.load(model, said.version, by)

    async def _unload(self, model: str, said: _Said, by: Operator) -> Traffic:
        return await self._service.unload(model, said.version, by)

    async def _keep(self, model: str, said: _Keep, by: Operator) -> Traffic:
        return await self._service.keep(model, version_policy(said.versions) if said.versions else None, by)

    def _document(self, model: str) -> dict[str, Any]:
        said, service = self._service.said(model), self._service
        default, states = service.looked_at(model)
        return {
            "model": model,
            "default": default.tag or default.digest,
            "versions": str(service.versions_of(model)),
            "states": states,
            "split": said.split,
            "verdicts": service.verdicts.get(model, {}),
            "shadow": said.shadow,
            "pins": [service.name_of(model, digest) for digest in said.pins],
            "unloaded": [service.name_of(model, digest) for digest in said.unloaded],
            "arms": service.counts(model),
            "notes": said.notes,
        }


def repository_call(given: dict[str, bool | int | float | str], tenant: str) -> tuple[str, Operator]:
    """Read the parameters of a repository call: the version ("" for none), and who asks and why.

    Args:
        tenant: of the credential; "" where the core has none.

    Raises:
        InvalidInput: one that does something in other servers, and nothing here.
    """
    unknown = given.keys() - _IGNORED - {"version", "who", "reason"}
    if unknown:
        raise InvalidInput(
            f"parameters.{min(unknown)[:80]}: not taken here; a version is pushed ('penstock artifact push'), never "
            "sent with a call",
            field="parameters",
        )
    version, who, reason = (given.get(name, "") for name in ("version", "who", "reason"))
    if not all(isinstance(one, str) for one in (version, who, reason)):
        raise InvalidInput("parameters: version, who and reason are texts", field="parameters")
    return str(version), operator_of(str(who) or "a repository call", str(reason), tenant)


async def _body(request: Request, kind: type[T]) -> T:
    body = await request.body.read(request.context)
    if len(body) > _MAX_BODY_BYTES:
        raise InvalidInput(f"body: {len(body)} bytes, at most {_MAX_BODY_BYTES}", field="body")
    try:
        return msgspec.json.decode(body if body.strip() else b"{}", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"body: not valid: {error}", field="body") from None
