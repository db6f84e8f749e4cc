"""What answers texts behind every transport: the port of a text data plane, with what goes in and what comes out.

Transports decode, call and encode; a plane tokenizes, checks limits, generates and accounts. The agent's plane decides
per request between device and cloud, the core's queues for an engine. Knows no transport and no engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from numpy.typing import NDArray

from penstock.generation.values import Grammar, Sampling, TokenEvent
from penstock.wire.context import RequestContext
from penstock.wire.inference import Parameter

Ticket = TypeVar("Ticket", bound=AbstractContextManager[Any])
Ticket_contra = TypeVar("Ticket_contra", contravariant=True)


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation that a model's own template makes a prompt of.

    Attributes:
        messages: as OpenAI has them, contents as texts; roles are the template's to know.
        tools: descriptions of functions that the model may call, passed to the template as they are.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


class TextRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that a client asks for; a client that wants several asks several times, with seeds of their own.

    Attributes:
        model: by name; ``name:tag`` and ``name@digest`` were taken apart by the transport.
        version: "" for the default.
        prompt: a text, token ids, or a conversation.
        known_ids: what the prompt became for another answer to it; None where nobody has looked.
        max_new_tokens: None for as many as the model's answers were certified with, or else as the context has room
            for.
        sampling: None for the model's own way, the one that its certificate is about.
        stop: None for the model's own.
        top_logprobs: alternatives told with each token; None tells no log-probabilities.
        parameters: extensions of ours, such as ``local_only``.
    """

    model: str
    version: str = ""
    prompt: str | tuple[int, ...] | Chat
    known_ids: tuple[int, ...] | None = None
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    stop: tuple[str, ...] | None = None
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    parameters: Mapping[str, Parameter] = {}


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors that a client asks for.

    Attributes:
        model: by name.
        version: "" for the default.
        inputs: texts, or their token ids.
        dimensions: numbers of each vector; None for all.
        parameters: extensions of ours, such as ``local_only``.
    """

    model: str
    version: str = ""
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    parameters: Mapping[str, Parameter] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What became of texts whose vectors were asked for.

    Attributes:
        vectors: one for each input, in order, each with one dimension.
        account: who answered, and why, as response parameters.
    """

    vectors: Sequence[NDArray[Any]]
    prompt_tokens: int
    account: Mapping[str, Parameter]


@dataclass(slots=True, kw_only=True)
class TextAnswer:
    """An answer in the making.

    Attributes:
        events: the tokens; reading them may raise as ``penstock.hosting.generation.generator.Generator.generate``
            does. ``aclose`` gives the rest up; whoever does not read to the end has to call it.
        prompt_ids: what the prompt became.
        token_bytes: what one token of the vocabulary stands for, for log-probabilities by token.
        account: who answers, and why, as response parameters; complete when the last event was read.
    """

    events: AsyncGenerator[TokenEvent, None]
    prompt_ids: Sequence[int]
    token_bytes: Callable[[int], bytes]
    account: dict[str, Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A model that texts can be asked of.

    Attributes:
        created_at: in seconds since 1970, when it was pushed or activated; 0 where nobody knows.
        context_tokens: most tokens of prompt and answer together.
    """

    name: str
    version: str
    created_at: int = 0
    context_tokens: int = 0


class TextPlane(Protocol[Ticket]):
    """What answers texts. Admission and credentials are those of the other requests of the same server."""

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None) -> Ticket:
        """Let a request in before its payload is looked at, or raise what keeps it out. Leaving the ticket gives its
        place back, after the last event."""
        ...

    async def generate(self, ticket: Ticket, context: RequestContext, request: TextRequest) -> TextAnswer:
        """Tokenize, check limits, and begin an answer.

        Raises:
            InvalidInput: the prompt or what is asked of it; NotFound: the model is none that generates.
            QuotaExceeded, QueueFull, DeadlineExceeded, Unavailable: refused; nothing was generated.
        """
        ...

    def text_models(self) -> Sequence[TextModel]:
        """List the models that can be asked now."""
        ...


class Embedder(Protocol[Ticket_contra]):
    """What gives vectors of texts, beside a text plane of the same server, which admits requests."""

    async def embed(self, ticket: Ticket_contra, context: RequestContext, request: EmbeddingRequest) -> Embedded:
        """Answer an admitted request.

        Raises:
            InvalidInput: an input, ``dimensions``, or a model that gives no vectors of texts. Others: as a request for
                arrays.
        """
        ...

    def embedding_models(self) -> Sequence[TextModel]:
        """List the models that can be asked now; ``context_tokens`` is the most of one text."""
        ...
