"""What a generation is asked for and what comes of it: token ids in, token ids with their text and probability out.

These values go from an API through admission and a process boundary to an engine and back. They know no engine, no
tokenizer and no wire format of others: requests as OpenAI has them are ``penstock.openai``'s.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled"]
"""``stop``: the model ended its answer, or said one of the stop strings. ``length``: a limit cut it.
``cancelled``: it was given up, as the request said or since whoever asked has gone; no client sees it."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token is drawn from the model's probabilities. The defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token; others divide the logits, after bias and penalties and before tokens
            are left out.
        top_p: the smallest set of the likeliest tokens that has this share stays; 1 keeps all.
        top_k: as many of the likeliest tokens stay; 0 keeps all.
        min_p: tokens that have this share of the likeliest one's probability stay.
        repetition_penalty: logits of tokens that prompt or answer hold are divided by it, negative ones multiplied.
        presence_penalty: taken off the logit of each token that the answer holds.
        frequency_penalty: taken off as often as the answer holds it.
        seed: of the random numbers; None draws one for each request.
        logit_bias: added to the logit of a token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}

    @property
    def is_greedy(self) -> bool:
        """Say whether the same prompt always gets the same answer, whatever the seed."""
        return self.temperature == 0.0

    @property
    def is_plain(self) -> bool:
        """Say whether the likeliest token of the raw model is taken, whatever was said before."""
        has_penalties = self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return self.is_greedy and self.repetition_penalty == 1.0 and not has_penalties and not self.logit_bias


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer has to look like.

    Attributes:
        kind: how ``text`` describes it.
    """

    kind: Literal["json_schema", "regex", "choice"]
    text: str


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answers of which one is to be given, whole: each with what ends it.

    Attributes:
        ids: of each option's tokens, as they follow the prompt; no two alike.
        end_ids: tokens of which any ends an answer.
    """

    ids: tuple[tuple[int, ...], ...]
    end_ids: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Count the tokens of the longest answer, with the one that ends it."""
        return 1 + max(map(len, self.ids), default=0)

    @property
    def tokens(self) -> int:
        """Count the tokens of all options, with an end, which an engine computes to choose one; those that several
        begin with are counted for each."""
        return 1 + sum(map(len, self.ids))


class GiveUp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an answer is of no use to whoever asks: after a token that is less likely than so.

    Attributes:
        below: a probability; NaN is below every one.
        first_only: only the first token counts.
    """

    below: float
    first_only: bool = False

    def applies(self, logprob: float, *, place: int) -> bool:
        """Say whether the answer is given up after the token at a place, from 0."""
        return (place == 0 or not self.first_only) and not math.exp(logprob) >= self.below


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer to be generated. A request for several answers is several of these.

    Attributes:
        id: names it in events and cancellations; unique in one engine while it runs.
        prompt_ids: at least one, each in the vocabulary; engines check that.
        max_new_tokens: the answer has at most so many, the token that ends it included.
        stop: strings that end the answer and are no part of it.
        stop_ids: tokens that end it, besides the model's own.
        ignore_end: go on where the model would end, for measurements.
        top_logprobs: as many alternatives are told with each token; None tells none.
        grammar: what the answer has to look like; engines that cannot hold to one refuse it.
        options: the answer is the likeliest of these, each scored as a whole; no token is drawn. An engine then has no
            need of ``grammar``, which says the same in texts, for servers that are asked in texts.
        give_up: ends the answer with ``cancelled``; a wish that servers of others do not know.
    """

    id: str
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    options: Options | None = None
    give_up: GiveUp | None = None


class SampledToken(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One token of one request, as an engine gives it after a step.

    Attributes:
        request: its id.
        token: from the vocabulary.
        logprob: its natural logarithm of probability under the raw model, whatever the sampling.
        top: the likeliest tokens with theirs, likeliest first, as many as were asked for.
        finish: why this is the last token; None where more follow. A token that ends the answer is an answer's
            token, and has no text.
        cached_tokens: of the prompt, that were not computed again; the same in every token of a request.
        options: with the last token of a request that has some, the log-probability of each, in their order.
    """

    request: str
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0
    options: tuple[float, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that a request took.

    Attributes:
        cached_tokens: of ``prompt_tokens``, that were not computed again.
        completion_tokens: with the token that ended the answer.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class TokenEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One token of an answer with the text that may be shown because of it.

    Attributes:
        token: as sampled.
        text: new text; "" while a character is not whole, or while the text may still become a stop string. The texts
            of all events of an answer, joined, are the answer.
        logprob: as in :class:`SampledToken`.
        top: as in :class:`SampledToken`.
        finish: why this is the last event; None where more follow.
        usage: what the request took; with the last event only.
        matched_stop: the stop string or token that ended it.
        options: as in :class:`SampledToken`.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    matched_stop: str | int | None = None
    options: tuple[float, ...] = ()
