"""How processes tell what they do: one log line per event on stderr, and what a client is told of a failure.

Logging goes through the standard library: ``log(logger, logging.INFO, "ready", http="127.0.0.1:8000")``. Values are
escaped, so a client's text cannot forge a second line. No metrics here: each room owns its own registry.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from penstock.errors import ConfigError, Internal, PenstockError
from penstock.wire.context import RequestContext

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
LogFormat = Literal["text", "json"]

_FIELDS = "penstock_fields"
_HTTP_SERVER = logging.getLogger("aiohttp.server")
_MAX_VALUE_CHARS = 2048
_BARE = re.compile(r"[A-Za-z0-9_./:@+\-\[\]{},%*<>]+")


def setup_logging(level: str = "info", format: LogFormat = "text", *, stream: TextIO | None = None) -> None:
    """Send the root logger to ``stream`` (stderr by default) in our format. Calling it again replaces the handler.

    Raises:
        ConfigError: unknown level or format.
    """
    if level not in LEVELS:
        raise ConfigError(f"log.level: {level!r} is not one of {', '.join(LEVELS)}")
    if format not in ("text", "json"):
        raise ConfigError(f"log.format: {format!r} is not one of text, json")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if format == "json" else _TextFormatter())
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
