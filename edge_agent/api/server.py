"""The agent's sockets: a unix socket (mode 0660) and, when asked for, TCP. Same routes on both.

Owns listening, body limits, keep-alive and draining. TCP has no authentication yet, so it is off by default.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket as sockets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from edge_agent.api.routes import InferHead, Routes
from edge_agent.serving.dataplane import Pipeline
from penstock.errors import ConfigError, StorageError
from penstock.http.express import Express

SOCKET_MODE = 0o660
_BACKLOG = 1024
_KEEPALIVE_S = 75.0
_EXPRESS_BODY_BYTES = 256 * 1024  # larger bodies are read by aiohttp, with back-pressure and accounting
_CLOSE_S = 1.0
_LINGER_S = 2.0  # reading what a refused client still sends, so that it gets to see the refusal


class ApiServer:
    """Serves until stopped."""

    def __init__(self, pipeline: Pipeline, status: Callable[[], Mapping[str, Any]]) -> None:
        """``status`` gives the document of ``GET /status``."""
        self.routes = Routes(pipeline, status)
        self.tcp_address = ""
        self._pipeline = pipeline
        self._server: web.Server | None = None
        self._express: Express[InferHead] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._listeners: list[asyncio.Server] = []
        self._socket: tuple[Path, int] | None = None  # path and inode: never remove what another agent has put there

    async def start(self, *, socket: Path | None = None, tcp: str = "") -> None:
        """Listen. ``tcp`` is ``host:port`` ("" for none, port 0 for a free one; see ``tcp_address``).

        Raises:
            ConfigError: the port or the socket is in use, or ``tcp`` is not an address. StorageError: the socket's
            folder cannot be written.
        """
        loop = asyncio.get_running_loop()
        limit_bytes = self._pipeline.limits.max_body_bytes

        def request_factory(
            message: RawRequestMessage,
            payload: StreamReader,
            protocol: web.RequestHandler,
            writer: AbstractStreamWriter,
            task: asyncio.Task[None],
        ) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limit_bytes)

        self._server = web.Server(
            self.routes.handle,
            request_factory=request_factory,
            handler_cancellation=True,  # a client that goes away takes its rows out of every queue
            access_log=None,
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
        )
        self._express = Express(
            prefix=b"POST /v2/models/",
            prepare=self.routes.prepare,
            answer=self.routes.answer,
            fallback=self._server,
            max_body_bytes=min(_EXPRESS_BODY_BYTES, limit_bytes),
            keepalive_s=_KEEPALIVE_S,
        )
        self._close_idle()
        if socket is not None:
            listener, inode = _bind_unix(socket)
            self._socket = (socket, inode)
            self._listeners.append(await loop.create_unix_server(self._express, sock=listener, backlog=_BACKLOG))
        if tcp:
            bound = _bind_tcp(tcp)
            host, port = bound.getsockname()[:2]
            self.tcp_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._listeners.append(await loop.create_server(self._express, sock=bound, backlog=_BACKLOG))

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests at once, let admitted ones finish for at most ``drain_s``, then close."""
        self._pipeline.load.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.routes.idle.wait()
        for listener in self._listeners:
            listener.close()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._express is not None:
            await self._express.shutdown(_CLOSE_S)
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(timeout=_CLOSE_S)
        if self._socket is not None:
            path, inode = self._socket
            with contextlib.suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        if self._express is not None:
            self._express.close_idle(loop.time())
        self._sweep = loop.call_later(_KEEPALIVE_S / 5, self._close_idle)


def _bind_unix(path: Path) -> tuple[sockets.socket, int]:
    """Bind with the final mode before anybody can connect; a socket that nobody serves any more is replaced.

    Returns:
        The bound socket and the inode of its file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        bound = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            bound.bind(str(path))
            os.chmod(path, SOCKET_MODE)  # nobody can connect before listen()
            inode = path.stat().st_ino
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise StorageError(f"socket: cannot create {path}: {error.strerror or error}") from error
    bound.setblocking(False)
    return bound, inode


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"socket: {path} exists and is not a socket; choose another path with --socket")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # left behind by an agent that was killed
            return
    raise ConfigError(f"socket: another agent serves {path}; stop it, or choose another path with --socket")


def _bind_tcp(address: str) -> sockets.socket:
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not (separator and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"tcp: {address!r} is not host:port")
    try:
        family, kind, protocol, _, where = sockets.getaddrinfo(host, int(port), type=sockets.SOCK_STREAM)[0]
        bound = sockets.socket(family, kind, protocol)
        try:
            bound.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            bound.bind(where)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ConfigError(f"tcp: cannot listen on {address}: {why}") from error
    bound.setblocking(False)
    return bound
