"""The agent's HTTP interface: Open Inference Protocol under ``/v2``, ``/metrics`` and ``/status``.

Turns requests into calls of the pipeline and answers into bytes; decides nothing. One function routes by splitting the
path: the paths are few and known, and this runs for every request. Sockets are ``edge_agent.api.server``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import hdrs, web

from edge_agent.api.metrics import CONTENT_TYPE, Metrics
from edge_agent.policy import admission
from edge_agent.serving.dataplane import Pipeline
from penstock.errors import Internal, InvalidInput, NotFound, PenstockError, TooLarge
from penstock.http import express
from penstock.process import telemetry
from penstock.rest import codec
from penstock.rest.status import headers_of, http_status

REQUEST_ID = "x-request-id"
TIMEOUT_MS = "x-request-timeout-ms"

_HEADER_LENGTH = codec.HEADER_LENGTH.lower()
_MAX_REQUEST_ID_CHARS = 128
_JSON_LINES = b"Content-Type: " + codec.JSON.encode()
_BINARY_LINES = b"Content-Type: " + codec.BINARY.encode() + b"\r\n" + codec.HEADER_LENGTH.encode() + b": %d"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InferHead:
    """What the path and the headers of an inference request say."""

    model: str
    version: str
    header_length: int | None
    timeout_s: float | None
    request_id: str


@dataclass(frozen=True, slots=True)
class _Path:
    """A model's path: ``what`` is "" for metadata, ``ready`` or ``infer``."""

    model: str
    version: str
    what: str


class Routes:
    """Answers requests of any number of connections. ``idle`` is set while no inference request is being answered."""

    def __init__(self, pipeline: Pipeline, status: Callable[[], Mapping[str, Any]]) -> None:
        """``status`` gives the document of ``GET /status``."""
        self.metrics = Metrics(pipeline)
        self.idle = asyncio.Event()
        self.idle.set()
        self._pipeline = pipeline
        self._hosting = pipeline.hosting
        self._load = pipeline.load
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._server = msgspec.json.encode(
            {"name": "penstock-agent", "version": version_of("penstock"), "extensions": ["binary_tensor_data"]}
        )

    def prepare(self, target: str, headers: Mapping[str, str]) -> InferHead | None:
        """For the express lane: the head of an inference request, or None for whatever else it is."""
        path = target.partition("?")[0]
        try:
            model_path = _model_path(path.split("/")[3:], path)
            return _infer_head(model_path, headers) if model_path.what == "infer" else None
        except PenstockError:
            return None  # refused in full words by ``handle``

    async def answer(self, head: InferHead, body: bytes) -> bytes:
        """For the express lane: a whole HTTP response."""
        arrived_at = self._loop.time()
        status = 499  # unless somebody is left to be answered
        try:
            refusal = self._pipeline.refuse_on_arrival(len(body))
            if refusal is not None:
                raise refusal
            encoded = await self._infer(head, body, arrived_at, len(body))
            status = 200
            return express.response(200, _infer_lines(encoded.header_length, head.request_id), encoded.body)
        except Exception as error:
            refused = _as_ours(error)
            status = http_status(refused)
            headers = _refusal_headers(refused, head.request_id)
            return express.response(status, express.header_lines(headers), codec.encode_error(refused))
        finally:
            self.metrics.observe(status, self._loop.time() - arrived_at)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; every failure has the protocol's error body and a status of the one table."""
        try:
            response = await self._respond(request)
        except Exception as error:
            response = _refusal(_as_ours(error))
        request_id = request.headers.get(REQUEST_ID)
        if request_id is not None:
            response.headers[REQUEST_ID] = request_id[:_MAX_REQUEST_ID_CHARS]
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        path = request.raw_path.partition("?")[0]
        parts = path.split("/")
        # "", "v2", "models", name, ...
        if len(parts) > 3 and parts[1] == "v2" and parts[2] == "models":
            return await self._model(request, _model_path(parts[3:], path))
        match parts[1:]:
            case ["v2"] | ["v2", ""]:
                _allow(request, "GET")
                return _json(self._server)
            case ["v2", "health", "live"]:
                _allow(request, "GET")
                return web.Response()
            case ["v2", "health", "ready"]:
                _allow(request, "GET")
                return web.Response(status=200 if self._is_ready() else 503)
            case ["v2", "repository", "index"]:
                _allow(request, "POST", "GET")
                return _json(msgspec.json.encode(self._index()))
            case ["metrics"]:
                _allow(request, "GET")
                return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})
            case ["status"]:
                _allow(request, "GET")
                return _json(msgspec.json.encode(self._status()))
        raise NotFound(f"no such path {path[:200]!r}; the inference protocol is under /v2")

    async def _model(self, request: web.BaseRequest, path: _Path) -> web.Response:
        match path.what:
            case "infer":
                _allow(request, "POST")
                return await self._measured(request, path)
            case "ready":
                _allow(request, "GET")
                self._hosting.get(path.model, path.version)
                return web.Response()
            case _:
                _allow(request, "GET")
                return _json(codec.encode_metadata(self._hosting.get(path.model, path.version).metadata))

    async def _measured(self, request: web.BaseRequest, path: _Path) -> web.Response:
        arrived_at = self._loop.time()
        status = 499
        try:
            head = _infer_head(path, request.headers)
            length = request.content_length
            refusal = self._pipeline.refuse_on_arrival(length)
            if refusal is not None:
                raise refusal
            reserved = admission.reserved_bytes(self._pipeline.limits, length)
            encoded = await self._infer(head, request, arrived_at, reserved)
            status = 200
            return web.Response(body=encoded.body, headers=encoded.headers)
        except Exception as error:
            refused = _as_ours(error)
            status = http_status(refused)
            raise refused from error
        finally:
            self.metrics.observe(status, self._loop.time() - arrived_at)

    async def _infer(
        self, head: InferHead, source: bytes | web.BaseRequest, arrived_at: float, reserved_bytes: int
    ) -> codec.EncodedBody:
        load = self._load
        load.requests += 1
        load.body_bytes += reserved_bytes
        self.idle.clear()
        try:
            body = source if isinstance(source, bytes) else await _read(source, self._pipeline.limits.max_body_bytes)
            decoded = codec.decode_request(
                body, header_length=head.header_length, model=head.model, version=head.version
            )
            answer = await self._pipeline.infer(decoded.request, arrived_at=arrived_at, timeout_s=head.timeout_s)
            return codec.encode_response(answer, decoded)
        finally:
            load.requests -= 1
            load.body_bytes -= reserved_bytes
            if not load.requests:
                self.idle.set()

    def _is_ready(self) -> bool:
        return bool(self._hosting.models()) and not self._load.is_draining

    def _index(self) -> list[dict[str, str]]:
        return [
            {"name": hosted.plan.model, "version": hosted.plan.version, "state": "READY", "reason": hosted.mode_why}
            for hosted in self._hosting.hosted()
        ]


class MethodNotAllowed(InvalidInput):
    """The path exists, the method does not fit it; answered with 405."""

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"method {method} does not fit this path; use {' or '.join(allowed)}")
        self.allowed = allowed


def _allow(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
        raise MethodNotAllowed(request.method, methods)


def _model_path(parts: list[str], path: str) -> _Path:
    """``name[/versions/version][/ready|/infer]``, percent-encoding undone."""
    model, *rest = parts
    version = ""
    if len(rest) > 1 and rest[0] == "versions":
        version = rest[1]
        rest = rest[2:]
    what = rest[0] if rest else ""
    if len(rest) > 1 or what not in ("", "ready", "infer"):
        raise NotFound(f"no such path {path[:200]!r}; a model has its metadata, /ready and /infer")
    if "%" in path:
        model, version = unquote(model), unquote(version)
    return _Path(model, version, what)


def _infer_head(path: _Path, headers: Mapping[str, str]) -> InferHead:
    return InferHead(
        path.model,
        path.version,
        _header_length(headers.get(_HEADER_LENGTH)),
        _timeout_s(headers.get(TIMEOUT_MS)),
        headers.get(REQUEST_ID, "")[:_MAX_REQUEST_ID_CHARS],
    )


async def _read(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole body; refused as soon as it is over the limit, whatever length was announced."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(
            f"the body is larger than {limit_bytes} bytes (limits.max_body_bytes)", limit_bytes=limit_bytes
        ) from None
    except web.RequestPayloadError as error:  # a length that was not kept, or a broken encoding
        raise InvalidInput(f"body: {error}", field="body") from None


def _header_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidInput(f"{codec.HEADER_LENGTH}: {text[:64]!r} is not a length", field=codec.HEADER_LENGTH)
    return int(text)


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        millis = float(text)
    except ValueError:
        millis = float("nan")
    if not millis >= 0:  # NaN too; 0 and "already over" are told apart by the pipeline
        raise InvalidInput(f"{TIMEOUT_MS}: {text[:64]!r} is not a number of milliseconds", field=TIMEOUT_MS)
    return millis / 1e3


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": codec.JSON})


def _infer_lines(header_length: int | None, request_id: str) -> bytes:
    lines = _JSON_LINES if header_length is None else _BINARY_LINES % header_length
    return lines + f"\r\n{REQUEST_ID}: {request_id}".encode("ascii") if request_id else lines


def _refusal_headers(error: PenstockError, request_id: str) -> dict[str, str]:
    headers = {**headers_of(error), "Content-Type": codec.JSON}
    return {**headers, REQUEST_ID: request_id} if request_id else headers


def _refusal(error: PenstockError) -> web.Response:
    status, headers = http_status(error), _refusal_headers(error, "")
    if isinstance(error, MethodNotAllowed):
        status = 405
        headers[hdrs.ALLOW] = ", ".join(error.allowed)
    return web.Response(status=status, body=codec.encode_error(error), headers=headers)


def _as_ours(error: Exception) -> PenstockError:
    if isinstance(error, PenstockError):
        telemetry.log(_LOG, logging.DEBUG, "refused", code=error.code, why=error.message)
        return error
    telemetry.log(_LOG, logging.ERROR, "a request failed in a way that should not happen", exc_info=error)
    return Internal(f"internal error: {type(error).__name__}")
