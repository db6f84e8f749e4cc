"""What travels beside an error, as flat text that HTTP headers and gRPC trailers share, and the way back to the error.

The names are the same over both transports. How long to wait is not here: HTTP says ``Retry-After`` in seconds and
gRPC ``grpc-retry-pushback-ms``, so each status table (``penstock.rest.status``, ``penstock.rpc.status``) adds its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock import errors
from penstock.errors import InvalidInput, PenstockError, QuotaExceeded, TooLarge

CODE = "x-penstock-code"
REASON = "x-penstock-reason"
FIELD = "x-penstock-field"
LIMIT_BYTES = "x-penstock-limit-bytes"
RATE_LIMIT = "x-ratelimit-limit"
RATE_REMAINING = "x-ratelimit-remaining"
RATE_RESET = "x-ratelimit-reset"

_MAX_VALUE_CHARS = 256
_MAX_MESSAGE_CHARS = 4096


def hints_of(error: PenstockError) -> dict[str, str]:
    """Return the names and values to send beside an error; values are printable ASCII, safe as a header."""
    hints = {CODE: error.code}
    if error.reason:
        hints[REASON] = error.reason
    match error:
        case InvalidInput():
            hints[FIELD] = error.field
        case TooLarge():
            hints[LIMIT_BYTES] = str(error.limit_bytes)
        case QuotaExceeded():
            hints[RATE_LIMIT] = str(error.limit)
            hints[RATE_REMAINING] = str(error.remaining)
            hints[RATE_RESET] = f"{error.reset_s:.3f}"
        case _:
            pass
    # a field may name a client's own input: what cannot be a header (or would smuggle one in) is left out
    return {name: value for name, value in hints.items() if value and _is_header_safe(value)}


def error_of(code: str, message: str, hints: Mapping[str, str], *, retry_after_s: float | None = None) -> PenstockError:
    """Rebuild an error from what was sent; an unknown code becomes ``Internal``. Malformed hints are ignored."""
    message = message[:_MAX_MESSAGE_CHARS]
    kind = errors.ALL.get(code, errors.Internal)
    error: PenstockError
    if kind is QuotaExceeded:
        error = QuotaExceeded(
            message,
            limit=int(_number(hints.get(RATE_LIMIT))),
            remaining=int(_number(hints.get(RATE_REMAINING))),
            reset_s=_number(hints.get(RATE_RESET)),
            retry_after_s=retry_after_s,
        )
    elif kind is TooLarge:
        error = TooLarge(message, limit_bytes=int(_number(hints.get(LIMIT_BYTES))))
    elif kind is InvalidInput:
        error = InvalidInput(message, field=hints.get(FIELD, ""))
    else:
        error = kind(message)  # not every class takes a time to wait, and a server may send any code with one
        error.retry_after_s = retry_after_s
    reason = hints.get(REASON, "")
    if reason and reason != error.reason:
        error.reason = reason
    return error


def _is_header_safe(value: str) -> bool:
    return len(value) <= _MAX_VALUE_CHARS and value.isascii() and value.isprintable()


def _number(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if 0 <= value < 2**63 else 0.0
