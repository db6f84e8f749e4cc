"""One answer, read as it comes: from the engine in this process, or in server-sent events of a core."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.generation.models import NAME
from penstock.generation.values import GenerationRequest
from penstock.runtime.generation import GenerationEngine

_TIMEOUT_S = 120.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer took.

    Attributes:
        first_s: from asking to the first token.
        next_s: from one token to the next, the mean over the answer.
        cached: tokens of the prompt that were not computed again.
    """

    first_s: float
    next_s: float
    cached: int
    prompt_tokens: int


Ask = Callable[[str, int], Answer]
"""Asks for so many tokens after a prompt."""


def engine_asker(engine: GenerationEngine, encode: Callable[[str], list[int]]) -> Ask:
    """Return what asks an engine in this process, whose text nobody decodes."""

    def ask(prompt: str, new_tokens: int) -> Answer:
        came, cached = list[float](), 0
        began = time.perf_counter()
        ids = tuple(encode(prompt))
        engine.admit(GenerationRequest(id="1", prompt_ids=ids, max_new_tokens=new_tokens))
        while engine.running:
            for token in engine.step():
                came.append(time.perf_counter())
                cached = token.cached_tokens
        return _answer(began, came, cached, len(ids))

    return ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a core is asked for a stream over HTTP.

    Attributes:
        path: of its requests.
        body: with the prompt and the number of new tokens.
        is_token: whether an event brings a token.
    """

    path: str
    body: Callable[[str, int], Mapping[str, Any]]
    is_token: Callable[[Mapping[str, Any]], bool]


OPENAI = Protocol(
    path="/v1/completions",
    body=lambda prompt, new_tokens: {
        "model": NAME,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    },
    is_token=lambda event: bool(event["choices"] and event["choices"][0].get("token_ids")),
)
OIP = Protocol(
    path=f"/v2/models/{NAME}/generate_stream",
    body=lambda prompt, new_tokens: {
        "text_input": prompt,
        "parameters": {"max_tokens": new_tokens, "return_token_ids": True},
    },
    is_token=lambda event: bool(event.get("token_ids")),
)


@contextlib.contextmanager
def http_asker(endpoint: str, protocol: Protocol) -> Iterator[Ask]:
    """Yield what asks a core over one connection, which is closed with the block."""
    connection = http.client.HTTPConnection(endpoint, timeout=_TIMEOUT_S)

    def ask(prompt: str, new_tokens: int) -> Answer:
        body = json.dumps(protocol.body(prompt, new_tokens))
        lines = list[tuple[float, bytes]]()
        began = time.perf_counter()
        connection.request("POST", protocol.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        for line in response:  # what they say is read when the clock has stopped
            if line.startswith(b"data: {"):
                lines.append((time.perf_counter(), line))
        if response.status != 200:
            raise RuntimeError(f"{protocol.path}: {response.status}")
        events = [(at, json.loads(line[len(b"data: ") :])) for at, line in lines]
        if any("error" in event for _, event in events):
            raise RuntimeError(f"{protocol.path}: {events[-1][1]}")
        usage = next(event["usage"] for _, event in reversed(events) if event.get("usage"))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        came = [at for at, event in events if protocol.is_token(event)]
        return _answer(began, came, cached, usage["prompt_tokens"])

    with contextlib.closing(connection):
        yield ask


def _answer(began: float, came: list[float], cached: int, prompt_tokens: int) -> Answer:
    gaps = max(1, len(came) - 1)
    return Answer(
        first_s=came[0] - began, next_s=(came[-1] - came[0]) / gaps, cached=cached, prompt_tokens=prompt_tokens
    )
