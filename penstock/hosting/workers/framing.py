"""Frames between a worker process and its parent: a length and as many bytes; and errors of ours on their way.

Values and bytes only, no sockets. What is in a frame is each family's: msgpack, never a pickle, so that a worker that
went wrong can say nothing but what is listed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from penstock.errors import ALL, Internal, InvalidInput, PenstockError, QuotaExceeded, TooLarge

_LENGTH = struct.Struct("<I")


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """An error of ours on its way.

    Attributes:
        id: of the generation; "" for the worker as a whole, which ends then.
        field: of an ``InvalidInput``.
    """

    id: str
    code: str
    message: str
    field: str = ""
    retry_after_s: float | None = None


def framed(body: bytes, *, max_bytes: int) -> bytes:
    """Write one message with its length before it.

    Raises:
        TooLarge: it has more than ``max_bytes``.
    """
    if len(body) > max_bytes:
        raise TooLarge(f"a message of {len(body)} bytes, at most {max_bytes} go to a worker", limit_bytes=max_bytes)
    return _LENGTH.pack(len(body)) + body


class Splitter:
    """Cuts what arrives, in any pieces, into the bodies of messages. Holds less than one message and one piece."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole now.

        Raises:
            TooLarge: one is longer than ``max_bytes``; the connection is of no use any more.
        """
        self._held += data
        at = 0
        while len(self._held) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._held, at)
            if size > self._max_bytes:
                limit = self._max_bytes
                raise TooLarge(f"a message of {size} bytes, the limit is {limit}", limit_bytes=limit)
            end = at + _LENGTH.size + size
            if len(self._held) < end:
                break
            yield bytes(self._held[at + _LENGTH.size : end])
            at = end
        del self._held[:at]


def failure_of(id: str, error: Exception) -> Failure:
    """Make a message of an error; one that is not ours becomes ``internal``."""
    if not isinstance(error, PenstockError):
        return Failure(id=id, code=Internal.code, message=f"{type(error).__name__}: {error}")
    field = error.field if isinstance(error, InvalidInput) else ""
    return Failure(id=id, code=error.code, message=error.message, field=field, retry_after_s=error.retry_after_s)


def error_of(failure: Failure) -> PenstockError:
    """Make the error again; a code that needs more than a message becomes ``internal``."""
    kind = ALL.get(failure.code, Internal)
    if issubclass(kind, InvalidInput):
        return kind(failure.message, field=failure.field)
    if issubclass(kind, TooLarge | QuotaExceeded) or kind.__init__ is not PenstockError.__init__:
        return Internal(failure.message, retry_after_s=failure.retry_after_s)
    return kind(failure.message, retry_after_s=failure.retry_after_s)
