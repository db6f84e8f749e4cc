"""Server-sent events: chunks to bytes, and bytes that come in any pieces back to events.

A stream that ends well ends with ``[DONE]``; one that fails ends with an error event and no ``[DONE]``. Reading says
what was sent and no more: whether an answer is whole is ``penstock.openai.streams``'s to say.
Source: WHATWG HTML, 9.2 "Server-sent events".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.errors import Internal

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
END = "[DONE]"
"""The data of the event that ends a stream."""

MAX_EVENT_BYTES = 4 * 1024 * 1024

_ENCODER = msgspec.json.Encoder()
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


def event_bytes(document: Mapping[str, Any]) -> bytes:
    """Write one chunk, or an error, as an event. JSON has no line ends, so that one line of data holds it."""
    return b"data: " + _ENCODER.encode(document) + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event.

    Attributes:
        data: its lines of data, joined by line ends.
        kind: its ``event`` field; "" where it has none.
    """

    data: str
    kind: str = ""


class SseDecoder:
    """Reads one stream. What has come of an event when the stream ends is thrown away, as the standard wants it."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._kind = ""
        self._is_first_line = True
        self._is_after_cr = False

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes, however they were cut, and return the events that are whole by now.

        Raises:
            Internal: an event is larger than the limit, or not UTF-8.
        """
        if self._is_after_cr and data[:1] == b"\n":
            data = data[1:]
            self._is_after_cr = False
            if not data:
                return []
        if data:
            self._is_after_cr = data.endswith(b"\r")
        *ended, rest = _LINE_END.split(data)
        events = []
        for piece in ended:
            self._line += piece
            line = bytes(self._line)
            self._line.clear()
            if (event := self._take(line)) is not None:
                events.append(event)
        self._line += rest
        self._check_size(len(self._line))
        return events

    def _take(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        self._check_size(len(line))
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
        elif name == b"event":
            self._kind = _text(value)
        return None  # comments, ids, times to wait before connecting again

    def _dispatch(self) -> Event | None:
        data, kind = self._data, self._kind
        self._data, self._data_bytes, self._kind = [], 0, ""
        return Event(data=_text(b"\n".join(data)), kind=kind) if data else None

    def _check_size(self, more: int) -> None:
        if self._data_bytes + more > self._max_event_bytes:
            raise Internal(f"the server sent an event of more than {self._max_event_bytes} bytes")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Internal("the server sent an event that is not UTF-8") from None
