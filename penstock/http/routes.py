"""The table of routes: which handler answers which method and path, and who may ask. Each room puts in its own rows.

A handler gets a :class:`Request` and gives a :class:`Reply`, or raises one of our errors. Knows no HTTP library, so
that rows and handlers can be written and tested without one; sockets are ``penstock.http.server``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import msgspec

from penstock.errors import InvalidInput, NotFound, PenstockError
from penstock.http.operations import Operation
from penstock.policy.access import Action
from penstock.rest import codec
from penstock.rest.status import headers_of, http_status
from penstock.wire.context import RequestContext


class Body(Protocol):
    """A request's body, not read yet."""

    @property
    def size_bytes(self) -> int | None:
        """Return the size that was announced; None for a body that comes in chunks, or compressed."""
        ...

    async def read(self, context: RequestContext) -> bytes:
        """Read the whole body, before the request's deadline and within the server's limits.

        Raises:
            TooLarge: over the limit, whatever was announced. DeadlineExceeded: it did not arrive in time.
            InvalidInput: its encoding is broken.
        """
        ...

    def chunks(self, size_bytes: int) -> AsyncIterator[bytes]:
        """Read the body in pieces of at most ``size_bytes``, of any length and however long it takes.

        Raises:
            InvalidInput: its encoding is broken.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as its handler sees it.

    Attributes:
        path: as it was sent, without the query.
        names: what the pattern's names stand for, percent-encoding undone.
        headers: names in any case.
    """

    method: str
    path: str
    names: Mapping[str, str]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    context: RequestContext
    body: Body


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; the server adds framing, date and request id.

    Attributes:
        file: sent in place of ``body``, in ranges where they were asked for.
        parts: sent in place of ``body``, each as soon as it is there; empty ones are left out. The server reads no part
            before the last one is on its way, and closes the generator at the end, when the client goes away, and when
            it does not read. A part that cannot be made breaks the connection off: nothing then looks like an end.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    parts: AsyncGenerator[bytes, None] | None = None


Handler = Callable[[Request], Awaitable[Reply]]


def refusal(error: PenstockError, *, queue_full: int = 503) -> Reply:
    """Say an error as the inference protocol does: a status of the one table, hints, and ``{"error": ...}``."""
    headers = {**headers_of(error), "Content-Type": codec.JSON}
    status = http_status(error, queue_full=queue_full)
    if isinstance(error, MethodNotAllowed):
        status = 405
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, UnknownEncoding):
        status = 415
        headers["Accept-Encoding"] = ", ".join(error.accepted)  # RFC 9110, 12.5.3: in a 415 it names what would do
    return Reply(status=status, body=codec.encode_error(error), headers=headers)


def json_reply(value: object, *, status: int = 200) -> Reply:
    """Answer with a document as JSON."""
    return Reply(status=status, body=msgspec.json.encode(value), headers={"Content-Type": codec.JSON})


@dataclass(frozen=True, slots=True)
class Route:
    """One row.

    Attributes:
        pattern: a path in which ``{name}`` stands for one segment and ``{name*}`` for one or more.
        handler: what answers.
        may: what a caller must be allowed to do; None lets everybody in, without a credential.
        refuse: how errors look to this row's clients.
        says: what the row tells of itself in the OpenAPI document.
    """

    method: str
    pattern: str
    handler: Handler
    may: Action | None = None
    refuse: Callable[[PenstockError], Reply] = refusal
    says: Operation | None = None


class MethodNotAllowed(InvalidInput):
    """The path exists, the method does not fit it; answered with 405 in the way of ``route``, one of those it fits."""

    def __init__(self, method: str, allowed: tuple[str, ...], route: Route) -> None:
        super().__init__(f"method {method[:20]} does not fit this path; use {' or '.join(allowed)}", field="method")
        self.allowed = allowed
        self.route = route


class UnknownEncoding(InvalidInput):
    """The body is in a content coding that is not decoded here; answered with 415 (RFC 9110, 15.5.16)."""

    def __init__(self, encoding: str, accepted: tuple[str, ...]) -> None:
        super().__init__(
            f"Content-Encoding: {encoding[:40]!r} is not decoded here; send the body as it is, or as "
            f"{' or '.join(accepted)}",
            field="Content-Encoding",
        )
        self.accepted = accepted


class Table:
    """Rows in order: the first that fits answers, so that what shares a prefix goes before what takes all of it."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._rows = [(_compiled(route.pattern), route) for route in routes]

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Find the row for a method and a path as it was sent, without the query, and what the pattern's names are.

        Raises:
            NotFound: no row has this path. MethodNotAllowed: some have, and none the method.
        """
        fitting: list[Route] = []
        for pattern, route in self._rows:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.method == method or (method == "HEAD" and route.method == "GET"):
                return route, {name: unquote(value) for name, value in match.groupdict().items()}
            fitting.append(route)
        if not fitting:
            raise NotFound(f"nothing is served at {path[:200]!r}; the inference protocol is under /v2")
        allowed = [route.method for route in fitting]
        if "GET" in allowed:
            allowed.append("HEAD")
        raise MethodNotAllowed(method, tuple(dict.fromkeys(allowed)), fitting[0])


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+\*?\})", pattern)
    return re.compile("".join(_group(part) if part.startswith("{") else re.escape(part) for part in parts))


def _group(name: str) -> str:
    return f"(?P<{name[1:-2]}>.+)" if name.endswith("*}") else f"(?P<{name[1:-1]}>[^/]+)"
