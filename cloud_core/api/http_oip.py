"""The Open Inference Protocol over HTTP, ``/metrics``, and the way to the OCI endpoints: dispatch, decode, encode.

Dispatches by itself instead of by aiohttp's router: one dictionary look-up for an inference, where the router and its
application would cost as much as all of our own checks. Decides nothing about admission; see ``serving.dataplane``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

import msgspec
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import istr

from cloud_core.api.metrics import Metrics
from cloud_core.api.oci import OciApi
from cloud_core.serving.dataplane import EXTENSIONS, SERVER_NAME, DataPlane
from cloud_core.settings import HttpSettings
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, NotFound, PenstockError, TooLarge, Unavailable
from penstock.rest import codec
from penstock.rest.status import headers_of, http_status
from penstock.telemetry import log, parse_traceparent, request_id

_log = logging.getLogger(__name__)

_AUTHORIZATION = istr("Authorization")
_HEADER_LENGTH = istr(codec.HEADER_LENGTH)
_REQUEST_ID = istr("x-request-id")
_TIMEOUT_MS = istr("x-request-timeout-ms")
_JSON_HEADERS = {"Content-Type": codec.JSON}
_MAX_TARGETS = 1024

_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_FORMS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(_MODEL + r"/infer"), "POST", "infer"),
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


class HttpApi:
    """Answers every HTTP request of the core."""

    def __init__(
        self, plane: DataPlane, oci: OciApi, metrics: Metrics, settings: HttpSettings, *, version: str, body_s: float
    ) -> None:
        """``body_s``: how long a body may take to arrive when its request names no timeout."""
        self._plane, self._oci, self._metrics, self._settings = plane, oci, metrics, settings
        self._body_s = body_s
        self._infer_targets: dict[str, tuple[str, str]] = {}
        self._server_metadata = msgspec.json.encode(
            {"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS}
        )
        self._handlers: Mapping[str, _Handler] = {
            "model_ready": self._model_ready,
            "model_metadata": self._model_metadata,
            "server": self._server,
            "live": self._live,
            "ready": self._ready,
            "index": self._index,
            "metrics": self._scrape,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, errors included: what goes wrong leaves as a status, hints and ``{"error": ...}``."""
        try:
            target = self._infer_targets.get(request.raw_path)
            if target is not None and request.method == "POST":
                response: web.StreamResponse = await self._infer(request, *target)
            else:
                response = await self._dispatch(request)
        except PenstockError as error:
            if isinstance(error, Internal):
                self._log_failure(request, error)
            response = self._refusal(error)
        except Exception as error:  # nothing of ours may leave as a traceback, and nothing kills the connection
            self._log_failure(request, error)
            response = self._refusal(Internal("the server failed; its log says why"))
        given = request.headers.get(_REQUEST_ID)
        if given is not None:
            response.headers[_REQUEST_ID] = request_id(given)
        return response

    # -- inference ---------------------------------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, model: str, version: str) -> web.Response:
        headers = request.headers
        plane = self._plane
        tenant = plane.authenticate(headers.get(_AUTHORIZATION, ""))
        with plane.admit(tenant, model, version) as ticket:
            timeout = headers.get(_TIMEOUT_MS)
            timeout_s = None if timeout is None else _milliseconds(timeout)
            length = headers.get(_HEADER_LENGTH)
            body = await self._read(request, timeout_s)
            decoded = codec.decode_request(
                body, header_length=None if length is None else _header_length(length), model=model, version=version
            )
            encoded = codec.encode_response(await plane.infer(ticket, decoded.request, timeout_s), decoded)
        return web.Response(body=encoded.body, headers=encoded.headers)

    async def _read(self, request: web.BaseRequest, timeout_s: float | None) -> bytes:
        limit = self._settings.max_body_bytes
        content = request.content
        if content.is_eof():  # the usual case: all of it came with the headers
            body = content.read_nowait(-1)
            if len(body) > limit:
                raise _too_large(limit)
            return body
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

    # -- everything else ---------------------------------------------------------------------------------------------

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        for pattern, method, name in _FORMS:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if request.method != method and not (request.method == "HEAD" and method == "GET"):
                return _method_not_allowed(request.method, method)
            parts = match.groupdict()
            model, version = unquote(parts.get("model") or ""), unquote(parts.get("version") or "")
            if name == "infer":
                if len(self._infer_targets) >= _MAX_TARGETS:
                    self._infer_targets.clear()
                self._infer_targets[request.raw_path] = (model, version)
                return await self._infer(request, model, version)
            if name not in _OPEN:
                self._plane.authenticate(request.headers.get(_AUTHORIZATION, ""))
            return await self._handlers[name](request, model, version)
        return await self._registry_or_404(request)

    async def _registry_or_404(self, request: web.BaseRequest) -> web.StreamResponse:
        self._plane.authenticate(request.headers.get(_AUTHORIZATION, ""))
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

    def _refusal(self, error: PenstockError) -> web.Response:
        status = http_status(error, queue_full=self._settings.queue_full_status)
        return web.Response(body=codec.encode_error(error), status=status, headers=headers_of(error) | _JSON_HEADERS)

    def _log_failure(self, request: web.BaseRequest, error: Exception) -> None:
        trace = parse_traceparent(request.headers.get("traceparent", ""))
        log(
            _log,
            logging.ERROR,
            "request failed",
            exc_info=error,
            path=request.path,
            request_id=request.headers.get(_REQUEST_ID, ""),
            trace_id=trace.trace_id if trace else "",
        )


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
        raise InvalidInput(f"{_TIMEOUT_MS}: {text[:40]!r} is not a number of milliseconds", field=str(_TIMEOUT_MS))
    return value / 1000


def _health(name: str, is_well: bool) -> web.Response:
    return _json({name: is_well}, status=200 if is_well else 503)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, headers=_JSON_HEADERS)


def _method_not_allowed(method: str, allowed: str) -> web.Response:
    allow = f"{allowed}, HEAD" if allowed == "GET" else allowed
    body = msgspec.json.encode({"error": f"{method[:20]} is not allowed here; use {allowed}"})
    return web.Response(body=body, status=405, headers={"Allow": allow, **_JSON_HEADERS})
