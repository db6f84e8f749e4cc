"""What all rows that answer texts have in common: how a request's body is read, and how a stream is announced."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.errors import TooLarge
from penstock.generation.plane import TextModel
from penstock.http.routes import Request
from penstock.openai.sse import CONTENT_TYPE
from penstock.wire.context import RequestContext, timeout_s_of

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Of a request that is all text: two million tokens, more than any context."""

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


def version_of(models: Sequence[TextModel], name: str) -> str:
    """Return the default version of a model; "" where nobody knows."""
    return next((model.version for model in models if model.name == name), "")
