"""One HTTP connection to an OCI registry: retries, redirects, and statuses as our errors.

Knows nothing of blobs and manifests; that is ``penstock.registry.client``. Standard library only: a machine that pushes
or pulls need not carry an HTTP library.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.artifact.blobs import MAX_DOCUMENT_BYTES
from penstock.errors import (
    ArtifactError,
    Conflict,
    InvalidInput,
    NotFound,
    PenstockError,
    PermissionDenied,
    QueueFull,
    StorageError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from penstock.policy.retry import Backoff

MAX_ERROR_BYTES = 64 * 1024
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Retryable(Exception):
    """A connection that broke, or a server that says "later". ``last`` is raised when the attempts are used up."""

    def __init__(self, last: PenstockError) -> None:
        super().__init__(last.message)
        self.last = last


class Wire:
    """A kept connection to one registry. Not for several threads at a time."""

    def __init__(
        self, url: str, *, token: str, timeout_s: float, attempts: int, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """
        Raises:
            InvalidInput: not an ``http://`` or ``https://`` URL.
        """
        parsed = urllib.parse.urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise InvalidInput(f"registry: {url!r} is not a URL like http://127.0.0.1:8000", field="registry")
        self.url = f"{parsed.scheme}://{parsed.netloc}"
        self._token, self._timeout_s, self._attempts, self._sleep = token, timeout_s, max(1, attempts), sleep
        self._backoff = Backoff(base_s=0.2, factor=2.0, max_s=5.0)
        self._kept: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def call(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        failures = 0
        while True:
            try:
                return self.once(method, path, body, headers or {})
            except Retryable as broken:
                failures += 1
                self.pause(failures, broken.last)

    def once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        connection, response = self.send(method, path, body, headers)
        try:
            data = response.read(MAX_DOCUMENT_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Retryable(self.unreachable(error)) from error
        finally:
            self.done(connection, response)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise TooLarge(
                f"{self.url} answered {path} with more than {MAX_DOCUMENT_BYTES} bytes", limit_bytes=MAX_DOCUMENT_BYTES
            )
        if response.status >= 300:
            raise self.error(response.status, lower_names(response), data)
        return Reply(status=response.status, headers=lower_names(response), body=data)

    def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        url = urllib.parse.urljoin(self.url, path)
        for _ in range(_MAX_REDIRECTS + 1):
            parsed = urllib.parse.urlsplit(url)
            connection = self._connection(parsed)
            is_home = f"{parsed.scheme}://{parsed.netloc}" == self.url
            credential = {"Authorization": f"Bearer {self._token}"} if self._token and is_home else {}
            target = urllib.parse.urlunsplit(("", "", parsed.path, parsed.query, ""))
            try:
                connection.request(method, target, body=body, headers={**headers, **credential})
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                raise Retryable(self.unreachable(error)) from error
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or location is None or method not in ("GET", "HEAD"):
                return connection, response
            response.read(MAX_ERROR_BYTES)
            self.done(connection, response)
            url = urllib.parse.urljoin(url, location)
        raise Unavailable(f"{self.url}: more than {_MAX_REDIRECTS} redirects for {path}")

    def _connection(self, parsed: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise Unavailable(f"{self.url} redirects to {urllib.parse.urlunsplit(parsed)[:200]!r}, which is not HTTP")
        is_home = f"{parsed.scheme}://{parsed.netloc}" == self.url
        if is_home and self._kept is not None:
            return self._kept
        kind = http.client.HTTPSConnection if parsed.scheme == "https" else http.client.HTTPConnection
        connection = kind(parsed.hostname, parsed.port, timeout=self._timeout_s)
        if is_home:
            self._kept = connection
        return connection

    def done(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        if connection is not self._kept or not response.isclosed():
            self._drop(connection)  # another host, or a body that was not read to its end

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        if connection is self._kept:
            self._kept = None

    def pause(self, failures: int, last: PenstockError) -> None:
        """Wait before the next attempt.

        Raises:
            PenstockError: ``last``, when there are no attempts left.
        """
        if failures >= self._attempts:
            raise last
        delay_s = self._backoff.delay_s(max(0, failures - 1), random.random())
        self._sleep(max(delay_s, min(last.retry_after_s or 0.0, 60.0)) if failures else 0.0)

    def unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(f"cannot reach the registry at {self.url}: {error or type(error).__name__}")

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> PenstockError | Retryable:
        # an answer to HEAD has no body: the status's own words are all there is
        message = (
            f"{self.url} answered {status}: {_reason(body) or http.client.responses.get(status, 'no reason given')}"
        )
        if status == 404:
            return NotFound(message)
        if status == 401:
            return Unauthenticated(f"{message}; give a token with --token or PENSTOCK_REGISTRY_TOKEN")
        if status == 403:
            return PermissionDenied(f"{message}; this token may not do this, use one whose role allows it")
        if status == 413:
            return TooLarge(message, limit_bytes=0)
        if status in (409, 416):
            return Conflict(message)
        if status == 507:
            return StorageError(message)
        if status == 429 or status >= 500:
            after = headers.get("retry-after", "")
            after_s = float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None
            kind = QueueFull if status == 429 else Unavailable
            return Retryable(kind(message, retry_after_s=after_s))
        return ArtifactError(message)


def lower_names(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reason(body: bytes) -> str:
    """The messages of an OCI error document, or the body's beginning."""
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors[:5])
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace")
