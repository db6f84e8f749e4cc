"""Says whether a stream that another server sent is a whole answer.

``[DONE]`` proves nothing: servers send it after an error event, and after answers that they gave up. An answer is whole
when each of its choices was finished for a reason that OpenAI's API knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from penstock.errors import Internal, Unavailable
from penstock.openai.error_objects import error_from_document
from penstock.openai.sse import END, Event

WHOLE = frozenset({"stop", "length", "tool_calls"})
"""Reasons with which an answer is whole. ``abort`` is what vLLM says when it is told to stop."""


class ChunkReader:
    """Reads the chunks of one stream and knows what has been finished."""

    def __init__(self, *, choices: int = 1) -> None:
        """``choices``: as many were asked for."""
        self._open = set(range(choices))

    @property
    def is_whole(self) -> bool:
        """Say whether every choice was finished."""
        return not self._open

    def read(self, event: Event) -> dict[str, Any] | None:
        """Return the chunk of an event; None for the one that ends the stream.

        Raises:
            Internal: it is no chunk. Unavailable: a choice was given up. The error that the server sent.
        """
        if event.data.strip() == END:
            return None
        try:
            chunk = msgspec.json.decode(event.data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Internal(f"the server sent an event that is not JSON: {event.data[:200]!r}") from None
        if (error := error_from_document(chunk)) is not None:
            raise error
        for choice in _choices(chunk):
            self._finish(choice)
        return chunk  # type: ignore[no-any-return]  # a mapping, by now

    def end(self) -> None:
        """Call at the end of the stream, with or without a ``[DONE]``.

        Raises:
            Unavailable: a choice was not finished.
        """
        if self._open:
            raise Unavailable("the server's stream ended before the answer did")

    def _finish(self, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason is None:
            return
        if reason not in WHOLE:
            raise Unavailable(f"the server gave the answer up: finish_reason {str(reason)[:40]!r}")
        self._open.discard(choice.get("index", 0))


def _choices(chunk: object) -> Iterator[dict[str, Any]]:
    found = chunk.get("choices") if isinstance(chunk, dict) else None
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise Internal(f"the server sent an event that is no chunk: {str(chunk)[:200]}")
    yield from found
