"""One HTTP connection to an OCI registry: retries, redirects, limits, and statuses as our errors.

Knows nothing of blobs and manifests; that is ``penstock.registry.client``. Standard library only: a machine that pushes
or pulls need not carry an HTTP library.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from penstock.artifact.blobs import MAX_DOCUMENT_BYTES
from penstock.errors import (
    PenstockError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from penstock.policy.retry import Backoff
from penstock.registry.address import absolute, http_parts, origin, parse_registry
from penstock.registry.authorization import Authorization, Challenge
from penstock.registry.interrupt import Interrupt
from penstock.registry.refusals import ADVICE, Retryable, refusal
from penstock.registry.replies import lower_names, reason_in
from penstock.rest.tunnel import open_tunnel
from penstock.wire.proxies import Proxy, proxy_for
from penstock.wire.tls import Tls, context, from_environment, trouble

_MAX_ERROR_BYTES = 64 * 1024
_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER_S = 60.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient a client is with a registry, and how much it takes from one.

    Attributes:
        connect_timeout_s: longest wait for one address of the registry to accept a connection.
        read_timeout_s: longest silence of a connection; the length of a whole transfer is not limited.
        attempts: tries in a row without progress before giving up; 1 leaves trying again to the caller.
        max_document_bytes: largest manifest, listing or small blob that is read.
        chunk_bytes: most that is read, hashed and written at a time.
    """

    connect_timeout_s: float = 30.0
    read_timeout_s: float = 30.0
    attempts: int = 5
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    chunk_bytes: int = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A kept connection to one registry. Not for several threads at a time, but for :meth:`cancel`."""

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        token: str,
        limits: Limits,
        tls: Tls | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """
        Args:
            user: whose password ``token`` is; "" where it is a bearer token.
            tls: which authorities to trust over TLS; None for what the environment says.

        Raises:
            InvalidInput: not an ``http://`` or ``https://`` URL.
        """
        self.address = parse_registry(url)
        self.url = url.rstrip("/")
        home = urllib.parse.urlsplit(self.address.site)
        self._home = origin(home)
        self._authorization = Authorization(user=user, secret=token, is_tls=home.scheme == "https")
        self.limits = limits
        self._tls = tls or from_environment()
        self._interrupt = Interrupt()
        self._sleep = sleep or self._interrupt.pause
        self._backoff = Backoff(base_s=0.2, factor=2.0, max_s=5.0)
        self._kept: http.client.HTTPConnection | None = None
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._kept is not None:
            self._drop(self._kept)
        self._interrupt.release()

    def cancel(self) -> None:
        """End, from any thread, the call that is under way, and refuse all later ones with ``Cancelled``."""
        self._interrupt.cancel()

    def check(self) -> None:
        """Raise if the connection was cancelled.

        Raises:
            Cancelled: :meth:`cancel` was called.
        """
        self._interrupt.check()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expected: frozenset[int] = frozenset(),
    ) -> Reply:
        """Ask until there is an answer, a 2xx or one of the statuses ``expected``, or the attempts are used up.

        Raises:
            TooLarge: the answer is longer than ``max_document_bytes``. PenstockError: what the status stands for.
        """
        failures = 0
        while True:
            try:
                return self.once(method, path, body, headers or {}, expected=expected)
            except Retryable as broken:
                failures += 1
                self.pause(failures, broken.last)

    def glance(self, path: str) -> Reply:
        """Ask without a credential, and take what comes, a refusal or a redirect too.

        Raises:
            Unavailable, QueueFull: nothing comes, or "later", until the attempts are used up.
        """
        parsed = urllib.parse.urlsplit(absolute(self.address.site, path))
        failures = 0
        while True:
            try:
                connection, response = self._ask(parsed, "GET", None, {})
                headers, data = lower_names(response), self._rest_of(connection, response)
                if isinstance(said := refusal(self.url, response.status, headers, data), Retryable):
                    raise said
                return Reply(status=response.status, headers=headers, body=data)
            except Retryable as broken:
                failures += 1
                self.pause(failures, broken.last)

    def once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        expected: frozenset[int] = frozenset(),
    ) -> Reply:
        """Ask once; see :meth:`call`.

        Raises:
            Retryable: the same again may help.
        """
        limit = self.limits.max_document_bytes
        with self.response(method, path, body, headers, expected=expected) as response:
            data = response.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(
                f"{self.url} answered {path} with more than the {limit} bytes that a document may have",
                limit_bytes=limit,
            )
        if response.length:
            raise Retryable(Unavailable(f"{self.url} ended its answer to {path} {response.length} bytes early"))
        return Reply(status=response.status, headers=lower_names(response), body=data)

    @contextlib.contextmanager
    def response(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        expected: frozenset[int] = frozenset(),
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yield a response whose body is still to be read: a 2xx, or one of the statuses ``expected``.

        Raises:
            Retryable: the connection broke, here or while the body was read, or the server says "later".
            Cancelled: likewise. PenstockError: what another status stands for.
        """
        connection, response = self._send(method, path, body, headers)
        try:
            if response.status >= 300 and response.status not in expected:
                raise refusal(self.url, response.status, lower_names(response), response.read(_MAX_ERROR_BYTES))
            yield response
            self.check()  # a body that a cancellation cut off looks like one that has ended
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        finally:
            self._done(connection, response)

    def pause(self, failures: int, last: PenstockError) -> None:
        """Wait before the next attempt.

        Raises:
            PenstockError: ``last``, when there are no attempts left.
        """
        if failures >= self.limits.attempts:
            raise last
        self.wait(failures, at_least_s=min(last.retry_after_s or 0.0, _MAX_RETRY_AFTER_S))

    def wait(self, failures: int, *, at_least_s: float = 0.0) -> None:
        """Sleep the longer, the more often something failed; not at all where it did not."""
        delay_s = self._backoff.delay_s(max(0, failures - 1), random.random())
        self._sleep(max(delay_s, at_least_s) if failures else 0.0)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        url = absolute(self.address.site, path)
        for _ in range(_MAX_REDIRECTS + 1):
            parsed = http_parts(url)
            if parsed is None:
                raise Unavailable(f"{self.url} redirects to {url[:200]!r}, which is no address of a registry")
            # no other server than the registry gets a credential, or is believed about who gives one
            ask = self._ask_home if self._is_home(parsed) else self._ask
            connection, response = ask(parsed, method, body, headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None or method not in ("GET", "HEAD"):
                return connection, response
            with contextlib.suppress(OSError, http.client.HTTPException):
                response.read(_MAX_ERROR_BYTES)
            self._done(connection, response)
            url = absolute(url, location)
        raise Unavailable(f"{self.url}: more than {_MAX_REDIRECTS} redirects for {path}")

    def _ask_home(
        self, parsed: urllib.parse.SplitResult, method: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Ask with the credential there is; when it is refused, get the one that the registry wants and ask again."""
        authorization, path = self._authorization, parsed.path
        if outdated := authorization.outdated(method, path, time.monotonic()):
            self._get_token(outdated, method, path)
        connection, response = self._ask(parsed, method, body, _with(headers, authorization.header(method, path)))
        if response.status != 401:
            return connection, response
        answer = authorization.answer_to(response.headers.get_all("WWW-Authenticate") or [])
        if answer is None:
            return connection, response
        with contextlib.suppress(OSError, http.client.HTTPException):
            response.read(_MAX_ERROR_BYTES)
        self._done(connection, response)
        if isinstance(answer, Challenge):
            self._get_token(answer, method, path)
        return self._ask(parsed, method, body, _with(headers, authorization.header(method, path)))

    def _get_token(self, challenge: Challenge, method: str, path: str) -> None:
        """Ask the service that the registry named for a token; where that redirects to is not asked."""
        ask = self._authorization.ask(challenge)
        parts = urllib.parse.urlsplit(ask.url)
        connection, response = self._ask(parts, "GET", None, _with({"Accept": "application/json"}, ask.authorization))
        data = self._rest_of(connection, response)
        if response.status != 200:
            said = refusal(self.url, response.status, lower_names(response), data)
            if isinstance(said, Retryable):
                raise said
            reason = reason_in(data) or http.client.responses.get(response.status, "no reason given")
            raise Unauthenticated(
                f"{self.url} wants a token of {challenge.realm[:200]}, which answered {response.status}: {reason}; "
                f"{ADVICE}"
            )
        self._authorization.grant(method, path, challenge, data, time.monotonic())

    def _rest_of(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> bytes:
        """Read a short answer whole."""
        try:
            data = response.read(_MAX_ERROR_BYTES)
            self.check()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        finally:
            self._done(connection, response)
        return data

    def _ask(
        self, parsed: urllib.parse.SplitResult, method: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        _, host, port = origin(parsed)
        proxy = proxy_for(parsed.scheme, host, port, os.environ)
        target = urllib.parse.urlunsplit(("", "", parsed.path, parsed.query, ""))
        if proxy is not None and parsed.scheme == "http":
            target, headers = f"http://{parsed.netloc}{target}", {**headers, **proxy.headers}
        while True:
            connection = self._connection(parsed)
            is_new = connection.sock is None
            try:
                if connection.sock is None:
                    connection.sock = self._open(parsed, proxy)
                else:
                    self._interrupt.watch(connection.sock)
                connection.request(method, target, body=body, headers=headers)
                return connection, connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                # Registries close a connection that was idle for some seconds. Asking on one that they are just closing
                # is nobody's failure and must not use an attempt up; what may change something is never sent twice
                if is_new or not isinstance(error, ConnectionError) or method not in ("GET", "HEAD"):
                    raise self._broken(error) from error

    def _connection(self, parsed: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        if self._pid != os.getpid():  # after a fork the one that is kept is the parent's: closing gives up ours only
            self._pid = os.getpid()
            if self._kept is not None:
                self._drop(self._kept)
        if self._kept is not None and self._is_home(parsed):
            return self._kept
        assert parsed.hostname is not None
        kind = http.client.HTTPSConnection if parsed.scheme == "https" else http.client.HTTPConnection
        connection = kind(parsed.hostname, parsed.port)
        if self._is_home(parsed):
            self._kept = connection
        return connection

    def _open(self, parsed: urllib.parse.SplitResult, proxy: Proxy | None) -> socket.socket:
        scheme, host, port = origin(parsed)
        to, at = (host, port) if proxy is None else (proxy.host, proxy.port)
        sock = self._interrupt.connect(to, at, timeout_s=self.limits.connect_timeout_s)
        sock.settimeout(self.limits.read_timeout_s)
        try:
            if scheme == "https":
                if proxy is not None:
                    open_tunnel(sock, proxy, host, port)
                sock = context(self._tls).wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return sock

    def _is_home(self, parsed: urllib.parse.SplitResult) -> bool:
        return origin(parsed) == self._home

    def _done(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        if connection is not self._kept or not response.isclosed() or connection.sock is None:
            self._drop(connection)  # another host, a body that was not read to its end, or the registry closes it

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._interrupt.release()
        if connection is self._kept:
            self._kept = None

    def _broken(self, error: Exception) -> Retryable:
        """Return the error for a connection that broke.

        Raises:
            Cancelled: it broke because :meth:`cancel` was called.
        """
        self._interrupt.check()
        said = trouble(str(error)) or str(error) or type(error).__name__
        return Retryable(Unavailable(f"cannot reach the registry at {self.url}: {said}"))


def _with(headers: Mapping[str, str], authorization: str) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers
