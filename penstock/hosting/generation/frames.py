"""What a worker process and its parent say to each other: msgpack with a length before it, bounded in both directions.

Values and bytes only, no sockets. Times are seconds that are left, never dates: the two processes share no clock that
anybody promises. Nothing here is pickled, so a worker that went wrong can say nothing but what is listed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from penstock.errors import ALL, Internal, InvalidInput, PenstockError, QuotaExceeded, TooLarge
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import Times
from penstock.hosting.generation.settings import LineSettings
from penstock.process.telemetry import LogSettings
from penstock.runtime.generation import EngineFacts, GenerationOptions

_LENGTH = struct.Struct("<I")


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker loads.

    Attributes:
        engine: its name in the table of ``penstock.runtime.generation``.
        directory: with the model's files, those of its tokenizer among them.
        options: how the engine may use the machine.
    """

    engine: str
    directory: str
    options: GenerationOptions = GenerationOptions()


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """The parent's first word: what to load, and how to behave.

    Attributes:
        max_pipe_bytes: that may wait for the parent before the engine rests.
    """

    model: Model
    line: LineSettings = LineSettings()
    nice: int = 0
    max_pipe_bytes: int
    log: LogSettings | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """The parent wants an answer.

    Attributes:
        request: its ``id`` was given by the parent and is used once.
        left_s: until its deadline; None for no deadline.
    """

    request: GenerationRequest
    left_s: float | None = None
    priority: int = 0


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """The parent wants no more of an answer."""

    id: str


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag="ping"):
    """The parent wants a sign of life: a report, whatever has happened."""


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The worker's first word: the engine is in memory. That it works is shown by its first token."""

    facts: EngineFacts


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


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What came of a turn of the worker's loop."""

    events: tuple[tuple[str, TokenEvent], ...] = ()
    failures: tuple[Failure, ...] = ()
    times: Times = Times()
    load: Load
    totals: Totals


ToWorker = Begin | Ask | Cancel | Ping
FromWorker = Loaded | Report | Failure

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker, *, max_bytes: int) -> bytes:
    """Write one message with its length before it.

    Raises:
        TooLarge: it has more than ``max_bytes``.
    """
    body = _encoder.encode(message)
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
