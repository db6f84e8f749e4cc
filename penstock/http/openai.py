"""OpenAI's API over HTTP, for whatever text plane there is behind: rows, decoding, encoding, streams.

What goes wrong before the first token is an error with a status; after it, an error event, and no ``[DONE]``. A client
that goes away closes the answers that it asked for, in whichever way it asked. Decides nothing: who is let in, and what
is answered, is the plane's. The model's name stands in the body, so that a request is admitted after its body was read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal, NotRequired, Protocol, TypedDict

import msgspec
from msgspec import structs

from penstock.errors import NotFound, PenstockError
from penstock.generation.plane import Embedder, TextAnswer, TextModel, TextPlane, Ticket
from penstock.generation.values import TokenEvent
from penstock.http.operations import EVENTS, JSON, Operation, Raw
from penstock.http.routes import Handler, Reply, Request, Route, json_reply, refusal
from penstock.http.texts import STREAM_HEADERS, Bodies, version_of
from penstock.openai.answers import Chunks, Finished, Head, answer_document, model_document, models_document
from penstock.openai.embeddings import embeddings_document, read_embedding
from penstock.openai.error_objects import error_document
from penstock.openai.field_names import named
from penstock.openai.requests import Call, read_chat, read_completion
from penstock.openai.sse import DONE, event_bytes
from penstock.policy.access import Action
from penstock.process.telemetry import refusal_of
from penstock.wire.context import RequestContext
from penstock.wire.inference import ModelState

AT_ONCE = 8
"""Answers to one request that are under way at the same time; the next one begins when one of them ends."""

_log = logging.getLogger(__name__)


class Models(Protocol):
    """What knows all models of a server."""

    def model_state(self, model: str, version: str, /) -> ModelState: ...

    def index(self) -> Sequence[ModelState]: ...


class OpenAiRefusal(TypedDict):
    """Why a request was not answered, as OpenAI says it."""

    error: dict[str, Any]


class CompletionBody(TypedDict):
    """A prompt, or a list of them; how it is answered is said by fields beside these."""

    model: str
    prompt: Any
    n: NotRequired[int]
    stream: NotRequired[bool]
    max_tokens: NotRequired[int]
    temperature: NotRequired[float]


class ChatBody(TypedDict):
    """A conversation; how it is answered is said by fields beside these."""

    model: str
    messages: list[dict[str, Any]]
    n: NotRequired[int]
    stream: NotRequired[bool]
    max_completion_tokens: NotRequired[int]
    temperature: NotRequired[float]


class EmbeddingBody(TypedDict):
    """A text, or a list of them."""

    model: str
    input: Any
    encoding_format: NotRequired[Literal["float", "base64"]]


_PARTS = Raw("With stream: server-sent events, each with a chunk of the answer; the last one is [DONE].")
_CHAT = Operation(
    summary="Answer a conversation",
    group="OpenAI",
    asks={JSON: ChatBody},
    answers={JSON: dict[str, Any], EVENTS: _PARTS},
    refusal=OpenAiRefusal,
)
_COMPLETION = Operation(
    summary="Go on with a prompt",
    group="OpenAI",
    asks={JSON: CompletionBody},
    answers={JSON: dict[str, Any], EVENTS: _PARTS},
    refusal=OpenAiRefusal,
)
_EMBED = Operation(
    summary="Answer with a vector for each text",
    group="OpenAI",
    asks={JSON: EmbeddingBody},
    answers={JSON: dict[str, Any]},
    refusal=OpenAiRefusal,
)
_MODELS = Operation(
    summary="List the models that answer texts, and the names of all",
    group="OpenAI",
    answers={JSON: dict[str, Any]},
    refusal=OpenAiRefusal,
)
_MODEL = replace(_MODELS, summary="Describe a model, and say whether it is ready")


class OpenAi(Generic[Ticket]):
    """Answers OpenAI's requests from one text plane."""

    def __init__(
        self,
        plane: TextPlane[Ticket],
        *,
        embedder: Embedder[Ticket] | None = None,
        others: Models | None = None,
        queue_full_status: int = 503,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            embedder: None serves no embeddings.
            others: all models, whether they answer texts or not, for KServe's first protocol, which shares the lists of
                models; None lists those that answer texts alone.
            queue_full_status: 503, or 429 for clients that only back off on that.
            wall_clock: seconds since 1970, for what clients show.
        """
        self._plane, self._embedder, self._wall_clock = plane, embedder, wall_clock
        self._others = others
        self._bodies = Bodies()
        self._refuse = partial(openai_refusal, queue_full=queue_full_status)

    def routes(self) -> list[Route]:
        """List the rows of the API."""
        return [
            self._row("POST", "/v1/chat/completions", partial(self._complete, read_chat), _CHAT),
            self._row("POST", "/v1/completions", partial(self._complete, read_completion), _COMPLETION),
            *([self._row("POST", "/v1/embeddings", self._embed, _EMBED)] if self._embedder is not None else []),
            self._row("GET", "/v1/models", self._models, _MODELS),
            self._row("GET", "/v1/models/{model*}", self._model, _MODEL),
        ]

    def _row(self, method: str, path: str, handler: Handler, says: Operation) -> Route:
        return Route(method, path, handler, Action.INFER, self._refuse, says)

    async def _complete(self, read: Callable[[bytes], Call], request: Request) -> Reply:
        context, body = await self._bodies.read(request)
        call = read(body)
        context = context.with_parameters(call.requests[0].parameters)
        if not call.is_stream:
            return json_reply(await self._whole(context, call, len(body)))
        parts = self._parts(context, call, len(body))
        await anext(parts)  # raises what has a status of its own
        return Reply(headers=STREAM_HEADERS, parts=parts)

    async def _whole(self, context: RequestContext, call: Call, size_bytes: int) -> dict[str, Any]:
        async with self._answers(context, call, size_bytes) as answers:
            events: list[list[TokenEvent]] = [[] for _ in answers]
            async with aclosing(merged(answers)) as merging:
                async for index, event in merging:
                    events[index].append(event)
            finished = [
                Finished(events=told, prompt_ids=answer.prompt_ids, token_bytes=answer.token_bytes,
                         account=answer.account)
                for told, answer in zip(events, answers, strict=True)
            ]  # fmt: skip
            return answer_document(call, self._head(call), finished)

    async def _parts(self, context: RequestContext, call: Call, size_bytes: int) -> AsyncGenerator[bytes, None]:
        """Write an answer as a stream. The first part is empty and says that there is a first token: until then errors
        are raised, and this generator has begun, so that closing it always gives everything back."""
        has_begun = False
        try:
            async with self._answers(context, call, size_bytes) as answers:
                chunks = Chunks(call, self._head(call))
                async with aclosing(merged(answers)) as merging:
                    async for index, event in merging:
                        if not has_begun:
                            has_begun = True
                            yield b""
                            for place, answer in enumerate(answers):
                                yield _joined(chunks.first(place, answer.prompt_ids))
                        answer = answers[index]
                        yield _joined(chunks.next(index, event, answer.token_bytes, answer.account))
                ends = chunks.end()
            yield _joined(ends) + DONE
        except Exception as error:
            if not has_begun:
                raise
            yield event_bytes(error_document(refusal_of(_log, error, context)))

    @asynccontextmanager
    async def _answers(
        self, context: RequestContext, call: Call, size_bytes: int
    ) -> AsyncIterator[Sequence[TextAnswer]]:
        """Begin all answers of a call, and give up what is left of them in the end."""
        first = call.requests[0]
        with self._plane.admit(context, first.model, first.version, size_bytes) as ticket:
            async with AsyncExitStack() as stack:
                answers: list[TextAnswer] = []
                for index, asked in enumerate(call.requests):
                    if not call.is_first_of_prompt(index):  # what a prompt becomes is found out once
                        asked = structs.replace(asked, known_ids=tuple(answers[index - 1].prompt_ids))
                    with named(call.names_of(index)):
                        answer = await self._plane.generate(ticket, context, asked)
                    await stack.enter_async_context(aclosing(answer.events))
                    answers.append(answer)
                with named(call.names):
                    yield answers

    async def _embed(self, request: Request) -> Reply:
        assert self._embedder is not None  # there is no row otherwise
        context, body = await self._bodies.read(request)
        call = read_embedding(body)
        asked = call.request
        with self._plane.admit(context, asked.model, asked.version, len(body)) as ticket:
            made = await self._embedder.embed(ticket, context, asked)
            return json_reply(embeddings_document(call, made))

    async def _models(self, request: Request) -> Reply:
        document = models_document(self._known())
        if self._others is not None:
            document["models"] = list(dict.fromkeys(state.model for state in self._others.index()))
        return json_reply(document)

    async def _model(self, request: Request) -> Reply:
        name = request.names["model"]
        models = self._known()
        found = next((model for model in models if model.name == name), None)
        if self._others is not None:  # raises where nobody has this model
            ready = {"name": name, "ready": self._others.model_state(name, "").state == "READY"}
            return json_reply({**(model_document(found) if found is not None else {}), **ready})
        if found is None:
            known = ", ".join(sorted({model.name for model in models})) or "none"
            raise NotFound(f"no model {name[:200]!r} that answers texts; known: {known}")
        return json_reply(model_document(found))

    def _known(self) -> Sequence[TextModel]:
        return [*self._plane.text_models(), *(self._embedder.embedding_models() if self._embedder is not None else ())]

    def _head(self, call: Call) -> Head:
        kind = "chatcmpl" if call.kind == "chat" else "cmpl"
        first = call.requests[0]
        return Head(
            id=f"{kind}-{secrets.token_hex(12)}",
            created=int(self._wall_clock()),
            fingerprint=first.version or version_of(self._plane.text_models(), first.model) or None,
        )


def openai_refusal(error: PenstockError, *, queue_full: int = 503) -> Reply:
    """Say an error as OpenAI's API does: the status and headers of every other refusal, with an object for a body."""
    reply = refusal(error, queue_full=queue_full)
    return replace(reply, body=msgspec.json.encode(error_document(error)))


async def merged(answers: Sequence[TextAnswer]) -> AsyncGenerator[tuple[int, TokenEvent], None]:
    """Read several answers side by side, whichever has an event, each with its place. At most one event of each waits
    to be read, so that a reader that is slow holds all of them up. Closes none of them.

    No more than ``AT_ONCE`` are under way: one request for 128 answers would fill the line before an engine, in which
    others stand, and where the line is shorter than that it would be refused each time that it comes back.
    """
    if len(answers) == 1:
        async for event in answers[0].events:
            yield 0, event
        return
    reading = {asyncio.create_task(_next(answer)): index for index, answer in enumerate(answers[:AT_ONCE])}
    begun = len(reading)
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=reading.__getitem__):
                told, index = task.result(), reading.pop(task)
                if told is not None:
                    reading[asyncio.create_task(_next(answers[index]))] = index
                    yield index, told
                elif begun < len(answers):
                    reading[asyncio.create_task(_next(answers[begun]))] = begun
                    begun += 1
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _next(answer: TextAnswer) -> TokenEvent | None:
    return await anext(answer.events, None)


def _joined(chunks: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(map(event_bytes, chunks))
