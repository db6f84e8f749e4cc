"""The Open Inference Protocol over HTTP, ``/metrics``, and the way to the OCI endpoints: dispatch, decode, encode.

Inference requests that are plain come through the express lane (:meth:`HttpApi.prepare`, :meth:`HttpApi.answer`),
everything else through aiohttp (:meth:`HttpApi.handle`); both end in the same lines. Decides nothing about admission;
see ``serving.dataplane``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

import msgspec
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from cloud_core.api.metrics import Metrics
from cloud_core.api.oci import OciApi
from cloud_core.policy.admission import Action
from cloud_core.serving.dataplane import EXTENSIONS, SERVER_NAME, DataPlane, Ticket
from cloud_core.settings import HttpSettings
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, NotFound, PenstockError, TooLarge, Unavailable
from penstock.http import express
from penstock.process.telemetry import log, parse_traceparent, request_id
from penstock.rest import codec
from penstock.rest.status import headers_of, http_status

_log = logging.getLogger(__name__)

_AUTHORIZATION = "authorization"
_HEADER_LENGTH = codec.HEADER_LENGTH.lower()
_REQUEST_ID = "x-request-id"
_TIMEOUT_MS = "x-request-timeout-ms"
_JSON_HEADERS = {"Content-Type": codec.JSON}
_JSON_LINES = b"Content-Type: " + codec.JSON.encode()
_BINARY_LINES = b"Content-Type: " + codec.BINARY.encode() + b"\r\n" + codec.HEADER_LENGTH.encode() + b": %d"
_REQUEST_ID_LINE = b"%b\r\n" + _REQUEST_ID.encode() + b": %b"

_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_INFER = re.compile(_MODEL + r"/infer")
_FORMS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (_INFER, "POST", "infer"),
    (re.compile(_MODEL + r"/ready"), "GET", "model_ready"),
    (re.compile(_MODEL), "GET", "model_metadata"),
    (re.compile(r"/v2/?"), "GET", "server"),
    (re.compile(r"/v2/health/live"), "GET", "live"),
    (re.compile(r"/v2/health/ready"), "GET", "ready"),
    (re.compile(r"/v2/repository/index"), "POST", "index"),
    (re.compile(r"/metrics"), "GET", "metrics"),
)
_OPEN = frozenset({"live", "ready"})  # probes carry no credential

_Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.StreamResponse]]


class _IndexRequest(msgspec.Struct):
    ready: bool = False


@dataclass(frozen=True, slots=True)
class InferHead:
    """What path and headers of an inference request say. ``request_id`` is "" where none was given."""

    model: str
    version: str
    authorization: str
    header_length: int | None
    timeout_s: float | None
    request_id: str
    traceparent: str


class HttpApi:
    """Answers every HTTP request of the core."""

    def __init__(
        self, plane: DataPlane, oci: OciApi, metrics: Metrics, settings: HttpSettings, *, version: str, body_s: float
    ) -> None:
        """``body_s``: how long a body may take to arrive when its request names no timeout."""
        self._plane, self._oci, self._metrics, self._settings = plane, oci, metrics, settings
        self._body_s = body_s
        self._server_metadata = msgspec.json.encode({"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS})
        self._handlers: Mapping[str, _Handler] = {
            "infer": self._read_and_infer,
            "model_ready": self._model_ready,
            "model_metadata": self._model_metadata,
            "server": self._server,
            "live": self._live,
            "ready": self._ready,
            "index": self._index,
            "metrics": self._scrape,
        }

    # -- the express lane --------------------------------------------------------------------------------------------

    def prepare(self, target: str, headers: Mapping[str, str]) -> InferHead | None:
        """The head of an inference request; None for whatever else it is, or when it is refused (by ``handle``)."""
        match = _INFER.fullmatch(target)
        try:
            return None if match is None else _head(*_names(match), headers)
        except PenstockError:
            return None

    async def answer(self, head: InferHead, body: bytes) -> bytes:
        """A whole response; never raises."""
        plane = self._plane
        try:
            tenant = plane.authenticate(head.authorization)
            with plane.admit(tenant, head.model, head.version) as ticket:
                encoded = await self._infer(ticket, head, body)
        except Exception as error:
            refused = self._as_ours(error, head.request_id, head.traceparent)
            lines = express.header_lines(headers_of(refused) | _JSON_HEADERS)
            return express.response(self._status(refused), _with_id(lines, head), codec.encode_error(refused))
        length = encoded.header_length
        lines = _JSON_LINES if length is None else _BINARY_LINES % length
        return express.response(200, _with_id(lines, head) if head.request_id else lines, encoded.body)

    # -- everything else ---------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, errors included: what goes wrong leaves as a status, hints and ``{"error": ...}``."""
        headers = request.headers
        given = headers.get(_REQUEST_ID)
        try:
            response = await self._dispatch(request)
        except Exception as error:
            refused = self._as_ours(error, given or "", headers.get("traceparent", ""))
            body = codec.encode_error(refused)
            response = web.Response(
                body=body, status=self._status(refused), headers=headers_of(refused) | _JSON_HEADERS
            )
        if given is not None:
            response.headers[_REQUEST_ID] = request_id(given)
        return response

    async def _infer(self, ticket: Ticket, head: InferHead, body: bytes) -> codec.EncodedBody:
        decoded = codec.decode_request(body, header_length=head.header_length, model=head.model, version=head.version)
        return codec.encode_response(await self._plane.infer(ticket, decoded.request, head.timeout_s), decoded)

    async def _read_and_infer(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        plane = self._plane
        tenant = plane.authenticate(request.headers.get(_AUTHORIZATION, ""))
        with plane.admit(tenant, model, version) as ticket:
            head = _head(model, version, request.headers)
            encoded = await self._infer(ticket, head, await self._read(request, head.timeout_s))
        return web.Response(body=encoded.body, headers=encoded.headers)

    async def _read(self, request: web.BaseRequest, timeout_s: float | None) -> bytes:
        limit = self._settings.max_body_bytes
        announced = request.content_length
        if announced is not None and announced > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self._body_s if timeout_s is None else min(timeout_s, self._body_s)):
                await _invite(request)
                return await _read_bounded(request, limit)
        except TimeoutError:
            raise DeadlineExceeded("the request's body did not arrive in time; nothing was executed") from None
        except (web.RequestPayloadError, ClientPayloadError, HttpProcessingError) as error:
            raise InvalidInput(f"body: cannot be read: {error}", field="body") from error

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        for pattern, method, name in _FORMS:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if request.method != method and not (request.method == "HEAD" and method == "GET"):
                return _method_not_allowed(request.method, method)
            model, version = _names(match)
            if name not in _OPEN and name != "infer":
                self._plane.authenticate(request.headers.get(_AUTHORIZATION, ""))
            return await self._handlers[name](request, model, version)
        return await self._registry_or_404(request)

    async def _registry_or_404(self, request: web.BaseRequest) -> web.StreamResponse:
        action = Action.PULL if request.method in ("GET", "HEAD") else Action.PUSH
        self._plane.authenticate(request.headers.get(_AUTHORIZATION, ""), action)
        if request.method not in ("GET", "HEAD"):
            if self._plane.is_draining:
                raise Unavailable("the server is shutting down", retry_after_s=1.0)
            await _invite(request)
        response = await self._oci.handle(request)
        if response is None:
            raise NotFound(f"nothing is served at {request.path[:200]!r}; the protocol starts at /v2")
        return response

    async def _server(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        # the OCI distribution protocol asks at the same address whether this is a registry
        headers = {"Docker-Distribution-Api-Version": "registry/2.0", **_JSON_HEADERS}
        return web.Response(body=self._server_metadata, headers=headers)

    async def _live(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        return _health("live", self._plane.is_live)

    async def _ready(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        return _health("ready", self._plane.is_ready)

    async def _model_ready(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        state = self._plane.model_state(model, version)
        if state.state != "READY":
            raise Unavailable(f"model {model!r} version {state.version!r} is not ready: {state.reason}")
        return _json({"name": model, "version": state.version, "ready": True})

    async def _model_metadata(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        return web.Response(body=codec.encode_metadata(self._plane.metadata(model, version)), headers=_JSON_HEADERS)

    async def _index(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        body = await self._read(request, None)
        try:
            only_ready = msgspec.json.decode(body, type=_IndexRequest).ready if body.strip() else False
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidInput(f"body: not valid: {error}", field="body") from None
        found = self._plane.index()
        return _json(
            [
                {"name": state.model, "version": state.version, "state": state.state, "reason": state.reason}
                for state in found
                if state.state == "READY" or not only_ready
            ]
        )

    async def _scrape(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        body, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _status(self, error: PenstockError) -> int:
        return http_status(error, queue_full=self._settings.queue_full_status)

    def _as_ours(self, error: Exception, given_id: str, traceparent: str) -> PenstockError:
        """What the client is told. A defect is logged here and leaves without its traceback."""
        if isinstance(error, PenstockError) and not isinstance(error, Internal):
            return error
        trace = parse_traceparent(traceparent)
        trace_id = trace.trace_id if trace else ""
        log(_log, logging.ERROR, "request failed", exc_info=error, request_id=given_id, trace_id=trace_id)
        return error if isinstance(error, Internal) else Internal("the server failed; its log says why")


def _names(match: re.Match[str]) -> tuple[str, str]:
    parts = match.groupdict()
    return unquote(parts.get("model") or ""), unquote(parts.get("version") or "")


def _head(model: str, version: str, headers: Mapping[str, str]) -> InferHead:
    length, timeout = headers.get(_HEADER_LENGTH), headers.get(_TIMEOUT_MS)
    given = headers.get(_REQUEST_ID)
    return InferHead(
        model,
        version,
        headers.get(_AUTHORIZATION, ""),
        None if length is None else _header_length(length),
        None if timeout is None else _milliseconds(timeout),
        "" if given is None else request_id(given),
        headers.get("traceparent", ""),
    )


def _with_id(lines: bytes, head: InferHead) -> bytes:
    return _REQUEST_ID_LINE % (lines, head.request_id.encode()) if head.request_id else lines


async def _invite(request: web.BaseRequest) -> None:
    """Answer ``Expect: 100-continue``: the client has been admitted and may send its body (RFC 9110, 10.1.1)."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # what was sent is not part of the response


async def _read_bounded(request: web.BaseRequest, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await request.content.readany():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the {limit} bytes allowed (http.max_body_bytes)", limit_bytes=limit)


def _header_length(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput(f"{codec.HEADER_LENGTH}: {text[:40]!r} is not a length", field=codec.HEADER_LENGTH)
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value:  # also what "nan" itself says
        raise InvalidInput(f"{_TIMEOUT_MS}: {text[:40]!r} is not a number of milliseconds", field=_TIMEOUT_MS)
    return value / 1000


def _health(name: str, is_well: bool) -> web.Response:
    return _json({name: is_well}, status=200 if is_well else 503)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, headers=_JSON_HEADERS)


def _method_not_allowed(method: str, allowed: str) -> web.Response:
    allow = f"{allowed}, HEAD" if allowed == "GET" else allowed
    body = msgspec.json.encode({"error": f"{method[:20]} is not allowed here; use {allowed}"})
    return web.Response(body=body, status=405, headers={"Allow": allow, **_JSON_HEADERS})
