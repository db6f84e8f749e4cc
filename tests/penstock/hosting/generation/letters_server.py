"""A small server of OpenAI's completions over a real socket: it answers with letters, or replays what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from penstock.errors import PenstockError
from penstock.generation.answer_text import AnswerText
from penstock.generation.values import GenerationRequest, TokenEvent
from penstock.hosting.generation.loop import EngineLoop
from penstock.hosting.generation.settings import LineSettings
from penstock.runtime.generation import GenerationEngine, GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine
from tests.penstock.hosting.generation.letters import letters

DONE = b"data: [DONE]\n\n"
Recorded = Callable[[dict[str, Any]], Iterable[bytes | float]]
"""Makes, of a request's body, the bytes of an answer, head included. A number is a pause; at the end it is cut."""

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    """One chunk as vLLM writes it."""
    ids = [ord(letter) for letter in text]
    choice = {
        "index": 0,
        "text": text,
        "token_ids": ids,
        "finish_reason": finish,
        "stop_reason": None,
        "logprobs": {
            "tokens": [f"token_id:{token}" for token in ids],
            "token_logprobs": [-0.5] * len(ids),
            "top_logprobs": [{f"token_id:{token}": -0.5, f"token_id:{token + 1}": -1.5} for token in ids],
            "text_offset": [0] * len(ids),
        },
    }
    return event({"id": "cmpl-1", "object": "text_completion", "choices": [choice | more], "usage": None})


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    details = {"cached_tokens": cached}
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return event({"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": told})


class Server:
    """``answer`` may be changed while it runs; ``bodies`` are the requests, ``closed`` counts clients that went."""

    def __init__(
        self,
        answer: Recorded | None = None,
        engine: GenerationEngine | None = None,
        text: Callable[[GenerationRequest], AnswerText] = letters,
    ) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.closed = 0
        self.url = ""
        if engine is None:
            engine = ScriptedEngine(Script(context_tokens=100_000), GenerationOptions(slots=4, chunk_tokens=512))
        self.engine = engine
        self._loop = EngineLoop(engine, text, LineSettings().of(engine.facts), asyncio.get_running_loop().time)
        self.connections: set[asyncio.Task[None]] = set()
        self._ids = itertools.count()
        self._queues: dict[str, asyncio.Queue[TokenEvent | PenstockError]] = {}

    async def step_for_ever(self) -> None:
        """Step the engine, as the worker of a server does."""
        while True:
            turn = self._loop.turn()
            for id, told in (*turn.events, *turn.failures):
                if id in self._queues:
                    self._queues[id].put_nowait(told)
            await asyncio.sleep(0.002)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            await self._exchange(reader, writer)
        finally:
            self.connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = json.loads(await reader.readexactly(size))
            self.bodies.append(body)
            gone = asyncio.ensure_future(reader.read())
            talk = asyncio.ensure_future(self._talk(body, writer))
            try:
                await asyncio.wait({gone, talk}, return_when=asyncio.FIRST_COMPLETED)
                self.closed += not talk.done()
            finally:
                talk.cancel()
                gone.cancel()
                await asyncio.gather(talk, gone, return_exceptions=True)

    async def _talk(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.answer is None:
            await self._generate(body, writer)
            return
        for piece in self.answer(body):
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)

    async def _generate(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        request = GenerationRequest(
            id=str(next(self._ids)),
            prompt_ids=tuple(body["prompt"]),
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
            ignore_end=body.get("ignore_eos", False),
        )
        told: asyncio.Queue[TokenEvent | PenstockError] = asyncio.Queue()
        self._queues[request.id] = told
        self._loop.submit(request, deadline=math.inf)
        writer.write(STREAM)
        try:
            while True:
                token = await told.get()
                assert isinstance(token, TokenEvent)
                more = {"stop_reason": token.matched_stop, "token_ids": [token.token], "logprobs": None}
                writer.write(chunk(token.text, token.finish, **more))
                await writer.drain()
                if token.usage is not None:
                    writer.write(usage(token.usage.prompt_tokens, token.usage.completion_tokens) + DONE)
                    await writer.drain()
                    return
        finally:
            del self._queues[request.id]
            self._loop.cancel(request.id)


@asynccontextmanager
async def serving(
    answer: Recorded | None = None, *, tls: ssl.SSLContext | None = None, **runs: Any
) -> AsyncIterator[Server]:
    """``runs`` are the engine and the text of a server that replays nothing."""
    made = Server(answer, **runs)
    listening = await asyncio.start_server(made.connected, "127.0.0.1", 0, ssl=tls)
    made.url = f"http{'' if tls is None else 's'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    stepping = asyncio.create_task(made.step_for_ever())
    try:
        yield made
    finally:
        listening.close()
        tasks = [stepping, *made.connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
