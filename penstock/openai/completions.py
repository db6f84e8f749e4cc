"""What is asked of another server's ``/v1/completions``, and the tokens that its stream holds: the client's side.

Prompts go as token ids and tokens come back as ids, so that nothing is tokenized twice; servers that tell no ids are
understood, too. Tokens are counted by ids or by the usage, never by chunks: a server merges chunks when it is read
slowly. Knows no socket; whether a stream is whole is ``penstock.openai.streams``'s to say.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from penstock.errors import Internal, PenstockError
from penstock.generation.values import GenerationRequest, Grammar, TokenEvent, Usage
from penstock.openai.field_names import Names
from penstock.openai.sse import Event
from penstock.openai.streams import ChunkReader

NO_TOKEN = -1
"""The token of an event whose id the server did not tell."""

_NAMED_BY_ID = "token_id:"


class _Logprobs(msgspec.Struct, kw_only=True):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct, kw_only=True):
    text: str = ""
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Details(msgspec.Struct, kw_only=True):
    cached_tokens: int | None = None


class ToldUsage(msgspec.Struct, kw_only=True):
    """What a server says that an answer took."""

    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    def value(self) -> Usage:
        """Return it as a value of ours."""
        details, prompt = self.prompt_tokens_details, self.prompt_tokens
        cached = 0 if details is None else details.cached_tokens or 0
        # servers have said more cached tokens than there were
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=self.completion_tokens,
            cached_tokens=max(0, min(cached, prompt)),
        )


class _Chunk(msgspec.Struct, kw_only=True):
    choices: list[_Choice]
    usage: ToldUsage | None = None


OUR_NAMES: Names = {"prompt": "prompt_ids", "structured_outputs": "grammar", "logprobs": "top_logprobs"}
"""What a server calls the fields that :func:`completion_body` writes, and what they are here."""


def completion_body(request: GenerationRequest, model: str) -> bytes:
    """Write the body that asks for one answer as a stream. Fields of vLLM's are sent where they change something only:
    another server may refuse them."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": request.top_logprobs or 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    optional: dict[str, tuple[object, object]] = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "seed": (sampling.seed, None),
        "logit_bias": ({str(token): bias for token, bias in sampling.logit_bias.items()}, {}),
        "stop": (list(request.stop), []),
        "stop_token_ids": (list(request.stop_ids), []),
        "ignore_eos": (request.ignore_end, False),
        "structured_outputs": (_structured(request.grammar), None),
    }
    body |= {name: value for name, (value, usual) in optional.items() if value != usual}
    return msgspec.json.encode(body)


class CompletionReader:
    """Makes events of one stream. The last one waits for the usage, which comes after it.

    Attributes:
        has_ended: the last event was returned; nothing that comes matters any more.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._chunks = ChunkReader()
        self._tokens = 0
        self._last: TokenEvent | None = None
        self.has_ended = False

    def read(self, event: Event) -> list[TokenEvent]:
        """Return the tokens of one event of the stream.

        Raises:
            Internal: it is no chunk of a completion. Unavailable: the answer was given up. The error that was sent.
        """
        if self.has_ended:
            return []
        if self._last is not None:
            return self._after_the_end(event)
        document = self._chunks.read(event)
        if document is None:
            return []
        chunk = _converted(document)
        return [token for choice in chunk.choices for token in self._tokens_of(choice, chunk.usage)]

    def end(self) -> list[TokenEvent]:
        """Return what is left at the end of the stream: the last event, where the server sent no usage.

        Raises:
            Unavailable: the answer is not whole.
        """
        if self._last is None or self.has_ended:
            self._chunks.end()
            return []
        return self._ended(None)

    def _after_the_end(self, event: Event) -> list[TokenEvent]:
        """Look for the usage. The answer is whole: whatever else happens to the server is not its reader's concern."""
        try:
            document = self._chunks.read(event)
            usage = None if document is None else _converted(document).usage
        except PenstockError:
            document, usage = None, None
        return self._ended(usage) if document is None or usage is not None else []

    def _tokens_of(self, choice: _Choice, usage: ToldUsage | None) -> list[TokenEvent]:
        ids = _ids(choice)
        events = [
            TokenEvent(
                token=token,
                text=choice.text if place == len(ids) - 1 else "",
                logprob=_logprob(choice.logprobs, place),
                top=_top(choice.logprobs, place, self._request.top_logprobs or 0),
            )
            for place, token in enumerate(ids)
        ]
        self._tokens += len(ids) - (ids == [NO_TOKEN] and not choice.text)
        if choice.finish_reason is None:
            return events
        self._last = msgspec.structs.replace(
            events.pop(),
            finish="length" if choice.finish_reason == "length" else "stop",
            matched_stop=choice.stop_reason,
        )
        return events if usage is None else [*events, *self._ended(usage)]

    def _ended(self, usage: ToldUsage | None) -> list[TokenEvent]:
        assert self._last is not None
        self.has_ended = True
        counted = Usage(prompt_tokens=len(self._request.prompt_ids), completion_tokens=self._tokens)
        return [msgspec.structs.replace(self._last, usage=counted if usage is None else usage.value())]


def _converted(document: dict[str, Any]) -> _Chunk:
    try:
        return msgspec.convert(document, _Chunk)
    except msgspec.ValidationError as error:
        raise Internal(f"the server sent a chunk that is no completion's: {error}") from None


def _ids(choice: _Choice) -> list[int]:
    """Return the tokens of a chunk. One that says something without them is one of an unknown id."""
    if choice.token_ids:
        return choice.token_ids
    named = choice.logprobs.tokens if choice.logprobs is not None else []
    ids = [named_token(name) for name in named]
    if ids:
        return ids
    return [NO_TOKEN] if choice.text or choice.finish_reason is not None else []


def named_token(name: str) -> int:
    """Return the token of a name by id, ``token_id:17``; ``NO_TOKEN`` for any other name."""
    digits = name.removeprefix(_NAMED_BY_ID)
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else NO_TOKEN


def _logprob(logprobs: _Logprobs | None, place: int) -> float:
    found = logprobs.token_logprobs[place] if logprobs is not None and place < len(logprobs.token_logprobs) else None
    return math.nan if found is None else found


def _top(logprobs: _Logprobs | None, place: int, count: int) -> tuple[tuple[int, float], ...]:
    """Return the alternatives that are told by id; by text nobody can say which tokens they are."""
    told = None if logprobs is None else logprobs.top_logprobs
    if not count or told is None or place >= len(told):
        return ()
    pairs = [(named_token(name), logprob) for name, logprob in (told[place] or {}).items()]
    known = [pair for pair in pairs if pair[0] != NO_TOKEN]
    return tuple(sorted(known, key=lambda pair: -pair[1])[:count])


def _structured(grammar: Grammar | None) -> dict[str, Any] | None:
    match grammar:
        case None:
            return None
        case Grammar(kind="json_schema", text=text):
            return {"json": msgspec.json.decode(text)}
        case Grammar(kind="choice", text=text):
            return {"choice": msgspec.json.decode(text)}
        case Grammar(text=text):
            return {"regex": text}
