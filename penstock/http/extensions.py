"""Triton's extensions that change a server, over HTTP: shared memory, trace and log settings. Rows, decoding, encoding.

Source: Triton, "Shared-Memory Extension", "Trace Extension", "Logging Extension".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar

import msgspec

from penstock.errors import InvalidInput
from penstock.http.operations import JSON, Operation
from penstock.http.routes import Reply, Request, Route, json_reply
from penstock.policy.access import Action
from penstock.process.live_settings import LiveSettings
from penstock.process.shared_regions import Region, SharedMemorySettings, SharedRegions

NO_CUDA = "CUDA shared memory is not served; register system shared memory, or send the bytes"
_T = TypeVar("_T")
_Size = Annotated[int, msgspec.Meta(ge=0)]


class RegisterBody(TypedDict):
    """Which part of which object of /dev/shm is registered."""

    key: str
    byte_size: _Size
    offset: NotRequired[_Size]


class RegionDocument(TypedDict):
    """A region that is registered."""

    name: str
    key: str
    offset: int
    byte_size: int


def _memory(summary: str, **more: Any) -> Operation:
    return Operation(summary=summary, group="shared memory", **more)


_STATUS = _memory("List the regions of shared memory that are registered", answers={JSON: list[RegionDocument]})
_REGISTER = _memory("Register a region of shared memory", asks={JSON: RegisterBody})
_UNREGISTER = _memory("Forget a region of shared memory, or all of them")
_CUDA_STATUS = _memory("List no regions: CUDA shared memory is not served", answers={JSON: list[RegionDocument]})
_CUDA_REGISTER = _memory("Refuse: CUDA shared memory is not served", asks={JSON: dict[str, Any]})
_LOG = Operation(summary="Tell how much is logged", group="settings", answers={JSON: dict[str, bool | int | str]})
_SET_LOG = Operation(
    summary="Log more, or less",
    group="settings",
    asks={JSON: dict[str, bool | int | str]},
    answers={JSON: dict[str, bool | int | str]},
)
_TRACE = Operation(
    summary="Tell which requests are traced", group="settings", answers={JSON: dict[str, str | list[str]]}
)
_SET_TRACE = Operation(
    summary="Trace more requests, or fewer",
    group="settings",
    asks={JSON: dict[str, str | int | list[str] | None]},
    answers={JSON: dict[str, str | list[str]]},
)


class Extensions:
    """Answers these requests for one server.

    Attributes:
        regions: of memory that is shared with clients.
        live: what can be changed.
    """

    def __init__(self, regions: SharedRegions | None = None, live: LiveSettings | None = None) -> None:
        """``regions``: None shares no memory. ``live``: None traces nothing."""
        self.regions = regions or SharedRegions(SharedMemorySettings())
        self.live = live or LiveSettings()

    @property
    def names(self) -> tuple[str, ...]:
        """List what of this works, as a server's metadata call it."""
        works = {
            "system_shared_memory": self.regions.is_served,
            "trace": self.live.can_trace,
            "logging": True,
        }
        return tuple(name for name, is_there in works.items() if is_there)

    def routes(self) -> list[Route]:
        """List the rows."""
        ask, change = Action.INFER, Action.OPERATE
        system, cuda, one = "/v2/systemsharedmemory", "/v2/cudasharedmemory", "/region/{region}"
        which = ("", one)
        return [
            *(Route("GET", f"{system}{each}/status", self._status, ask, says=_STATUS) for each in which),
            Route("POST", f"{system}{one}/register", self._register, ask, says=_REGISTER),
            *(Route("POST", f"{system}{each}/unregister", self._unregister, ask, says=_UNREGISTER) for each in which),
            *(Route("GET", f"{cuda}{each}/status", self._nothing, ask, says=_CUDA_STATUS) for each in which),
            Route("POST", f"{cuda}{one}/register", self._refuse, ask, says=_CUDA_REGISTER),
            *(Route("POST", f"{cuda}{each}/unregister", self._done, ask, says=_UNREGISTER) for each in which),
            Route("GET", "/v2/logging", self._log, ask, says=_LOG),
            Route("POST", "/v2/logging", self._set_log, change, says=_SET_LOG),
            Route("GET", "/v2/trace/setting", self._trace, ask, says=_TRACE),
            Route("POST", "/v2/trace/setting", self._set_trace, change, says=_SET_TRACE),
            Route("GET", "/v2/models/{model}/trace/setting", self._trace, ask, says=_TRACE),
        ]

    # -- shared memory -----------------------------------------------------------------------------------------------

    async def _status(self, request: Request) -> Reply:
        return json_reply([_region_document(one) for one in self.regions.status(request.names.get("region", ""))])

    async def _register(self, request: Request) -> Reply:
        asked = await _read(request, RegisterBody)
        self.regions.register(request.names["region"], asked["key"], asked.get("offset", 0), asked["byte_size"])
        return Reply()

    async def _unregister(self, request: Request) -> Reply:
        self.regions.unregister(request.names.get("region", ""))
        return Reply()

    async def _nothing(self, request: Request) -> Reply:
        return json_reply([])

    async def _done(self, request: Request) -> Reply:
        return Reply()

    async def _refuse(self, request: Request) -> Reply:
        raise InvalidInput(NO_CUDA, field="raw_handle")

    # -- settings ----------------------------------------------------------------------------------------------------

    async def _log(self, request: Request) -> Reply:
        return json_reply(self.live.log_settings())

    async def _set_log(self, request: Request) -> Reply:
        self.live.set_log(await _read(request, dict[str, Any]))
        return json_reply(self.live.log_settings())

    async def _trace(self, request: Request) -> Reply:
        return json_reply(_trace_document(self.live))

    async def _set_trace(self, request: Request) -> Reply:
        given = await _read(request, dict[str, str | int | list[str] | None])
        self.live.set_trace({name: _values(value) for name, value in given.items()})
        return json_reply(_trace_document(self.live))


def _region_document(region: Region) -> RegionDocument:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.size_bytes}


def _trace_document(live: LiveSettings) -> dict[str, str | list[str]]:
    """Write the settings as Triton does: a list of levels, and one text for each other setting."""
    return {
        name: values if name == "trace_level" else "".join(values) for name, values in live.trace_settings().items()
    }


def _values(value: str | int | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | int) else list(value)


async def _read(request: Request, kind: type[_T]) -> _T:
    body = await request.body.read(request.context)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"body: not valid: {error}", field="body") from None
