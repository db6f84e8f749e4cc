"""How processes tell what they do: one log line per event on stderr, and what a client is told of a failure.

Logging goes through the standard library: ``log(logger, logging.INFO, "ready", http="127.0.0.1:8000")``. Values are
escaped, so a client's text cannot forge a second line. A process that serves logs through a queue; a command, which
has nobody to keep waiting, writes its lines at once. No metrics here: each room owns its own registry.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TextIO

import msgspec

from penstock.errors import ConfigError, Internal, PenstockError
from penstock.process.log_queue import QueuedStream
from penstock.wire.context import RequestContext

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LOG = logging.getLogger(__name__)
_STDERR = 2
_FIELDS = "penstock_fields"
_HTTP_SERVER = logging.getLogger("aiohttp.server")
_MAX_VALUE_CHARS = 2048
_BARE = re.compile(r"[A-Za-z0-9_./:@+\-\[\]{},%*<>]+")


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs go to stderr, one line an event.

    Attributes:
        level: the least severe events that are written.
        format: ``text`` for people, ``json`` for machines.
        max_waiting_bytes: of lines that wait for a reader of stderr that is slow or stalls; lines beyond it are
            dropped and counted.
        flush_s: how long a process that ends waits for its last lines to be taken.
    """

    level: LogLevel = "info"
    format: LogFormat = "text"
    max_waiting_bytes: Annotated[int, msgspec.Meta(ge=64 * 1024)] = 1024 * 1024
    flush_s: Annotated[float, msgspec.Meta(ge=0.0)] = 1.0


def setup_service_logging(settings: LogSettings) -> None:
    """Log to stderr through a queue, for a process that must go on whatever becomes of the reader of its log.

    ``sys.stderr`` is the queue from now on: warnings, tracebacks and the last words of a command wait for nobody
    either. What a library in C writes to descriptor 2 by itself passes by it, so that a crash can still be read.
    """
    formatter = _formatter(settings.format)

    def notice(lines: int) -> str:
        record = _LOG.makeRecord(
            _LOG.name, logging.WARNING, "", 0, "log lines dropped", (), None, extra={_FIELDS: {"lines": lines}}
        )
        return f"{formatter.format(record)}\n"

    # gRPC's C core writes a line of its own for every malformed header that it gets; read when grpc is imported
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    stream = QueuedStream(_STDERR, max_bytes=settings.max_waiting_bytes, notice=notice)
    os.register_at_fork(after_in_child=stream.begin_again)
    atexit.register(flush_log, settings.flush_s)
    sys.stderr = stream
    setup_logging(settings.level, settings.format, stream=stream)


def flush_log(timeout_s: float) -> None:
    """Wait until the lines of this process are written, ``timeout_s`` at most."""
    if isinstance(sys.stderr, QueuedStream):
        sys.stderr.drain(timeout_s)


def dropped_lines() -> int:
    """Return how many log lines of this process nobody took."""
    return sys.stderr.dropped if isinstance(sys.stderr, QueuedStream) else 0


def setup_logging(
    level: str = "info", format: LogFormat = "text", *, stream: TextIO | QueuedStream | None = None
) -> None:
    """Send the root logger to ``stream`` (stderr by default) in our format. Calling it again replaces the handler.

    Raises:
        ConfigError: unknown level or format.
    """
    if level not in LEVELS:
        raise ConfigError(f"log.level: {level!r} is not one of {', '.join(LEVELS)}")
    if format not in ("text", "json"):
        raise ConfigError(f"log.format: {format!r} is not one of text, json")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(format))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(LEVELS[level])
    _HTTP_SERVER.filters[:] = [_is_ours_to_mend]


def log(
    logger: logging.Logger, level: int, event: str, /, *, exc_info: BaseException | None = None, **fields: object
) -> None:
    """Log an event with its facts as fields: ``event`` is a constant, what varies goes into ``fields``."""
    if logger.isEnabledFor(level):
        logger.log(level, event, exc_info=exc_info, extra={_FIELDS: fields})


def refusal_of(logger: logging.Logger, error: Exception, context: RequestContext) -> PenstockError:
    """Return what a client is told of an error: ours as it is; a defect is logged here, and its text stays here."""
    if isinstance(error, PenstockError) and not isinstance(error, Internal):
        log(logger, logging.DEBUG, "refused", code=error.code, why=error.message, request_id=context.request_id)
        return error
    log(
        logger,
        logging.ERROR,
        "request failed",
        exc_info=error,
        request_id=context.request_id,
        trace_id=context.trace_id,
    )
    return error if isinstance(error, Internal) else Internal("the server failed; its log says why")


class _TextFormatter(logging.Formatter):
    """``2026-11-22T16:20:00.123Z info cloud_core.app ready http=127.0.0.1:8000``; a traceback goes on its own lines."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_stamp(record), record.levelname.lower(), record.name, _one_line(record.getMessage())]
        words += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        line = " ".join(words)
        trace = _traceback(record)
        return f"{line}\n{trace}" if trace else line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line; the traceback is a field."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "at": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        trace = _traceback(record)
        if trace:
            document["traceback"] = trace
        return msgspec.json.encode(document, enc_hook=str).decode()


def _formatter(format: LogFormat) -> logging.Formatter:
    return _JsonFormatter() if format == "json" else _TextFormatter()


def _is_ours_to_mend(record: logging.LogRecord) -> bool:
    """Drop what the HTTP library logs of a client's malformed request, with a traceback: a way to fill a disk.

    The client was told (400); here it is shown to who debugs. By name, since only processes that serve import it.
    """
    error = record.exc_info[1] if record.exc_info else None
    is_the_clients = error is not None and any(
        kind.__name__ in ("HttpProcessingError", "PayloadError", "RequestPayloadError")
        and kind.__module__.startswith("aiohttp.")
        for kind in type(error).__mro__
    )
    return not is_the_clients or _HTTP_SERVER.isEnabledFor(logging.DEBUG)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, _FIELDS, {})
    return fields


def _traceback(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(record.exc_info[1])).rstrip() if record.exc_info else ""


def _stamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _one_line(text: str) -> str:
    return text[:_MAX_VALUE_CHARS].replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)[:_MAX_VALUE_CHARS]
    return text if _BARE.fullmatch(text) else msgspec.json.encode(text).decode()
