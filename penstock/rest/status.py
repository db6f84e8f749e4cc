"""The one table from our errors to HTTP statuses, and the way back. Nothing else in Penstock knows an HTTP number."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from penstock.errors import PenstockError, QueueFull
from penstock.rest.mistaken import words_in
from penstock.wire.hints import CODE, error_of, hints_of

STATUS: Mapping[str, int] = {
    "internal": 500,
    "invalid-input": 400,
    "not-found": 404,
    "unavailable": 503,
    "queue-full": 503,
    "memory-full": 503,
    "quota-exceeded": 429,
    "deadline-exceeded": 504,
    "cancelled": 499,  # nginx's "client closed request": nobody is left to read it but the access log
    "too-large": 413,
    "unauthenticated": 401,
    "permission-denied": 403,
    "conflict": 409,
    "config": 500,
    "missing-extra": 501,
    "missing-toolchain": 501,
    "storage": 507,
    "newer-state": 507,
    "in-use": 503,
    "database-away": 503,
    "artifact": 400,
    "digest-mismatch": 400,
    "certificate-mismatch": 409,
    "signature": 409,
    "calibration": 422,
    "compile": 422,
    "gate": 422,
}

# statuses of servers that are not ours (no x-penstock-code): the nearest error of ours
_CODE_OF: Mapping[int, str] = {
    400: "invalid-input",
    401: "unauthenticated",
    403: "permission-denied",
    404: "not-found",
    408: "deadline-exceeded",
    409: "conflict",
    413: "too-large",
    415: "invalid-input",
    422: "invalid-input",
    429: "quota-exceeded",
    499: "cancelled",
    502: "unavailable",
    503: "unavailable",
    504: "deadline-exceeded",
    507: "storage",
}


class _Described(msgspec.Struct):
    message: str


class _ErrorBody(msgspec.Struct):
    error: str | _Described  # the inference protocol's, and OpenAI's


_ERROR = msgspec.json.Decoder(_ErrorBody)


def http_status(error: PenstockError, *, queue_full: int = 503) -> int:
    """Return the HTTP status of an error; ``queue_full`` may be 429 for clients that only back off on that."""
    return queue_full if isinstance(error, QueueFull) else STATUS[error.code]


def headers_of(error: PenstockError) -> dict[str, str]:
    """Return headers that go with an error: ``Retry-After``, ``x-ratelimit-*``, ``x-penstock-*``,
    ``WWW-Authenticate``."""
    headers = hints_of(error)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))  # whole seconds (RFC 9110, 10.2.3)
        headers["retry-after-ms"] = str(max(0, round(error.retry_after_s * 1000)))
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 wants it with every 401
    return headers


def error_from_http(status: int, headers: Mapping[str, str], body: bytes) -> PenstockError:
    """Return the error that a non-2xx answer stands for; works with servers that send neither our headers nor our
    body."""
    lower = {name.lower(): value for name, value in headers.items()}
    code = lower.get(CODE) or _CODE_OF.get(status, "internal")
    return error_of(code, _message(status, body), lower, retry_after_s=_retry_after_s(lower))


def _message(status: int, body: bytes) -> str:
    try:
        said = _ERROR.decode(body).error
        return said if isinstance(said, str) else said.message
    except (msgspec.MsgspecError, ValueError, RecursionError):
        text = words_in(body)
        return f"the server answered {status}: {text}" if text else f"the server answered {status}"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) <= 9:  # an HTTP date is not worth a clock here
            return int(text) * unit_s
    return None
