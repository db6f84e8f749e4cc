"""The express lane of an HTTP/1.1 server: the one kind of request that must be cheap, without a full HTTP stack.

A connection begins in the lane. While its requests are plain (one method and path prefix, a ``Content-Length``, nothing
that changes how a message is framed), they are split off, answered and written here. The first thing that is not plain
hands the connection, with every byte of it that was not answered, to a full server's protocol (aiohttp's), for good: so
nothing about HTTP is decided here that the full server would decide differently, and a head is either understood
completely or not at all. Owns framing, order and back-pressure; knows no model and no error.
Source: RFC 9112 (message framing), RFC 9110.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from email.utils import formatdate
from typing import Any, Generic, TypeVar, cast

from penstock.process.telemetry import log
from penstock.wire.credentials import PeerCertificate

T = TypeVar("T")

MAX_HEAD_BYTES = 8192
_MAX_HEADERS = 64  # aiohttp has a limit of its own, of 128, and an answer for what is beyond it
_MAX_CACHED_HEADS = 256
_MAX_CACHED_HEAD_BYTES = 2048
_END = b"\r\n\r\n"

# a header line as RFC 9110 wants it; anything else is for the full server to judge
_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?[ \t]*")
_TARGET = re.compile(r"/[\x21-\x7e]*")
# these change how a message is framed, or ask for something that the lane does not do
_UNUSUAL = frozenset(
    {"transfer-encoding", "content-encoding", "expect", "upgrade", "trailer", "te", "connection", "proxy-connection"}
)
_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict",
    413: "Content Too Large", 422: "Unprocessable Content", 429: "Too Many Requests", 499: "Client Closed Request",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
    507: "Insufficient Storage",
}  # fmt: skip

_LOG = logging.getLogger(__name__)


class Express(Generic[T]):
    """The lane of one server: a protocol factory for ``create_server`` and ``create_unix_server``."""

    def __init__(
        self,
        *,
        prefix: bytes,
        prepare: Callable[[str, Mapping[str, str]], T | None],
        answer: Callable[..., Coroutine[Any, Any, bytes]],
        fallback: Callable[[], asyncio.Protocol],
        max_body_bytes: int,
        keepalive_s: float,
        peer_of: Callable[[asyncio.BaseTransport], PeerCertificate | None] | None = None,
    ) -> None:
        """
        Args:
            prefix: method and beginning of the target of requests that may take the lane: ``b"POST /v2/models/"``.
            prepare: target and headers (lower-case names) to whatever ``answer`` needs of them; None hands the
                connection over. Its results are kept for heads that come again byte for byte.
            answer: the whole response (see :func:`response`) for a request's body; must not raise. On a connection
                whose client has shown a certificate that goes with it.
            fallback: makes the full server's protocol for one connection.
            max_body_bytes: larger bodies are handed over, to be read with care.
            keepalive_s: connections idle for longer are closed by :meth:`close_idle`.
            peer_of: whose certificate was verified; None where clients show none.
        """
        self.prefix = prefix
        self.prepare = prepare
        self.answer = answer
        self.fallback = fallback
        self.max_body_bytes = max_body_bytes
        self.keepalive_s = keepalive_s
        self.peer_of = peer_of
        self.is_closing = False
        self.connections: set[_Connection[T]] = set()
        self.heads: dict[bytes, tuple[T, int]] = {}

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return _Connection(self)

    def close_idle(self, now: float) -> None:
        """Close connections without a request for ``keepalive_s``; call it every few seconds. ``now``: loop time."""
        for connection in list(self.connections):
            connection.close_if_idle(now - self.keepalive_s)

    async def shutdown(self, timeout_s: float) -> None:
        """Close idle connections at once and busy ones after their answer, or after ``timeout_s``."""
        self.is_closing = True
        tasks = [task for c in list(self.connections) if (task := c.close_when_idle()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for connection in list(self.connections):
            connection.abort()

    def understand(self, head: bytes) -> tuple[T, int] | None:
        """Return what ``prepare`` made of a head (no empty line), and its body's length; None when not plain."""
        known = self.heads.get(head)
        if known is not None:
            return known
        parsed = _parse(head)
        if parsed is None:
            return None
        target, headers, length = parsed
        prepared = self.prepare(target, headers) if length <= self.max_body_bytes else None
        if prepared is None:
            return None
        if len(head) <= _MAX_CACHED_HEAD_BYTES:
            if len(self.heads) >= _MAX_CACHED_HEADS:
                self.heads.clear()
            self.heads[head] = (prepared, length)
        return prepared, length


class _Connection(asyncio.Protocol, Generic[T]):
    """One connection in the lane. At most one request at a time is being answered; later ones wait in the buffer."""

    def __init__(self, lane: Express[T]) -> None:
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._peer: tuple[PeerCertificate, ...] = ()  # none or one
        self._buffer = b""
        self._need = 0  # bytes without which the buffer holds no complete request
        self._task: asyncio.Task[None] | None = None
        self._is_paused = False  # the client does not read its answers
        self._is_reading = True
        self._idle_since = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        if self._lane.peer_of is not None and (peer := self._lane.peer_of(transport)) is not None:
            self._peer = (peer,)
        self._lane.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane.connections.discard(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()  # the client went away: its rows leave every queue

    def eof_received(self) -> bool:
        return False  # close: a client that went away and one that only half-closed look the same from here

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._advance()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._task is None and not self._is_paused:
            if len(self._buffer) >= self._need:
                self._advance()
        elif self._is_reading and len(self._buffer) > self._lane.max_body_bytes + MAX_HEAD_BYTES:
            self._is_reading = False
            if self._transport is not None:
                self._transport.pause_reading()

    def close_if_idle(self, since: float) -> None:
        if self._task is None and self._idle_since < since and self._transport is not None:
            self._transport.close()

    def close_when_idle(self) -> asyncio.Task[None] | None:
        if self._task is None and self._transport is not None:
            self._transport.close()
        return self._task

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _advance(self) -> None:
        """Begin the next request if the buffer holds it; hand over if it is not plain. Harmless at any time."""
        buffer, lane = self._buffer, self._lane
        if not buffer or self._task is not None or self._is_paused or self._transport is None:
            return
        size = len(lane.prefix)
        if buffer[:size] != lane.prefix[: len(buffer)]:
            self._hand_over()
            return
        end = buffer.find(_END, 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(buffer) >= MAX_HEAD_BYTES:
                self._hand_over()
            return
        understood = lane.understand(buffer[:end])
        if understood is None:
            self._hand_over()
            return
        prepared, length = understood
        start = end + 4
        stop = start + length
        if len(buffer) < stop:
            self._need = stop
            return
        self._need = 0
        body = buffer[start:stop]
        self._buffer = buffer[stop:]
        self._task = self._loop.create_task(self._answer(prepared, body))

    async def _answer(self, prepared: T, body: bytes) -> None:
        try:
            data = await self._lane.answer(prepared, body, *self._peer)
        except Exception as error:
            log(_LOG, logging.ERROR, "an answer failed in a way that should not happen", exc_info=error)
            self.abort()
            return
        finally:
            self._task = None
        transport = self._transport
        if transport is None:
            return
        transport.write(data)
        if self._lane.is_closing:
            transport.close()
            return
        self._idle_since = self._loop.time()
        if not self._is_reading:
            self._is_reading = True
            transport.resume_reading()
        if self._buffer:
            self._advance()

    def _hand_over(self) -> None:
        """Hand the connection to the full server, beginning with what is buffered."""
        transport, data = self._transport, self._buffer
        assert transport is not None
        self._lane.connections.discard(self)
        self._transport = None
        self._buffer = b""
        protocol = self._lane.fallback()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if not self._is_reading:
            transport.resume_reading()
        protocol.data_received(data)


class _Clock:
    """The ``Date`` header, formatted once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = f"\r\nDate: {formatdate(second, usegmt=True)}\r\n\r\n".encode()
        return self._line


_CLOCK = _Clock()


def response(status: int, headers: bytes, body: bytes) -> bytes:
    """Make a whole response. ``headers`` are lines joined by CRLF, none after the last; framing and date are added."""
    if status == 200:
        return b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: %d%b%b" % (headers, len(body), _CLOCK.line(), body)
    line = f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n".encode()
    return b"%b%b\r\nContent-Length: %d%b%b" % (line, headers, len(body), _CLOCK.line(), body)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as :func:`response` takes them; values must be printable ASCII."""
    return "\r\n".join(f"{name}: {value}" for name, value in headers.items()).encode("ascii")


def _parse(head: bytes) -> tuple[str, dict[str, str], int] | None:
    """Target, headers and body length of a plain head, or None."""
    try:
        first, *lines = head.decode("ascii").split("\r\n")
    except UnicodeDecodeError:
        return None
    _, target, version, *rest = [*first.split(" "), "", ""]
    if rest != ["", ""] or version != "HTTP/1.1" or not _TARGET.fullmatch(target):
        return None
    if len(lines) > _MAX_HEADERS:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        name = match[1].lower()
        if name in headers or (name in _UNUSUAL and (name, (match[2] or "").lower()) != ("connection", "keep-alive")):
            return None
        headers[name] = match[2] or ""
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) <= 12) or "host" not in headers:
        return None
    return target, headers, int(length)
