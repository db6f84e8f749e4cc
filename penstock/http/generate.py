"""The Open Inference Protocol's generate extension over HTTP, for whatever text plane there is behind.

``POST /v2/models/{model}[/versions/{version}]/generate`` answers whole, ``/generate_stream`` in server-sent events.
What goes wrong before the first token is an error with a status; after it, an event ``{"error": ...}``. A client that
goes away closes the answer. Decides nothing: who is let in, and what is answered, is the plane's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NotRequired, TypedDict

from penstock.generation.plane import TextAnswer, TextPlane, Ticket
from penstock.generation.values import TokenEvent
from penstock.http.operations import EVENTS, JSON, Operation, Raw
from penstock.http.routes import Handler, Reply, Request, Route, json_reply, refusal
from penstock.http.texts import STREAM_HEADERS, read_body, version_of
from penstock.openai.answers import broken_off
from penstock.openai.field_names import named
from penstock.openai.oip_texts import TextAsk, Told, generate_document, has_news, read_generate
from penstock.openai.sse import event_bytes
from penstock.policy.access import Action
from penstock.process.telemetry import refusal_of

EXTENSION = "generate"
"""What a server's metadata call it."""

_log = logging.getLogger(__name__)


class GenerateBody(TypedDict):
    """A prompt; fields beside these are parameters, as ``max_tokens`` and ``temperature``."""

    text_input: str
    id: NotRequired[str]
    parameters: NotRequired[dict[str, Any]]


class GenerateAnswer(TypedDict):
    """A text, and how it came to its end."""

    model_name: str
    model_version: NotRequired[str]
    text_output: str
    finish_reason: NotRequired[str | None]
    usage: NotRequired[dict[str, Any]]
    parameters: NotRequired[dict[str, Any]]


_WHOLE = Operation(
    summary="Answer a prompt with a whole text",
    group="texts",
    asks={JSON: GenerateBody},
    answers={JSON: GenerateAnswer},
)
_STREAM = Operation(
    summary="Answer a prompt with a text in parts",
    group="texts",
    asks={JSON: GenerateBody},
    answers={EVENTS: Raw("Server-sent events; each has one part of the answer, in the form of a whole one.")},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    ask: TextAsk
    answer: TextAnswer
    version: str

    def document(self, events: Sequence[TokenEvent]) -> dict[str, Any]:
        answer = self.answer
        told = Told(events=events, version=self.version, token_bytes=answer.token_bytes, account=answer.account)
        return generate_document(self.ask, told)


class Generate(Generic[Ticket]):
    """Answers the generate extension's requests from one text plane."""

    def __init__(self, plane: TextPlane[Ticket], *, queue_full_status: int = 503) -> None:
        """``queue_full_status``: 503, or 429 for clients that only back off on that."""
        self._plane = plane
        self._refuse = partial(refusal, queue_full=queue_full_status)

    def routes(self) -> list[Route]:
        """List the rows of the extension, for a model's default version and for one that is named."""
        verbs: dict[str, tuple[Handler, Operation]] = {
            "generate": (self._whole, _WHOLE),
            "generate_stream": (self._stream, _STREAM),
        }
        model = "/v2/models/{model}"
        return [
            Route("POST", f"{path}/{verb}", handler, Action.INFER, self._refuse, says)
            for path in (model, model + "/versions/{version}")
            for verb, (handler, says) in verbs.items()
        ]

    async def _whole(self, request: Request) -> Reply:
        async with self._begun(request) as begun:
            events = [event async for event in begun.answer.events]
            return json_reply(begun.document(events))

    async def _stream(self, request: Request) -> Reply:
        parts = self._parts(request)
        await anext(parts)  # raises what has a status of its own
        return Reply(headers=STREAM_HEADERS, parts=parts)

    async def _parts(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Write an answer as a stream. The first part is empty and says that there is a first token: until then errors
        are raised, and this generator has begun, so that closing it always gives everything back."""
        has_begun = False
        try:
            async with self._begun(request) as begun:
                is_whole = False
                async for event in begun.answer.events:
                    if not has_begun:
                        has_begun = True
                        yield b""
                    if has_news(begun.ask, event):
                        yield event_bytes(begun.document([event]))
                    is_whole = event.finish is not None
                if not is_whole:
                    raise broken_off()
        except Exception as error:
            if not has_begun:
                raise
            yield event_bytes({"error": refusal_of(_log, error, request.context).message})

    @asynccontextmanager
    async def _begun(self, request: Request) -> AsyncIterator[_Begun]:
        """Let a request in, read it, begin its answer, and give up what is left of that in the end."""
        model, version = request.names["model"], request.names.get("version", "")
        with self._plane.admit(request.context, model, version, request.body.size_bytes) as ticket:
            context, body = await read_body(request)
            ask = read_generate(body, model=model, version=version)
            context = context.with_parameters(ask.request.parameters)
            with named(ask.names):
                answer = await self._plane.generate(ticket, context, ask.request)
                async with aclosing(answer.events):
                    named_version = version or version_of(self._plane.text_models(), model)
                    yield _Begun(ask=ask, answer=answer, version=named_version)
