"""What both clients share of texts: what is asked, what an answer says, and how the bytes of a stream become its parts.

Asks by OpenAI's API. No transport, no clock: those belong to ``penstock.sdk.client`` and ``penstock.sdk.aio``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import msgspec

from penstock.errors import Internal, InvalidInput, Unavailable
from penstock.generation.values import Usage
from penstock.openai.completions import ToldUsage, named_token
from penstock.openai.sse import SseDecoder
from penstock.openai.streams import WHOLE, ChunkReader
from penstock.sdk.call import checked_parameters, number_of
from penstock.wire.inference import Parameter

Message = Mapping[str, Any]
"""A message of a conversation: ``{"role": "user", "content": "..."}``."""

Prompt = str | Sequence[int]
"""A text, or token ids."""


class TextOptions(TypedDict, total=False):
    """What may be asked of an answer, by keyword; what is left out is the model's own way.

    Attributes:
        max_new_tokens: the answer has at most so many.
        stop: a string that ends the answer and is no part of it, or several; ``[]`` is none.
        temperature: 0 takes the likeliest token each time.
        top_p: the smallest set of the likeliest tokens that has this share stays; only with a temperature.
        top_k: as many of the likeliest tokens stay; only with a temperature.
        min_p: tokens that have this share of the likeliest one's probability stay; only with a temperature.
        seed: the same seed gives the same answer; only with a temperature.
        presence_penalty: taken off the logit of each token that the answer holds.
        frequency_penalty: taken off as often as the answer holds it.
        repetition_penalty: logits of tokens that prompt or answer hold are divided by it, as vLLM has it.
        logprobs: tell the log-probability of each token, and so many alternatives.
        response_format: what the answer has to look like, as OpenAI has it.
        choices: the answer is one of these texts.
        tools: descriptions of functions, for the model's chat template.
        version: a tag, a digest, or "" for the default version.
        timeout: seconds for the whole answer, all tries together; the server is told what remains.
        priority: 0 is the default, 1 the highest.
        parameters: further parameters, such as ``local_only``.
        request_id: comes back in logs of the servers that the request passes.
    """

    max_new_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logprobs: int | None
    response_format: Mapping[str, Any] | None
    choices: Sequence[str] | None
    tools: Sequence[Mapping[str, Any]] | None
    version: str
    timeout: float | None
    priority: int
    parameters: Mapping[str, Parameter] | None
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """What one event of a stream adds to an answer.

    Attributes:
        text: may be "" where the event only ends the answer.
        token_ids: empty where the server tells none.
        logprobs: one for each token, where they were asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A whole answer.

    Attributes:
        text: without the stop string that ended it.
        token_ids: with the token that ended it; empty where the server tells none.
        logprobs: the natural logarithm of each token's probability; empty unless asked for.
        top_logprobs: for each token the likeliest ones with theirs, likeliest first; empty unless asked for.
        finish_reason: ``stop``: the model ended it, or said a stop string; ``length``: a limit cut it.
        stop_reason: the stop string or token that ended it.
        usage: tokens that it took; None where the server does not say.
        version: what answered; "" where the server does not say.
        served_by: ``edge``, ``cloud`` or ``mixed``; "" where the server does not say.
        confidence: in [0, 1], what was held against ``threshold``; None where nobody says.
        threshold: the certified one; None where there is none.
        certificate: digest of the certificate in force, or "".
        reason: why this one answered (``confident``, ``escalated``, ...), or "".
        parameters: everything that the server said of itself.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish_reason: str
    stop_reason: str | int | None = None
    usage: Usage | None = None
    model: str = ""
    version: str = ""
    id: str = ""
    served_by: str = ""
    confidence: float | None = None
    threshold: float | None = None
    certificate: str = ""
    reason: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCall:
    """A request for a text, ready to be sent.

    Attributes:
        timeout_s: as the caller gave it; None for the client's own.
    """

    path: str
    body: bytes
    request_id: str
    timeout_s: float | None
    top_logprobs: int


def text_call(
    model: str, prompt: Prompt | Sequence[Message], options: TextOptions, *, stream: bool = False
) -> TextCall:
    """Make the request for one answer; a sequence of mappings is a conversation.

    Raises:
        InvalidInput: a prompt that is none, a priority or a parameter that cannot be. TypeError: no such option.
    """
    if unknown := sorted(options.keys() - TextOptions.__annotations__.keys()):
        raise TypeError(f"no option {unknown[0]!r}; known: {', '.join(TextOptions.__annotations__)}")
    asked = _prompt(prompt)
    is_chat = "messages" in asked
    count, version, stop = options.get("logprobs"), options.get("version", ""), options.get("stop")
    choices, logprobs = options.get("choices"), dict[str, Any]()
    if count is not None:
        logprobs = {"logprobs": True, "top_logprobs": count} if is_chat else {"logprobs": count}
        logprobs["return_tokens_as_token_ids"] = True
    named = {
        "max_tokens": options.get("max_new_tokens"),
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
        "structured_outputs": None if choices is None else {"choice": list(choices)},
        "stream": stream or None,
        "stream_options": {"include_usage": True} if stream else None,
        "penstock": checked_parameters(options.get("parameters"), options.get("priority", 0)) or None,
    }
    same = (
        "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "response_format", "tools",
    )  # fmt: skip
    fields = named | {name: options.get(name) for name in same}
    body = {"model": _versioned(model, version), **asked, "return_token_ids": True, **logprobs}
    body |= {name: value for name, value in fields.items() if value is not None}
    try:
        encoded = msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"options: not to be written as JSON: {error}", field="options") from None
    return TextCall(
        path="/v1/chat/completions" if is_chat else "/v1/completions",
        body=encoded,
        request_id=options.get("request_id", ""),
        timeout_s=options.get("timeout"),
        top_logprobs=count or 0,
    )


class _Said(msgspec.Struct, kw_only=True):
    content: str | None = None


class _Alternative(msgspec.Struct, kw_only=True):
    token: str
    logprob: float | None  # null where a server behind the server told none


class _Entry(_Alternative, kw_only=True):
    top_logprobs: list[_Alternative] = []


class _Logprobs(msgspec.Struct, kw_only=True):
    content: list[_Entry] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct, kw_only=True):
    text: str | None = None
    message: _Said | None = None
    delta: _Said | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class _Document(msgspec.Struct, kw_only=True):
    choices: list[_Choice]
    id: str = ""
    model: str = ""
    system_fingerprint: str | None = None
    usage: ToldUsage | None = None
    penstock: dict[str, bool | int | float | str] = {}


class TextReader:
    """Reads one answer, whole or as a stream, and holds what it has said so far."""

    def __init__(self, call: TextCall) -> None:
        self._top = call.top_logprobs
        self._decoder, self._chunks = SseDecoder(), ChunkReader()
        self._parts: list[TextPart] = []
        self._tops: list[tuple[tuple[int, float], ...]] = []
        self._head: _Document | None = None
        self._end: _Choice | None = None
        self._usage: ToldUsage | None = None
        self._parameters: Mapping[str, Parameter] = {}

    def feed(self, data: bytes) -> list[TextPart]:
        """Take the next bytes of a stream, however they were cut, and return what they add to the answer.

        Raises:
            Internal: they are no stream of chunks. Unavailable: the answer was given up. The error that was sent.
        """
        parts = []
        for event in self._decoder.feed(data):
            chunk = self._chunks.read(event)
            if chunk is not None:
                parts += self._take(chunk)
        return parts

    def whole(self, body: bytes) -> Text:
        """Read an answer that came in one piece.

        Raises:
            Internal: it is none. Unavailable: the server gave it up.
        """
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Internal(f"the server's answer is not JSON: {body[:200]!r}") from None
        self._take(document)
        if self._end is None:
            raise Internal("the server's answer says no reason why it ended")
        if self._end.finish_reason not in WHOLE:
            raise Unavailable(f"the server gave the answer up: finish_reason {self._end.finish_reason!r}")
        return self.answer()

    def end(self) -> None:
        """Call at the end of a stream.

        Raises:
            Unavailable: it ended before the answer did.
        """
        self._chunks.end()

    def answer(self) -> Text:
        """Return the answer, once it has been read to its end.

        Raises:
            InvalidInput: there is more to be read, or the stream broke off.
        """
        head, end = self._head, self._end
        if head is None or end is None:
            raise InvalidInput("answer: not whole yet; read the stream to its end first", field="answer")
        said = self._parameters
        return Text(
            text="".join(part.text for part in self._parts),
            token_ids=tuple(token for part in self._parts for token in part.token_ids),
            logprobs=tuple(logprob for part in self._parts for logprob in part.logprobs),
            top_logprobs=tuple(self._tops),
            finish_reason=end.finish_reason or "",
            stop_reason=end.stop_reason,
            usage=None if self._usage is None else self._usage.value(),
            model=head.model,
            version=head.system_fingerprint or "",
            id=head.id,
            served_by=str(said.get("served_by", "")),
            confidence=number_of(said.get("confidence")),
            threshold=number_of(said.get("threshold")),
            certificate=str(said.get("certificate", "")),
            reason=str(said.get("reason", "")),
            parameters=said,
        )

    def _take(self, document: object) -> list[TextPart]:
        try:
            read = msgspec.convert(document, _Document)
        except (msgspec.ValidationError, RecursionError) as error:
            raise Internal(f"the server sent something that is no answer: {error}") from None
        self._head = self._head or read
        self._usage = read.usage or self._usage
        self._parameters = read.penstock or self._parameters
        parts = []
        for choice in read.choices:
            part = self._part(choice)
            if part.text or part.token_ids or part.logprobs:
                self._parts.append(part)
                parts.append(part)
            if choice.finish_reason is not None:
                self._end = choice
        return parts

    def _part(self, choice: _Choice) -> TextPart:
        said = choice.message or choice.delta
        text = (choice.text if said is None else said.content) or ""
        logprobs: tuple[float, ...] = ()
        told = choice.logprobs
        if told is not None and told.content is not None:
            logprobs = tuple(_number(entry.logprob) for entry in told.content)
            self._tops += [
                tuple((named_token(one.token), _number(one.logprob)) for one in entry.top_logprobs)
                for entry in told.content
            ]
        elif told is not None and told.token_logprobs is not None:
            logprobs = tuple(map(_number, told.token_logprobs))
            self._tops += [self._likeliest(one or {}) for one in told.top_logprobs or [None] * len(logprobs)]
        return TextPart(text=text, token_ids=tuple(choice.token_ids or ()), logprobs=logprobs)

    def _likeliest(self, told: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        # a completion's alternatives hold the token itself beside as many as were asked for
        pairs = sorted(((named_token(name), logprob) for name, logprob in told.items()), key=lambda pair: -pair[1])
        return tuple(pairs[: self._top])


def _prompt(prompt: Prompt | Sequence[Message]) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, bytes | Mapping) or not hasattr(prompt, "__iter__"):
        raise InvalidInput("prompt: expected a text, token ids, or a list of messages", field="prompt")
    items: list[Any] = list(prompt)
    if items and all(isinstance(item, Mapping) for item in items):
        return {"messages": items}
    try:
        return {"prompt": [item.__index__() for item in items]}  # numpy's integers, too
    except AttributeError:
        raise InvalidInput("prompt: expected a text, token ids, or a list of messages", field="prompt") from None


def _number(logprob: float | None) -> float:
    return math.nan if logprob is None else logprob


def _versioned(model: str, version: str) -> str:
    if not version:
        return model
    return f"{model}@{version}" if ":" in version else f"{model}:{version}"
