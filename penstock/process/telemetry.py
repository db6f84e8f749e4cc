"""How processes tell what they do: one log line per event on stderr, request ids, W3C trace context.

Logging goes through the standard library: ``log(logger, logging.INFO, "ready", http="127.0.0.1:8000")``. Values are
escaped, so a client's text cannot forge a second line. No metrics here: each room owns its own registry.
"""

from __future__ import annotations

import logging
import re
import secrets
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

from penstock.errors import ConfigError

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
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


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


def request_id(given: str = "") -> str:
    """A client's request id when it is printable, without spaces and at most 128 characters; else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A W3C trace context: ids in lower-case hex, ``flags`` as sent (01 = sampled)."""

    trace_id: str
    span_id: str
    flags: str = "01"

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def child(self) -> TraceContext:
        """The same trace with a new span id."""
        return TraceContext(trace_id=self.trace_id, span_id=secrets.token_hex(8), flags=self.flags)


def parse_traceparent(text: str) -> TraceContext | None:
    """A ``traceparent`` header; None when malformed, so that a trace is restarted rather than a request refused.

    Source: W3C Trace Context, section 3.2.2 (version ff and all-zero ids are invalid; later versions may append).
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id=trace_id, span_id=span_id, flags=flags)


def new_trace() -> TraceContext:
    """A trace that starts here."""
    return TraceContext(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))


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
    """The HTTP library logs a client's malformed request as an error with its traceback: a way to fill a disk.

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
