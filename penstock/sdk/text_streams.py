"""Answers that come in parts, for both clients: iterators that know the whole answer in the end.

Own the connection of one answer: closing one before its end closes that, which is how the server hears that nobody
reads on, and stops.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Protocol, cast

from penstock.sdk.rpc_texts import AioRpcStreams, AioRpcTexts, RpcStreams, RpcTexts
from penstock.sdk.texts import Text, TextPart, TextReader
from penstock.wire.addresses import Target


class TextTransport(Protocol):
    """JSON to a server, and its answer whole or in pieces. Raises our errors only."""

    def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes: ...
    def stream(self, path: str, body: bytes, timeout_s: float, request_id: str) -> Generator[bytes, None, None]: ...


class AioTextTransport(Protocol):
    """The same from asyncio."""

    async def post(self, path: str, body: bytes, timeout_s: float, request_id: str) -> bytes: ...
    async def stream(
        self, path: str, body: bytes, timeout_s: float, request_id: str
    ) -> AsyncGenerator[bytes, None]: ...


def text_transport(transport: object, target: Target) -> TextTransport:
    """Return a client's transport as one that texts can be asked of."""
    return RpcTexts(cast("RpcStreams", transport)) if target.is_grpc else cast("TextTransport", transport)


def aio_text_transport(transport: object, target: Target) -> AioTextTransport:
    """Return an asyncio client's transport as one that texts can be asked of."""
    if target.is_grpc:
        return AioRpcTexts(cast("AioRpcStreams", transport))
    return cast("AioTextTransport", transport)


class TextStream:
    """The parts of one answer. The request is sent when the first part is asked for.

    Iterating raises what :meth:`penstock.Client.generate` raises, at whatever part. Leave it by reading to the end,
    by ``with``, or by :meth:`close`.
    """

    def __init__(self, parts: Generator[TextPart, None, None], reader: TextReader) -> None:
        self._parts, self._reader = parts, reader

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> TextPart:
        return next(self._parts)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def answer(self) -> Text:
        """Return the whole answer, once all parts were read.

        Raises:
            InvalidInput: there are more parts, or the answer broke off.
        """
        return self._reader.answer()

    def close(self) -> None:
        """Give up what was not read; idempotent."""
        self._parts.close()


class AsyncTextStream:
    """The parts of one answer, from asyncio; see :class:`TextStream`.

    Leave it by reading to the end, by ``async with``, or by :meth:`aclose`.
    """

    def __init__(self, parts: AsyncGenerator[TextPart, None], reader: TextReader) -> None:
        self._parts, self._reader = parts, reader

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> TextPart:
        return await anext(self._parts)

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    @property
    def answer(self) -> Text:
        """Return the whole answer, once all parts were read.

        Raises:
            InvalidInput: there are more parts, or the answer broke off.
        """
        return self._reader.answer()

    async def aclose(self) -> None:
        """Give up what was not read; idempotent."""
        await self._parts.aclose()
