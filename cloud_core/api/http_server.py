"""The HTTP listener: binds, serves :class:`HttpApi` on keep-alive connections, stops.

A connection begins in the express lane, which knows plain inference requests only, and goes to aiohttp with the first
request that is anything else.
"""

from __future__ import annotations

import asyncio
import errno
import socket

from aiohttp import web

from cloud_core.api.http_oip import HttpApi, InferHead
from cloud_core.settings import HttpSettings
from penstock.errors import ConfigError
from penstock.http.express import Express

_BACKLOG = 1024
_EXPRESS_BODY_BYTES = 256 * 1024  # larger bodies are read by aiohttp, after admission and with back-pressure
_LINGER_S = 2.0  # reading what a refused client still sends, so that it gets to see the refusal


class HttpServer:
    """One listening socket. ``port`` is the one that was bound."""

    def __init__(self, lane: Express[InferHead], server: web.Server, listener: asyncio.Server, port: int) -> None:
        self._lane, self._server, self._listener, self.port = lane, server, listener, port
        self._sweep: asyncio.TimerHandle | None = None
        self._close_idle()

    @classmethod
    async def start(cls, api: HttpApi, settings: HttpSettings) -> HttpServer:
        """
        Raises:
            ConfigError: the port is in use, or the address cannot be bound.
        """
        sock = _bound(settings.host, settings.port)
        server = web.Server(
            api.handle,
            handler_cancellation=True,  # a client that goes away takes its work out of the queue
            access_log=None,
            keepalive_timeout=settings.keepalive_s,
            lingering_time=_LINGER_S,
            max_field_size=settings.max_header_bytes,
            max_line_size=settings.max_header_bytes,
        )
        lane = Express(
            prefix=b"POST /v2/models/",
            prepare=api.prepare,
            answer=api.answer,
            fallback=server,
            max_body_bytes=min(_EXPRESS_BODY_BYTES, settings.max_body_bytes),
            keepalive_s=settings.keepalive_s,
        )
        listener = await asyncio.get_running_loop().create_server(lane, sock=sock, backlog=_BACKLOG)
        return cls(lane, server, listener, sock.getsockname()[1])

    async def stop(self, timeout_s: float) -> None:
        """Stop listening, give open responses ``timeout_s`` to finish, and close connections."""
        self._listener.close()
        if self._sweep is not None:
            self._sweep.cancel()
        await self._lane.shutdown(timeout_s)
        self._server.pre_shutdown()  # idle keep-alive connections close at once
        await self._server.shutdown(timeout_s)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._lane.close_idle(loop.time())
        self._sweep = loop.call_later(max(1.0, self._lane.keepalive_s / 5), self._close_idle)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _cannot_bind(host, port, error) from error
    sock.setblocking(False)
    return sock


def _cannot_bind(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"http: port {port} on {host} is in use; stop what uses it, or choose another --http-port")
    return ConfigError(f"http: cannot listen on {host}:{port}: {error.strerror or error}")
