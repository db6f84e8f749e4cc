"""What all rows that answer texts have in common: how a request's body is read, and how a stream is announced."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import QueueFull, TooLarge
from penstock.generation.plane import TextModel
from penstock.http.routes import Request
from penstock.openai.sse import CONTENT_TYPE
from penstock.wire.context import RequestContext, timeout_s_of

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Of a request that is all text: two million tokens, more than any context."""

MAX_READING_BYTES = 8 * MAX_BODY_BYTES
"""Of bodies that are read before anybody can say whether they are let in."""

_SMALL_BYTES = 64 * 1024  # most conversations; they pass whatever else is being read

# what sits between must neither keep the parts until there are many, nor keep them at all
STREAM_HEADERS = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def read_body(request: Request) -> tuple[RequestContext, bytes]:
    """Read a request's body, and how long there is for it.

    Raises:
        TooLarge: it has more than ``MAX_BODY_BYTES``. Others: as :meth:`penstock.http.routes.Body.read`.
    """
    context = request.context.within(timeout_s_of(request.headers))
    size_bytes = request.body.size_bytes
    body = b"" if (size_bytes or 0) > MAX_BODY_BYTES else await request.body.read(context)
    if (size_bytes or len(body)) > MAX_BODY_BYTES:
        raise TooLarge(
            f"the body has more than the {MAX_BODY_BYTES} bytes that a request for a text may have",
            limit_bytes=MAX_BODY_BYTES,
        )
    return context, body


class Bodies:
    """Reads the bodies of requests that name their model in the body, and are admitted after it was read: no admission
    counts their bytes, so they are bounded here, together.

    Attributes:
        reading_bytes: of those that are being read; a size that was not announced counts as the largest.
    """

    def __init__(self) -> None:
        self.reading_bytes = 0

    async def read(self, request: Request) -> tuple[RequestContext, bytes]:
        """Read a body as :func:`read_body` does.

        Raises:
            QueueFull: too much is being read; as others of :func:`read_body`.
        """
        announced = request.body.size_bytes
        takes = MAX_BODY_BYTES if announced is None else announced
        if takes <= _SMALL_BYTES or takes > MAX_BODY_BYTES:  # the latter is refused unread
            return await read_body(request)
        if self.reading_bytes + takes > MAX_READING_BYTES:
            raise QueueFull(
                f"bodies of {self.reading_bytes} bytes are being read, and {takes} more pass {MAX_READING_BYTES}",
                retry_after_s=1.0,
            )
        self.reading_bytes += takes
        try:
            return await read_body(request)
        finally:
            self.reading_bytes -= takes


def version_of(models: Sequence[TextModel], name: str) -> str:
    """Return the default version of a model; "" where nobody knows."""
    return next((model.version for model in models if model.name == name), "")
