"""A text plane over scripted engines with a real tokenizer and a real template, behind the HTTP server of every room.

Each prompt is answered with itself. What is open, running and made is counted, for tests of clients that go away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np

from penstock.errors import NotFound, PenstockError
from penstock.generation.answer_text import AnswerText
from penstock.generation.chat_template import ChatTemplate
from penstock.generation.plane import Chat, Embedded, EmbeddingRequest, TextAnswer, TextModel, TextRequest
from penstock.generation.tokenizer import Tokenizer, load
from penstock.generation.values import GenerationRequest, Sampling, TokenEvent
from penstock.hosting.generation.generator import Generator
from penstock.hosting.replica import WELL, Health
from penstock.http.generate import Generate
from penstock.http.openai import OpenAi
from penstock.http.routes import Route
from penstock.http.server import HttpLimits, HttpServer
from penstock.policy.access import Action
from penstock.runtime.generation import EngineFacts, GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine
from penstock.wire.context import RequestContext
from tests.penstock.generation.small_tokenizers import files

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
VERSION = "sha256:ab"


@cache
def tokenizer() -> Tokenizer:
    return load(files("byte level"))


def script(**said: object) -> Script:
    (end_id,) = tokenizer().facts.end_ids
    return Script(**{"end_id": end_id, "context_tokens": 1 << 20, **said})  # type: ignore[arg-type]


def breaking() -> Script:
    """Answer "x" with "one!" and fail after the exclamation mark."""
    (broken,) = tokenizer().encode("!")
    prompt, answer = tokenizer().encode("x"), (*tokenizer().encode("one"), broken, broken)
    return script(fail_on=broken, answers={" ".join(map(str, prompt)): answer})


@dataclass(eq=False)
class ScriptedGenerator:
    """The port, with an engine for each request. ``pace`` lets one token through each time that it is released."""

    script: Script
    pace: asyncio.Semaphore | None = None
    running: int = 0
    tokens: int = 0

    @property
    def facts(self) -> EngineFacts:
        return ScriptedEngine(self.script, GenerationOptions()).facts

    async def generate(self, request: GenerationRequest, *, deadline: float) -> AsyncGenerator[TokenEvent, None]:
        engine, text = ScriptedEngine(self.script, GenerationOptions(slots=1)), AnswerText(request, tokenizer().pieces)
        self.running += 1
        try:
            engine.admit(request)
            while not text.ended:
                await asyncio.sleep(0)
                for sampled in engine.step():
                    if self.pace is not None:
                        await self.pace.acquire()
                    self.tokens += 1
                    event = text.add(sampled)
                    if event is not None:
                        yield event
        finally:
            self.running -= 1
            engine.close()

    def health(self) -> Health:
        return WELL

    async def close(self, timeout_s: float) -> None:
        pass


@dataclass
class Ticket:
    plane: ScriptedPlane

    def __enter__(self) -> Ticket:
        self.plane.admitted += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.admitted -= 1


@dataclass
class ScriptedPlane:
    """``refused``: raised for every request that is let in. ``asked``: what reached the plane."""

    generators: dict[str, ScriptedGenerator]
    admitted: int = 0
    refused: PenstockError | None = None
    asked: list[tuple[RequestContext, TextRequest]] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)  # so that no garbage collector closes what the server should

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        if model not in self.generators:
            raise NotFound(f"no model {model!r}; known: {', '.join(sorted(self.generators))}")
        return Ticket(self)

    async def generate(self, ticket: Ticket, context: RequestContext, request: TextRequest) -> TextAnswer:
        self.asked.append((context, request))
        if self.refused is not None:
            raise self.refused
        generator: Generator = self.generators[request.model]
        asked = GenerationRequest(
            id=f"{id(ticket)}-{len(self.asked)}",
            prompt_ids=tuple(_ids(request.prompt)),
            max_new_tokens=request.max_new_tokens or 64,
            sampling=request.sampling or Sampling(),
            stop=request.stop or (),
            top_logprobs=request.top_logprobs,
        )
        events = generator.generate(asked, deadline=math.inf)
        assert isinstance(events, AsyncGenerator)
        self.kept.append(events)
        return TextAnswer(
            events=events,
            prompt_ids=asked.prompt_ids,
            token_bytes=tokenizer().pieces.bytes_of,
            account={"served_by": "edge", "reason": "kept"},
        )

    def text_models(self) -> Sequence[TextModel]:
        return [TextModel(name=name, version=VERSION, created_at=7, context_tokens=512) for name in self.generators]

    async def embed(self, ticket: Ticket, context: RequestContext, request: EmbeddingRequest) -> Embedded:
        rows = [tokenizer().encode(text) if isinstance(text, str) else list(text) for text in request.inputs]
        vectors = [np.array([len(row), sum(row)], np.float32) for row in rows]
        return Embedded(vectors=vectors, prompt_tokens=sum(map(len, rows)), account={"served_by": "edge"})

    def embedding_models(self) -> Sequence[TextModel]:
        return [TextModel(name="vectors", version=VERSION, context_tokens=8)]


def _ids(prompt: str | tuple[int, ...] | Chat) -> Sequence[int]:
    if isinstance(prompt, Chat):
        prompt = ChatTemplate({"default": TEMPLATE}, {}).render(prompt.messages, at=datetime(2026, 1, 1, tzinfo=UTC))
    return tokenizer().encode(prompt) if isinstance(prompt, str) else prompt


@dataclass(frozen=True)
class House:
    """A server; ``tcp`` is its URL and ``socket`` its unix socket."""

    plane: ScriptedPlane
    tcp: str
    socket: Path

    def model(self, name: str) -> ScriptedGenerator:
        return self.plane.generators[name]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is generated and nothing is admitted."""
        return not self.plane.admitted and not any(one.running for one in self.plane.generators.values())


class _NoLane:
    """Hands every request over to the table."""

    def prepare(self, target: str, headers: object) -> None:
        return None

    async def answer(self, prepared: None, body: bytes) -> bytes:
        raise AssertionError("nothing was prepared")


@asynccontextmanager
async def serving(routes: Sequence[Route], socket: Path, *, write_s: float = 30.0) -> AsyncIterator[str]:
    """Serve rows on a free port and on a unix socket; the URL of the port."""
    limits = HttpLimits(max_body_bytes=1 << 24, max_body_setting="none", body_s=5.0, write_s=write_s)

    def authenticate(credential: str, action: Action) -> str:
        return credential.removeprefix("Bearer ")

    server = HttpServer(routes, _NoLane(), limits, authenticate=authenticate)
    address = await server.listen_tcp("127.0.0.1", 0, setting="none")
    await server.listen_unix(socket)
    try:
        yield f"http://{address}"
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def text_house(folder: Path, *, write_s: float = 30.0) -> AsyncIterator[House]:
    """Serve ``echo``; ``paced``, token by token; ``endless``; ``breaks`` in its answer to "x"."""
    plane = ScriptedPlane(
        {
            "echo": ScriptedGenerator(script()),
            "paced": ScriptedGenerator(script(), pace=asyncio.Semaphore(0)),
            "endless": ScriptedGenerator(script(end_id=None)),
            "breaks": ScriptedGenerator(breaking()),
        }
    )
    face = OpenAi(plane, embedder=plane, wall_clock=lambda: 1_700_000_000.5)
    async with serving([*face.routes(), *Generate(plane).routes()], folder / "s.sock", write_s=write_s) as url:
        yield House(plane=plane, tcp=url, socket=folder / "s.sock")
