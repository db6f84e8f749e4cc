"""Decides what becomes of a text: drafted here or not, kept or escalated. Pure: values in, values out.

A promise about texts is about one way of making them: greedily, up to a number of tokens, ended by certain strings, or
as the likeliest of some options (``penstock.policy.text_answers.AnswerSpec``). What is asked for in another way has no
promise. How sure a draft is, and
against which threshold, is as for rows (``edge_agent.policy.cascade``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_agent.policy.cascade import CascadeMode, Reason
from penstock.generation.choices import texts_of
from penstock.generation.values import FinishReason, GenerationRequest, GiveUp, TokenEvent
from penstock.policy.choices import CHOICE_SCORES, choice_score
from penstock.policy.confidence import MONOTONE_SCORES, PROMPT_SCORES, TOKEN_SCORES, token_score
from penstock.policy.text_answers import AnswerSpec

Outside = Literal["escalate", "answer_flagged"]
"""What becomes of a request that is outside of what was certified: the cloud's, or the device's with a flag."""

USUAL_SCORE = "token_min"
USUAL_CHOICE_SCORE = "max_prob"
"""By which a draft is scored where no promise names another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a device may answer by itself.

    Attributes:
        score: one of ``penstock.policy.confidence.TOKEN_SCORES``; where answers are options, one of
            ``penstock.policy.choices.CHOICE_SCORES``.
        threshold: a draft that scores at least so much is kept.
        answer: how the answers were made that the promise is about.
        temperature: divides the log-probabilities of options first.
    """

    score: str
    threshold: float
    answer: AnswerSpec
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What to do with a request before anything is generated.

    Attributes:
        drafts: the device generates; otherwise the cloud is asked at once.
        reason: of an answer of the cloud's, and of a draft that the cloud could not replace.
        outside: why the promise does not cover the request; "" where it may.
    """

    drafts: bool
    reason: Reason
    outside: str = ""


def is_scored_so(score: str, answer: AnswerSpec) -> bool:
    """Say whether answers that were made so can have such a score: options have scores of their own."""
    return score in (CHOICE_SCORES if answer.is_choice else TOKEN_SCORES)


def start(
    request: GenerationRequest,
    promise: Promise | None,
    *,
    mode: CascadeMode,
    has_tools: bool = False,
    is_private: bool = False,
    outside: Outside = "escalate",
) -> Start:
    """Decide where a request begins.

    Args:
        promise: None where no certificate fits, which ``mode`` says as well.
        has_tools: the client offers tools, so that the answer may be a call of one.
        is_private: the caller said ``local_only``.
    """
    if is_private:
        return Start(drafts=True, reason=Reason.PRIVACY, outside=_outside(request, promise, has_tools))
    if mode is CascadeMode.CLOUD_ONLY:
        return Start(drafts=False, reason=Reason.CLOUD_ONLY)
    if mode is CascadeMode.ESCALATE_ALL or promise is None:
        return Start(drafts=False, reason=Reason.UNCERTIFIED)
    why = _outside(request, promise, has_tools)
    reason = Reason.UNCERTIFIED if why else Reason.ESCALATED
    return Start(drafts=not why or outside == "answer_flagged", reason=reason, outside=why)


def give_up(promise: Promise) -> GiveUp | None:
    """Say after which token a draft can only be escalated, whatever follows it; None where only the end tells."""
    if promise.score not in MONOTONE_SCORES | PROMPT_SCORES:
        return None
    return GiveUp(below=promise.threshold, first_only=promise.score in PROMPT_SCORES)


def is_kept_before(logprob: float, promise: Promise, *, limit: int) -> bool:
    """Say whether a draft is kept whatever follows its first token: the score is of the prompt alone, and high enough.

    Not so where a limit was asked for that is not the certified one: whether the answer is the certified one is seen
    at its end (:func:`is_kept`).

    Args:
        logprob: of the draft's first token.
        limit: the request's.
    """
    return (
        promise.score in PROMPT_SCORES
        and limit == promise.answer.max_new_tokens
        and math.exp(logprob) >= promise.threshold
    )


def reason_of(start: Start, promise: Promise | None, *, was_given_up: bool) -> Reason:
    """Return why an answer is the cloud's.

    Args:
        was_given_up: a draft was begun, and could only be escalated.
    """
    if was_given_up and promise is not None and promise.score in PROMPT_SCORES:
        return Reason.ESCALATED_BY_PROMPT
    return start.reason


def confidence(events: Sequence[TokenEvent], promise: Promise | None) -> float:
    """Score a draft: by its options, which come with its last token, or else by the log-probabilities of its tokens,
    the one that ended it among them. NaN where there is nothing to score."""
    options = events[-1].options if events else ()
    if promise is not None and promise.answer.is_choice:
        return choice_score(options, name=promise.score, temperature=promise.temperature)
    if options:
        return choice_score(options, name=USUAL_CHOICE_SCORE)
    score = USUAL_SCORE if promise is None else promise.score
    return float(token_score([[math.exp(event.logprob) for event in events]], name=score)[0])


def is_kept(confidence: float, promise: Promise, *, finish: FinishReason, tokens: int, limit: int) -> bool:
    """Decide about a finished draft of a request that is inside of the promise.

    An answer that ended by itself within the certified number of tokens is the one that was certified, whatever limit
    was asked for. One that a limit cut is so only if the two limits are equal. An option is always whole.

    Args:
        tokens: of the draft, with the one that ended it.
        limit: the request's.
    """
    is_the_same = limit == promise.answer.max_new_tokens or (
        finish == "stop" and (promise.answer.is_choice or tokens <= promise.answer.max_new_tokens)
    )
    return is_the_same and confidence >= promise.threshold  # NaN compares false


def _outside(request: GenerationRequest, promise: Promise | None, has_tools: bool) -> str:
    """Say why a request is made in another way than the answers of a promise."""
    if promise is None:
        return "there is no certificate in use"
    sampling = request.sampling
    plain = (
        sampling.repetition_penalty == 1.0
        and sampling.presence_penalty == 0.0
        and sampling.frequency_penalty == 0.0
        and not sampling.logit_bias
    )
    problems = {
        f"temperature {sampling.temperature:g}; certified answers are greedy": not sampling.is_greedy,
        "penalties or a bias on tokens; certified answers have none": not plain,
        _other_form(request, promise.answer): True,
        "tools; certified answers know none": has_tools,
        "it goes on after the end of the answer": request.ignore_end,
        "tokens that end it beside the model's own": bool(request.stop_ids),
        f"stops at {_listed(request.stop)}; certified answers at {_listed(promise.answer.stop)}": (
            set(request.stop) != set(promise.answer.stop)
        ),
    }
    return next((why for why, applies in problems.items() if why and applies), "")


def _other_form(request: GenerationRequest, answer: AnswerSpec) -> str:
    """Say why an answer is of another form than those of a promise: free text, or one of certain options."""
    if not answer.is_choice:
        return "" if request.grammar is None else "a grammar; certified answers have none"
    if request.options is None or request.grammar is None:
        return "no choices that are scored; certified answers are options"
    if answer.options and set(texts_of(request.grammar)) != set(answer.options):
        return f"other choices; certified answers are {_listed(answer.options)}"
    return ""


def _listed(stops: Sequence[str]) -> str:
    return ", ".join(repr(stop[:40]) for stop in stops[:4]) or "nothing"
