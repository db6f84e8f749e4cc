"""The synchronous client's HTTP: the standard library over TCP or a unix socket, with a bounded pool of connections.

Thread-safe: a connection belongs to one call at a time. Tries again by itself in one case only: a kept-alive
connection turns out to have been closed by the server before any byte of an answer came back. A process made by a
fork takes connections of its own: what it inherited belongs to its parent.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from penstock.errors import Conflict, DeadlineExceeded, Internal, TooLarge, Unavailable
from penstock.rest.connection import UnixConnection, connection_to
from penstock.rest.exchange import (
    MAX_BODY_BYTES,
    Answer,
    Exchange,
    get_exchange,
    infer_exchange,
    model_path,
    post_exchange,
    read_body,
    read_infer,
    read_metadata,
    read_probe,
)
from penstock.rest.mistaken import advice
from penstock.wire.addresses import Target
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata
from penstock.wire.tls import Tls, context, from_environment, trouble

_CHUNK_BYTES = 256 * 1024
_FORK_LOCK = threading.Lock()


def _renew_fork_lock() -> None:
    global _FORK_LOCK
    _FORK_LOCK = threading.Lock()  # a thread that does not exist in the child may have held it


os.register_at_fork(after_in_child=_renew_fork_lock)


class RestTransport:
    """OIP over HTTP. At most ``max_connections`` calls run at once; further ones wait, within their own timeout."""

    def __init__(
        self, target: Target, *, token: str | None = None, tls: Tls | None = None, max_connections: int = 32
    ) -> None:
        self._target = target
        self._context = context(tls or from_environment()) if target.is_secure else None
        self._token = token
        self._max_connections = max_connections
        self._pid = os.getpid()
        self._slots = threading.BoundedSemaphore(max_connections)
        self._idle: list[http.client.HTTPConnection] = []  # the last one back is the first one out: the rest go stale
        self._is_closed = False

    def infer(self, request: InferRequest, timeout_s: float) -> InferResponse:
        return read_infer(self._exchange(infer_exchange(request, timeout_s, self._token), timeout_s))

    def metadata(self, model: str, version: str, timeout_s: float) -> ModelMetadata:
        return read_metadata(self._get(model_path(model, version), timeout_s))

    def is_live(self, timeout_s: float) -> bool:
        return read_probe(self._get("/v2/health/live", timeout_s))

    def is_ready(self, timeout_s: float) -> bool:
        return read_probe(self._get("/v2/health/ready", timeout_s))

    def model_ready(self, model: str, version: str, timeout_s: float) -> bool:
        return read_probe(self._get(model_path(model, version, "ready"), timeout_s))

    def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes:
        """Send JSON and return what comes back.

        Raises:
            PenstockError: what the server said no with, or how it was not reached.
        """
        exchange = post_exchange(path, body, timeout_s, self._token, request_id=request_id)
        return read_body(self._exchange(exchange, timeout_s))

    def stream(self, path: str, body: bytes, timeout_s: float, request_id: str) -> Generator[bytes, None, None]:
        """Send JSON and return what comes back in pieces, as they come. Its connection belongs to the generator until
        that has ended; closing it before closes the connection, which is how the server hears that nobody reads on.

        Raises:
            PenstockError: as :meth:`post`; the generator raises it, too, for what happens later.
        """
        pieces = self._pieces(post_exchange(path, body, timeout_s, self._token, request_id=request_id), timeout_s)
        next(pieces)  # the status; closing a generator that has not begun would give nothing back
        return pieces

    def close(self) -> None:
        """Close idle connections; those in use close when their call ends."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _leave_inherited(self) -> None:
        """Drop the pool after a fork: two processes that read from one connection get each other's answers.

        Closing gives up this process's descriptors only, the parent's connections stay as they are. Slots are new too:
        one that a thread of the parent held at the fork would never come back.
        """
        with _FORK_LOCK:
            if self._pid == os.getpid():
                return
            inherited, self._idle = self._idle, []
            self._slots = threading.BoundedSemaphore(self._max_connections)
            self._pid = os.getpid()
        for connection in inherited:
            connection.close()

    def _get(self, path: str, timeout_s: float) -> Answer:
        return self._exchange(get_exchange(path, timeout_s, self._token), timeout_s)

    def _exchange(self, exchange: Exchange, timeout_s: float) -> Answer:
        deadline = time.monotonic() + timeout_s
        with self._slot(timeout_s):
            connection, response = self._begun(exchange, deadline)
            return self._finish(connection, response, deadline)

    def _pieces(self, exchange: Exchange, timeout_s: float) -> Generator[bytes, None, None]:
        deadline = time.monotonic() + timeout_s
        with self._slot(timeout_s):
            connection, response = self._begun(exchange, deadline)
            if response.status != 200:
                read_body(self._finish(connection, response, deadline))
                raise Internal(f"the server answered {response.status} where a stream was expected")
            try:
                yield b""
                yield from _chunks(connection, response, deadline)
            except BaseException:
                connection.close()
                raise
            self._keep(connection, response)

    @contextmanager
    def _slot(self, timeout_s: float) -> Iterator[None]:
        """Wait for one of the connections, and say in errors of ours what happens on it."""
        if self._pid != os.getpid():
            self._leave_inherited()
        slots = self._slots
        if not slots.acquire(timeout=timeout_s):
            raise DeadlineExceeded(f"all connections were in use for {timeout_s:g} s")
        try:
            yield
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:.4g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(_reason(error)) from error
        finally:
            slots.release()

    def _begun(
        self, exchange: Exchange, deadline: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        while True:
            connection, is_reused = self._connection()
            try:
                return connection, _begin(connection, exchange, self._target.prefix, deadline)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connection.close()
                if is_reused:
                    continue
                raise
            except BaseException:
                connection.close()
                raise

    def _finish(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
    ) -> Answer:
        try:
            body = b"".join(_chunks(connection, response, deadline))
        except BaseException:
            connection.close()
            raise
        self._keep(connection, response)
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=headers, body=body)

    def _keep(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        if response.will_close or self._is_closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        if self._is_closed:
            raise Conflict("the client was closed meanwhile")
        try:
            return self._idle.pop(), True
        except IndexError:
            if self._target.scheme == "unix":
                return UnixConnection(self._target.path), False
            return connection_to(self._target.host, self._target.port, tls=self._context), False


def _begin(
    connection: http.client.HTTPConnection, exchange: Exchange, prefix: str, deadline: float
) -> http.client.HTTPResponse:
    connection.timeout = _left(deadline)  # of connecting
    if connection.sock is not None:
        connection.sock.settimeout(connection.timeout)
    connection.request(exchange.method, prefix + exchange.path, exchange.body or None, dict(exchange.headers))
    return connection.getresponse()


def _chunks(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
) -> Iterator[bytes]:
    """Read the whole body, bounded in bytes and in time: a server that trickles cannot stretch the deadline."""
    if (response.length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    total = 0
    while response.length != 0:  # None when the body is chunked, or ends with the connection
        if connection.sock is not None:
            connection.sock.settimeout(_left(deadline))
        chunk = response.read1(_CHUNK_BYTES)
        if not chunk:
            break
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise _too_large()
        yield chunk
    if response.length:  # the connection ended before Content-Length did
        raise http.client.IncompleteRead(b"", response.length)
    response.close()  # read1 does not notice the end, and an open response keeps its connection from being used again


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _too_large() -> TooLarge:
    return TooLarge(f"the server's answer is larger than {MAX_BODY_BYTES} bytes", limit_bytes=MAX_BODY_BYTES)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and (said := trouble(str(error))):
        return said
    if isinstance(error, OSError) and error.strerror:
        return f"cannot reach it: {error.strerror}"
    if other := advice(str(error)[:200]):
        return other
    said = str(error)[:200]  # a server that speaks something else: no control characters on a terminal
    return f"the connection broke: {type(error).__name__}: {said if said.isprintable() else ascii(said)}"
