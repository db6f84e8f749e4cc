"""From a client's words to what an engine is asked, for the device and the core alike.

Owns what a request means that leaves something open, and what is refused before an engine is asked: a prompt that
cannot be, an answer that the context has no room for. What one of them would generate for a request, the other would,
too. Who may ask, and how much, is the data plane's; draws no random number and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from penstock.errors import InvalidInput
from penstock.generation import choices
from penstock.generation.chat_template import ChatTemplate
from penstock.generation.plane import Chat, TextRequest
from penstock.generation.tokenizer import Tokenizer
from penstock.generation.values import GenerationRequest, Sampling
from penstock.hosting.generation.settings import TextLimits
from penstock.policy.text_answers import AnswerSpec
from penstock.policy.token_budget import TokenLimits
from penstock.runtime.generation import EngineFacts
from penstock.runtime.generation.requests import check

GREEDY = Sampling()
_QUICK_CHARS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """How a model reads prompts.

    Attributes:
        template: None for a model that holds no conversations.
        answer: how its certified answers were made; None where nothing was certified.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    answer: AnswerSpec | None


def is_quick(request: TextRequest) -> bool:
    """Say whether preparing a request takes no time that an event loop would feel: a conversation is rendered by a
    template that others wrote, and tokenizing a long text takes milliseconds."""
    if request.known_ids is not None:
        return True
    match request.prompt:
        case str() as text:
            return len(text) <= _QUICK_CHARS
        case Chat():
            return False
        case tuple():
            return True


def is_repeatable(request: TextRequest) -> bool:
    """Say whether the same request again is answered the same: greedily, or with a seed that the client named."""
    sampling = request.sampling or GREEDY
    return sampling.is_greedy or sampling.seed is not None


def prepared(
    request: TextRequest,
    reads: Vocabulary,
    facts: EngineFacts,
    limits: TextLimits,
    *,
    id: str,
    seed: int,
    at: datetime,
) -> GenerationRequest:
    """Return what an engine is asked.

    Args:
        reads: the model's tokenizer and template.
        facts: what its engine can take.
        id: of the generation.
        seed: of a request that samples and names none.
        at: the date that a template may tell.

    Raises:
        InvalidInput: no prompt, one that cannot be read, or more tokens than there is room for; the message has both
            numbers.
    """
    token_limits = limits.of(facts)
    ids = _prompt_ids(request, reads, token_limits, at)
    sampling = request.sampling or GREEDY
    if not sampling.is_greedy and sampling.seed is None:
        sampling = msgspec.structs.replace(sampling, seed=seed)
    stop = request.stop if request.stop is not None else (reads.answer.stop if reads.answer else ())
    usual = choices.grammar_of(reads.answer.options) if reads.answer and reads.answer.options else None
    asked = GenerationRequest(
        id=id,
        prompt_ids=tuple(ids),
        max_new_tokens=_new_tokens(
            request.max_new_tokens, len(ids), reads.answer, token_limits, limits.usual_new_tokens
        ),
        sampling=sampling,
        stop=stop,
        top_logprobs=request.top_logprobs,
        grammar=request.grammar or usual,
    )
    if reads.answer is not None and _is_scored(asked, reads.answer):
        asked = _with_options(asked, request.max_new_tokens, reads.tokenizer, facts, token_limits)
    check(asked, facts, ())
    return asked


def _is_scored(asked: GenerationRequest, answer: AnswerSpec) -> bool:
    """Say whether an answer is the likeliest of options. What samples one, stops elsewhere, or wants to hear of
    alternatives has it held to the grammar instead, as every other model does.
    """
    is_usual = asked.sampling.is_plain and not asked.top_logprobs and set(asked.stop) == set(answer.stop)
    return answer.is_choice and is_usual and asked.grammar is not None and asked.grammar.kind == "choice"


def _with_options(
    asked: GenerationRequest, limit: int | None, tokenizer: Tokenizer, facts: EngineFacts, limits: TokenLimits
) -> GenerationRequest:
    """Let the options of a request be scored.

    Args:
        limit: of the answer's tokens, that the client names.

    Raises:
        InvalidInput: options that cannot be scored, or that are longer than the answer may be.
    """
    assert asked.grammar is not None, "seen before"
    texts = choices.texts_of(asked.grammar)
    options = choices.options_of(texts, tokenizer, stop=asked.stop, end_ids=facts.end_ids)
    if limit is not None and limit < options.longest:
        raise InvalidInput(
            f"max_tokens is {limit}, and the longest of the choices has {options.longest} tokens with its end",
            field="max_tokens",
        )
    most = limits.answer_tokens(len(asked.prompt_ids), options.longest)
    return msgspec.structs.replace(asked, options=options, max_new_tokens=most)


def _prompt_ids(request: TextRequest, reads: Vocabulary, limits: TokenLimits, at: datetime) -> Sequence[int]:
    if request.known_ids is not None:
        return request.known_ids
    match request.prompt:
        case tuple() as ids:
            return ids
        case Chat() as chat:
            if reads.template is None:
                raise InvalidInput(
                    f"model {request.model!r} has no chat template; send a prompt to /v1/completions", field="messages"
                )
            text, is_plain = reads.template.render(chat.messages, at=at, tools=chat.tools), False
        case str() as text:
            is_plain = True
    limits.check_bytes(len(text.encode("utf-8", "surrogatepass")), reads.tokenizer.facts.longest_token_bytes)
    return reads.tokenizer.encode(text, add_special_tokens=is_plain)


def _new_tokens(
    asked: int | None, prompt_tokens: int, answer: AnswerSpec | None, limits: TokenLimits, usual: int
) -> int:
    """Return how many tokens an answer may have: what is asked for, certified, or usual, within every limit."""
    most = limits.answer_tokens(prompt_tokens, asked)
    if asked is not None:
        return most
    return min(answer.max_new_tokens if answer is not None else usual, most)
