"""One server of OpenAI's API behind a URL: its streams as events of tokens, and its failures as errors of ours.

Whether it is asked, and what becomes of a generation that it failed, is ``penstock.hosting.generation.remote``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    PenstockError,
    QueueFull,
    TooLarge,
    Unavailable,
    copy_of,
)
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.answer import Answer
from penstock.hosting.generation.settings import RemoteSettings
from penstock.openai.completions import OUR_NAMES, CompletionReader, completion_body
from penstock.openai.error_objects import error_from_document
from penstock.openai.field_names import as_sent
from penstock.openai.sse import SseDecoder
from penstock.policy.prefixes import SentPrefixes
from penstock.policy.worker_health import Watch
from penstock.rest.aio_transport import AioStreams, RefusedStream
from penstock.rest.status import error_from_http
from penstock.wire.addresses import Target, parse_target
from penstock.wire.tls import Tls

ELSEWHERE = (Unavailable, QueueFull)
"""Errors of one server with which another one may do better."""

_JSON = {"Content-Type": "application/json", "Accept": "text/event-stream"}
_PASSED_ON = (InvalidInput, DeadlineExceeded, TooLarge, *ELSEWHERE)


class RemoteServer:
    """One server behind a URL, as ``http://host:port/v1``. Must be made in a running event loop.

    Attributes:
        url: as it was given.
        tokens: that it has sent, to see whether it moves.
        owes: tokens of each generation that it has not ended, by the task that reads it.
        answers: where those go.
        breaker: whether it may be asked.
        watch: whether it moves.
        prefixes: beginnings of prompts that it was asked to continue lately.
        idle_looks: in a row, at which it had nothing to do.
        has_answered: it has made a token.
        is_probed: it is being asked for one, to see whether it may be asked for more.
        why: it may not be asked.
    """

    def __init__(
        self, url: str, model: str, settings: RemoteSettings, token: str | None, tls: Tls | None = None
    ) -> None:
        self.url, self._model = url, model
        target = parsed(url)
        self._path = completions_path(target)
        self._streams = AioStreams(
            target,
            token=token,
            tls=tls,
            connect_timeout_s=settings.connect_timeout_s,
            max_connections=settings.max_outstanding + 1,  # one for a probe
        )
        self.tokens = 0
        self.owes: dict[asyncio.Task[None], int] = {}
        self.answers: dict[asyncio.Task[None], Answer] = {}
        self.breaker, self.watch = settings.breaker(), Watch()
        self.prefixes, self.idle_looks = SentPrefixes(settings.max_prefix_blocks), 0
        self.is_probed = False
        self.has_answered, self.why = False, "it has made no token yet"
        self._retry_after_s = settings.retry_after_s

    def __repr__(self) -> str:
        return f"RemoteServer({self.url}, owes {len(self.owes)}, {self.breaker.phase})"

    async def events(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Ask for an answer and yield its tokens; closing this closes the connection, which is how a server hears it.

        Raises:
            Unavailable: it cannot be reached, gave the answer up, or has failed. QueueFull, InvalidInput and others:
                what it refused the request with.
        """
        decoder, reader = SseDecoder(), CompletionReader(request)
        try:
            async with aclosing(self._streams.post(self._path, completion_body(request, self._model), _JSON)) as pieces:
                async for piece in pieces:
                    for event in decoder.feed(piece):
                        for token in reader.read(event):
                            self.tokens += 1
                            yield token
            for token in reader.end():
                yield token
        except (RefusedStream, PenstockError) as error:
            rest = _rest(reader)
            for token in rest:
                yield token
            if not rest and not reader.has_ended:  # otherwise the connection broke where nothing was missing any more
                raise self._named(_meaning(error)) from error

    def forget(self, task: asyncio.Task[None]) -> None:
        """Let it owe nothing to a task any more; idempotent."""
        self.owes.pop(task, None)
        self.answers.pop(task, None)

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._streams.close()

    def _named(self, error: PenstockError) -> PenstockError:
        """Say whose error it is, unless it is the asker's; where another try helps, say when."""
        named = copy_of(error)
        if isinstance(named, InvalidInput):  # who asked us knows of no server behind us
            return as_sent(named, OUR_NAMES)
        named.message = f"{self.url}: {error.message}"
        named.args = (named.message,)
        if isinstance(error, ELSEWHERE) and error.retry_after_s is None:  # vLLM says none when it is full
            named.retry_after_s = self._retry_after_s
        return named


def parsed(url: str) -> Target:
    """Take a URL apart: ``http://``, ``https://`` or ``unix://``, with a path where it is not ``/v1``.

    Raises:
        ConfigError: it is none.
    """
    try:
        target = parse_target(url)
    except InvalidInput as error:
        raise ConfigError(f"{url!r} is no URL of a server that generates: {error.message}") from error
    if target.is_grpc:
        raise ConfigError(f"{url!r}: expected http://, https:// or unix://, and a path as /v1")
    return target


def completions_path(target: Target) -> str:
    """Return the path of completions below the one that the target has; ``/v1`` stands for one that has none."""
    return "/completions" if target.prefix else "/v1/completions"


def _meaning(error: RefusedStream | PenstockError) -> PenstockError:
    """Say what a server's refusal or failure means to whoever asked us: its faults are not theirs to mend."""
    said = error
    if isinstance(error, RefusedStream):
        answer = error.answer
        said = error_from_http(answer.status, answer.headers, answer.body)
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            told = error_from_document(msgspec.json.decode(answer.body))
            if isinstance(told, InvalidInput) and isinstance(said, InvalidInput):
                return told
            if told is not None:
                said.message = told.message
    assert isinstance(said, PenstockError)
    is_full = isinstance(error, RefusedStream) and error.answer.status in (429, 503)
    if is_full and not isinstance(said, QueueFull):
        return QueueFull(said.message, retry_after_s=said.retry_after_s)
    return said if isinstance(said, _PASSED_ON) else Unavailable(said.message, retry_after_s=said.retry_after_s)


def _rest(reader: CompletionReader) -> list[TokenEvent]:
    """Return the last token of a stream that broke after it."""
    try:
        return reader.end()
    except Unavailable:
        return []
