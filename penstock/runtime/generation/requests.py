"""What every engine holds a request to before it gives it a slot, and when an answer has ended.

Plain functions of values: engines call them, so that each refuses and ends in the same way and with the same words.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from penstock.errors import InvalidInput, QueueFull
from penstock.generation import sampling
from penstock.generation.choices import MAX_OPTIONS
from penstock.generation.values import FinishReason, GenerationRequest, Options
from penstock.runtime.generation import EngineFacts


def check(request: GenerationRequest, facts: EngineFacts, running: Collection[str]) -> None:
    """Refuse what the engine cannot answer, whoever else is in it.

    Raises:
        InvalidInput: as :meth:`penstock.runtime.generation.GenerationEngine.admit` says. QueueFull: no slot is free.
    """
    _check_ids(request.prompt_ids, facts)
    _check_length(request, facts)
    _check_extras(request, facts)
    if request.options is not None:
        _check_options(request, request.options, facts)
    sampling.check(request.sampling, facts.vocabulary)
    if request.id in running:
        raise InvalidInput(f"id: a request {request.id!r} runs already; give each its own", field="id")
    _check_free(facts, len(running))


def check_text(ids: Sequence[int], facts: EngineFacts, running: int) -> None:
    """Refuse a text that the engine cannot read.

    Raises:
        InvalidInput, QueueFull: as :meth:`penstock.runtime.generation.ReadingEngine.read` says.
    """
    _check_ids(ids, facts)
    if not 2 <= len(ids) <= facts.context_tokens:
        raise InvalidInput(
            f"prompt_ids: a text of {len(ids)} tokens; expected 2 to the context, {facts.context_tokens}",
            field="prompt_ids",
        )
    _check_free(facts, running)


def _check_free(facts: EngineFacts, running: int) -> None:
    if running >= facts.slots:
        raise QueueFull(f"all {facts.slots} slots of the engine are taken; admit after a request has finished")


def _check_ids(ids: Sequence[int], facts: EngineFacts) -> None:
    if not ids:
        raise InvalidInput("prompt_ids: no tokens; a model continues at least one", field="prompt_ids")
    if min(ids) < 0 or max(ids) >= facts.vocabulary:
        at, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t < facts.vocabulary)
        raise InvalidInput(
            f"prompt_ids[{at}]: token {token} is not in the vocabulary, which has ids from 0 to "
            f"{facts.vocabulary - 1}; is the prompt of another tokenizer?",
            field=f"prompt_ids[{at}]",
        )


def _check_length(request: GenerationRequest, facts: EngineFacts) -> None:
    if request.max_new_tokens < 1:
        raise InvalidInput(f"max_new_tokens: {request.max_new_tokens}; expected at least 1", field="max_new_tokens")
    asked = len(request.prompt_ids) + request.max_new_tokens
    if asked > facts.context_tokens:
        raise InvalidInput(
            f"prompt_ids: {len(request.prompt_ids)} tokens and {request.max_new_tokens} new ones are {asked}, and the "
            f"context is {facts.context_tokens} tokens; shorten the prompt, or ask for fewer",
            field="prompt_ids",
        )


def _check_extras(request: GenerationRequest, facts: EngineFacts) -> None:
    if request.top_logprobs is not None and not 0 <= request.top_logprobs <= facts.max_top_logprobs:
        raise InvalidInput(
            f"top_logprobs: {request.top_logprobs}; expected 0 to {facts.max_top_logprobs}", field="top_logprobs"
        )
    if request.grammar is not None and request.options is None and request.grammar.kind not in facts.grammars:
        known = ", ".join(sorted(facts.grammars)) or "none"
        raise InvalidInput(
            f"grammar: this model's engine cannot hold to a {request.grammar.kind}; it can: {known}", field="grammar"
        )


def _check_options(request: GenerationRequest, options: Options, facts: EngineFacts) -> None:
    """Refuse options that cannot be scored.

    Raises:
        InvalidInput: the engine scores none, none are given or too many, one is empty, twice there or not in the
            vocabulary, nothing ends them, or the longest is longer than the answer may be; or tokens are to be drawn.
    """
    if not facts.scores_options:
        raise _wrong("this model's engine scores no options; ask for free text, or serve the model in slots")
    if not 1 <= len(options.ids) <= MAX_OPTIONS:
        raise _wrong(f"{len(options.ids)} given; expected 1 to {MAX_OPTIONS}")
    seen: dict[tuple[int, ...], int] = {}
    for at, ids in enumerate(options.ids):
        if not ids:
            raise _wrong(f"option {at} has no tokens; an answer has at least one")
        if (before := seen.setdefault(ids, at)) != at:
            raise _wrong(f"options {before} and {at} are the same tokens; leave one out")
    if not options.end_ids:
        raise _wrong("no token ends them, so that none is a whole answer; name the model's end, or a stop string")
    everything = [*itertools.chain.from_iterable(options.ids), *options.end_ids]
    if wrong := [token for token in everything if not 0 <= token < facts.vocabulary]:
        raise _wrong(
            f"token {wrong[0]} is not in the vocabulary, which has ids from 0 to {facts.vocabulary - 1}; are they of "
            "another tokenizer?"
        )
    if options.longest > request.max_new_tokens:
        raise _wrong(
            f"the longest has {options.longest} tokens with its end, and the answer may have {request.max_new_tokens}"
        )
    if not request.sampling.is_plain or request.top_logprobs or request.ignore_end or request.stop_ids:
        raise _wrong("they are scored, not drawn: without sampling, penalties, alternatives and ends of one's own")


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(f"options: {why}", field="options")


def finish_of(request: GenerationRequest, facts: EngineFacts, token: int, answered: int) -> FinishReason | None:
    """Say whether ``token``, the last of ``answered`` ones, ends the answer, and why."""
    if token in request.stop_ids or (token in facts.end_ids and not request.ignore_end):
        return "stop"
    return "length" if answered >= request.max_new_tokens else None
