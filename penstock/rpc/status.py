"""The one table from our errors to gRPC statuses, and the way back. Nothing else in Penstock names a gRPC status."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol

import grpc

from penstock.errors import PenstockError
from penstock.wire.hints import CODE, LIMIT_BYTES, error_of, hints_of
from penstock.wire.tls import CERT_FILE, trouble

PUSHBACK = "grpc-retry-pushback-ms"
OUR_PUSHBACK = "x-penstock-retry-pushback-ms"
"""The same, from a server whose library keeps names that begin with ``grpc-`` for itself."""

_S = grpc.StatusCode
STATUS: Mapping[str, grpc.StatusCode] = {
    "internal": _S.INTERNAL,
    "invalid-input": _S.INVALID_ARGUMENT,
    "not-found": _S.NOT_FOUND,
    "unavailable": _S.UNAVAILABLE,
    "queue-full": _S.RESOURCE_EXHAUSTED,
    "memory-full": _S.RESOURCE_EXHAUSTED,
    "quota-exceeded": _S.RESOURCE_EXHAUSTED,
    "deadline-exceeded": _S.DEADLINE_EXCEEDED,
    "cancelled": _S.CANCELLED,
    "too-large": _S.RESOURCE_EXHAUSTED,
    "unauthenticated": _S.UNAUTHENTICATED,
    "permission-denied": _S.PERMISSION_DENIED,
    "conflict": _S.FAILED_PRECONDITION,
    "config": _S.INTERNAL,
    "missing-extra": _S.UNIMPLEMENTED,
    "missing-toolchain": _S.UNIMPLEMENTED,
    "storage": _S.UNAVAILABLE,
    "newer-state": _S.FAILED_PRECONDITION,
    "in-use": _S.UNAVAILABLE,
    "database-away": _S.UNAVAILABLE,
    "artifact": _S.INVALID_ARGUMENT,
    "digest-mismatch": _S.INVALID_ARGUMENT,
    "certificate-mismatch": _S.FAILED_PRECONDITION,
    "signature": _S.FAILED_PRECONDITION,
    "calibration": _S.FAILED_PRECONDITION,
    "compile": _S.FAILED_PRECONDITION,
    "gate": _S.FAILED_PRECONDITION,
}

# statuses of servers that are not ours, or of gRPC itself (no x-penstock-code): the nearest error of ours
_CODE_OF: Mapping[grpc.StatusCode, str] = {
    _S.INVALID_ARGUMENT: "invalid-input",
    _S.OUT_OF_RANGE: "invalid-input",
    _S.NOT_FOUND: "not-found",
    _S.UNAVAILABLE: "unavailable",
    _S.RESOURCE_EXHAUSTED: "queue-full",
    _S.DEADLINE_EXCEEDED: "deadline-exceeded",
    _S.CANCELLED: "cancelled",
    _S.UNAUTHENTICATED: "unauthenticated",
    _S.PERMISSION_DENIED: "permission-denied",
    _S.FAILED_PRECONDITION: "conflict",
    _S.ABORTED: "conflict",
    _S.ALREADY_EXISTS: "conflict",
}

# gRPC refuses a message over its limit by itself: "Received message larger than max (N vs. LIMIT)", "Sent ..."
_OVER_LIMIT = re.compile(r"message larger than max \(\d+ vs\. (\d+)\)")

_NOT_REACHED = re.compile(
    r"failed to connect to all addresses; last error: \w+: (?:ipv[46]:\S+?: )?(?:Failed to connect to remote host: )?"
)
_OF_A_PROXY = re.compile(r"Received http2 header with status: (\d+)")
_SPEAKS_HTTP = re.compile(r"Failed parsing HTTP/2|http1\.x server")  # an HTTP/1.1 answer where frames were expected


def grpc_status(error: PenstockError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    return STATUS[error.code]


def trailing_metadata(error: PenstockError) -> tuple[tuple[str, str], ...]:
    """Return trailers that go with an error: pushback (gRFC A6), ``x-penstock-*``, ``x-ratelimit-*``."""
    hints = hints_of(error)
    if error.retry_after_s is not None:
        hints[PUSHBACK] = str(max(0, round(error.retry_after_s * 1000)))
    return tuple(hints.items())


def error_from_rpc(rpc_error: grpc.RpcError) -> PenstockError:
    """Return the error that a failed call stands for, sync or aio; works with servers that send
    none of our trailers."""
    call: Any = rpc_error  # grpc's stubs give RpcError no methods; every error raised by a call has these three
    status: grpc.StatusCode = call.code()
    message = _in_words(call.details()) or f"the server answered {status.name}"
    hints = _text(call.trailing_metadata())
    code = hints.get(CODE) or _CODE_OF.get(status, "internal")
    over_limit = _OVER_LIMIT.search(message) if CODE not in hints else None
    if over_limit:
        code = "too-large"
        hints[LIMIT_BYTES] = over_limit.group(1)
    return error_of(code, message, hints, retry_after_s=_pushback_s(hints))


def error_from_stream(message: str, hints: Mapping[str, str]) -> PenstockError:
    """Return the error that an ``error_message`` in a stream stands for; a server that says no code fails."""
    return error_of(hints.get(CODE, "internal"), message, hints, retry_after_s=_pushback_s(hints))


class Abortable(Protocol):
    """A call that can be ended with a status: grpcio's context, and whatever stands for it."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn: ...


async def abort(context: Abortable, error: PenstockError) -> NoReturn:
    """End a call with an error's status, message and trailers. Headers must not have been sent, or pushback is lost."""
    await context.abort(grpc_status(error), error.message, trailing_metadata(error))
    raise AssertionError("context.abort returned")


def _in_words(details: str | None) -> str:
    """Return gRPC's own words for a server that was not reached as a person would say it; all others as they are."""
    said = details or ""
    if _SPEAKS_HTTP.search(said):
        return "what answers there speaks HTTP/1.1 and not gRPC; use http:// for it, or grpcs:// at a port of TLS"
    if found := _OF_A_PROXY.search(said):
        return (
            f"what answers there is a web server, with status {found[1]}, and no gRPC service; a proxy that asks for a "
            f"client's certificate answers like this, too: give cert_file, or {CERT_FILE}"
        )
    return trouble(said) or _NOT_REACHED.sub("cannot reach it: ", said, count=1)


def _text(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {name: value for name, value in metadata or () if isinstance(value, str)}


def _pushback_s(hints: Mapping[str, str]) -> float | None:
    """Read gRFC A6's pushback: negative or malformed means "do not retry"."""
    text = hints.get(PUSHBACK) or hints.get(OUR_PUSHBACK, "")
    return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) <= 9 else None
