"""The HTTP server of every room: listens, reads bodies within limits, asks the table of routes, and stops.

A connection begins in the express lane, which knows plain inference requests only, and goes to aiohttp with the first
request that is anything else. The only module that serves with aiohttp. Decides nothing about admission.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, TooLarge
from penstock.http import listen
from penstock.http.express import Express
from penstock.http.routes import MethodNotAllowed, Reply, Request, Route, Table, UnknownEncoding, refusal
from penstock.policy.access import Action
from penstock.process.telemetry import log, refusal_of
from penstock.wire.context import AUTHORIZATION, REQUEST_ID, RequestContext, context_of
from penstock.wire.credentials import PeerCertificate, credential_of
from penstock.wire.server_tls import peer_certificate

T = TypeVar("T")

_BACKLOG = 1024
_EXPRESS_BODY_BYTES = 256 * 1024  # larger bodies are read by aiohttp, after admission and with back-pressure
_LINGER_S = 2.0  # reading what a refused client still sends, so that it gets to see the refusal
_FILE_CHUNK_BYTES = 1024 * 1024
_BROKEN = (web.RequestPayloadError, ClientPayloadError, HttpProcessingError)  # a length not kept, a wrong encoding
_HANDSHAKE_S = 10.0  # of TLS, before the connection is closed
_SOON_S = 1e-3  # aiohttp takes 0 for no limit, and a stream may go on without end
_PLAIN = ("", "identity")
_ENCODINGS = ("gzip", "deflate")  # what aiohttp decodes with nothing but the standard library
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How large and how slow a request may be.

    Attributes:
        max_body_bytes: of a body that is read whole.
        max_body_setting: the setting that says so, for refusals.
        max_header_bytes: of one header field.
        body_s: how long a body may take to arrive, also when its request names a later deadline.
        keepalive_s: a connection that is idle for longer is closed.
        write_s: how long a client may leave a part of an answer unread before it counts as gone.
    """

    max_body_bytes: int
    max_body_setting: str
    body_s: float
    max_header_bytes: int = 8190
    keepalive_s: float = 75.0
    write_s: float = 30.0


class Plain(Protocol[T]):
    """What answers plain inference requests in the express lane; see :class:`Express`."""

    def prepare(self, target: str, headers: Mapping[str, str], /) -> T | None: ...

    def answer(self, prepared: T, body: bytes, peer: PeerCertificate | None = None, /) -> Coroutine[Any, Any, bytes]:
        """Answer with a whole response. ``peer``: whose certificate the connection was made with."""
        ...


class HttpServer:
    """One table of routes on any number of sockets.

    Attributes:
        routes: its rows.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        plain: Plain[T],
        limits: HttpLimits,
        *,
        authenticate: Callable[[str, Action], str],
        takes_certificates: bool = False,
    ) -> None:
        """
        Args:
            authenticate: gives the name of who may do an action, by the ``Authorization`` header, or raises.
            takes_certificates: who sends no such header is known by the certificate that TLS has verified.
        """
        self.routes = tuple(routes)
        self._table, self._limits, self._authenticate = Table(self.routes), limits, authenticate
        self._loop = asyncio.get_running_loop()
        self._server = web.Server(
            self._handle,
            handler_cancellation=True,  # a client that goes away takes its work out of every queue
            access_log=None,
            keepalive_timeout=limits.keepalive_s,
            lingering_time=_LINGER_S,
            max_field_size=limits.max_header_bytes,
            max_line_size=limits.max_header_bytes,
        )
        self._lane: Express[Any] = Express(
            prefix=b"POST /v2/models/",
            prepare=plain.prepare,
            answer=plain.answer,
            fallback=self._server,
            max_body_bytes=min(_EXPRESS_BODY_BYTES, limits.max_body_bytes),
            keepalive_s=limits.keepalive_s,
            peer_of=_peer_of if takes_certificates else None,
        )
        self._takes_certificates = takes_certificates
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[tuple[Path, int]] = []  # path and inode: never remove what somebody else has put there
        self._sweep: asyncio.TimerHandle | None = None

    async def listen_tcp(self, host: str, port: int, *, setting: str, tls: ssl.SSLContext | None = None) -> str:
        """Listen on TCP (port 0: a free one), in the clear or with TLS; the bound ``host:port``.

        Raises:
            ConfigError: the port is in use, or the address cannot be bound.
        """
        bound = listen.bind_tcp(host, port, setting=setting)
        create: Callable[..., Any] = self._loop.create_server
        if tls is not None:
            create = partial(create, ssl=tls, ssl_handshake_timeout=_HANDSHAKE_S)
        return await self._listen(bound, create)

    async def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket (mode 0660), which goes when the server stops.

        Raises:
            ConfigError: somebody serves there. StorageError: the socket's folder cannot be written.
        """
        bound, inode = listen.bind_unix(path)
        self._sockets.append((path, inode))
        await self._listen(bound, self._loop.create_unix_server)

    async def stop(self, timeout_s: float) -> None:
        """Stop listening, give open responses ``timeout_s`` to finish, and close connections."""
        for listener in self._listeners:
            listener.close()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._lane.shutdown(timeout_s)
        self._server.pre_shutdown()  # idle keep-alive connections close at once
        await self._server.shutdown(max(timeout_s, _SOON_S))
        for path, inode in self._sockets:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()

    async def _listen(self, bound: socket.socket, create: Callable[..., Any]) -> str:
        self._listeners.append(await create(self._lane, sock=bound, backlog=_BACKLOG))
        if self._sweep is None:
            self._close_idle()
        return listen.address_of(bound) if bound.family != socket.AF_UNIX else ""

    def _close_idle(self) -> None:
        self._lane.close_idle(self._loop.time())
        self._sweep = self._loop.call_later(max(1.0, self._limits.keepalive_s / 5), self._close_idle)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request that was not plain; what goes wrong leaves as its row says errors."""
        headers = request.headers
        context = context_of(headers, "http").begin(self._loop.time())
        refuse: Callable[[PenstockError], Reply] = refusal
        try:
            path = request.rel_url.raw_path  # without a host, which the absolute form of a request has
            route, names = self._table.find(request.method, path)
            refuse = route.refuse
            if route.may is not None:
                tenant = self._authenticate(self._credential(request), route.may)
                context = msgspec.structs.replace(context, tenant=tenant)
            encoding = headers.get("Content-Encoding", "").strip().lower()
            if encoding not in _PLAIN and encoding not in _ENCODINGS:
                raise UnknownEncoding(encoding, _ENCODINGS)
            asked = Request(
                method=request.method, path=path, names=names, headers=headers, query=request.query, context=context,
                body=_Body(request, self._limits, self._loop),
            )  # fmt: skip
            reply = await route.handler(asked)
        except MethodNotAllowed as error:
            reply = error.route.refuse(error)
        except Exception as error:
            reply = refuse(refusal_of(_log, error, context))
        response = _response(reply)
        if context.request_id:
            response.headers[REQUEST_ID] = context.request_id
        if reply.parts is not None:
            await self._send(request, response, reply.parts, context)
        return response

    def _credential(self, request: web.BaseRequest) -> str:
        said = request.headers.get(AUTHORIZATION, "")
        if said or not self._takes_certificates or request.transport is None:
            return said
        return credential_of(said, _peer_of(request.transport))

    async def _send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        parts: AsyncGenerator[bytes, None],
        context: RequestContext,
    ) -> None:
        """Send an answer in parts. A client that goes away cancels this task, wherever it waits."""
        async with contextlib.aclosing(parts):
            try:
                await response.prepare(request)
                if request.method == "HEAD":
                    return
                async for part in parts:
                    async with asyncio.timeout(self._limits.write_s):
                        await response.write(part)
                return
            except ConnectionError:
                return  # gone between two parts; the task would be cancelled next
            except TimeoutError:
                log(_log, logging.INFO, "a client does not read its answer", request_id=context.request_id)
            except Exception as error:
                refusal_of(_log, error, context)  # for the log: a status has been sent
        if request.transport is not None:
            request.transport.abort()


def _peer_of(transport: asyncio.BaseTransport) -> PeerCertificate | None:
    return peer_certificate(transport.get_extra_info("peercert"))


class _Body:
    """A body that aiohttp receives."""

    def __init__(self, request: web.BaseRequest, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._request, self._limits, self._loop = request, limits, loop
        # of a compressed body it is not known what will come of it
        is_plain = request.headers.get("Content-Encoding", "identity").lower() == "identity"
        self.size_bytes = request.content_length if is_plain else None

    async def read(self, context: RequestContext) -> bytes:
        if (self.size_bytes or 0) > self._limits.max_body_bytes:
            raise self._too_large()
        if context.deadline <= self._loop.time():
            raise DeadlineExceeded("the deadline had passed on arrival; nothing was executed")
        try:
            async with asyncio.timeout_at(min(context.arrived_at + self._limits.body_s, context.deadline)):
                return await self._read()
        except TimeoutError:
            raise DeadlineExceeded("the request's body did not arrive in time; nothing was executed") from None

    async def chunks(self, size_bytes: int) -> AsyncIterator[bytes]:
        await self._invite()
        try:
            while chunk := await self._next(size_bytes):
                yield chunk
        except _BROKEN as error:
            raise InvalidInput(f"body: cannot be read: {error}", field="body") from error

    async def _next(self, size_bytes: int) -> bytes:
        """Wait for some bytes at most as long as a whole body may take: who sends none for that long has gone."""
        try:
            async with asyncio.timeout(self._limits.body_s):
                return await self._request.content.read(size_bytes)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing came of the request's body for {self._limits.body_s:g} s") from None

    async def _read(self) -> bytes:
        await self._invite()
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := await self._request.content.readany():
                size += len(chunk)
                if size > self._limits.max_body_bytes:
                    raise self._too_large()
                chunks.append(chunk)
        except _BROKEN as error:
            raise InvalidInput(f"body: cannot be read: {error}", field="body") from error
        return b"".join(chunks)

    async def _invite(self) -> None:
        """Answer ``Expect: 100-continue``: the client has been admitted and may send (RFC 9110, 10.1.1)."""
        if self._request.headers.get("Expect", "").lower() == "100-continue":
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request.writer.output_size = 0  # what was sent is not part of the response

    def _too_large(self) -> TooLarge:
        limit, setting = self._limits.max_body_bytes, self._limits.max_body_setting
        return TooLarge(f"the body is larger than the {limit} bytes allowed ({setting})", limit_bytes=limit)


def _response(reply: Reply) -> web.StreamResponse:
    if reply.parts is not None:
        return web.StreamResponse(status=reply.status, headers=reply.headers)
    if reply.file is None:
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
    # answers Range with 206 or 416 and sends the file without copying it through Python
    return web.FileResponse(reply.file, chunk_size=_FILE_CHUNK_BYTES, headers=reply.headers)
