"""What a worker process and its parent say to each other: msgpack with a length before it, bounded in both directions.

Values and bytes only, no sockets. Times are seconds that are left, never dates: the two processes share no clock that
anybody promises. Nothing here is pickled, so a worker that went wrong can say nothing but what is listed.
"""

from __future__ import annotations

import msgspec

from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import Times
from penstock.hosting.generation.settings import LineSettings
from penstock.hosting.workers.framing import Failure, framed
from penstock.process.telemetry import LogSettings
from penstock.runtime.generation import EngineFacts, GenerationOptions


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
    return framed(_encoder.encode(message), max_bytes=max_bytes)
