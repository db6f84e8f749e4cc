"""Texts: which requests a promise covers, which drafts are kept, and when a draft is given up early."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.policy import text_cascade
from edge_agent.policy.cascade import CascadeMode, Reason
from edge_agent.policy.text_cascade import Promise
from penstock.generation.values import GenerationRequest, Grammar, Options, Sampling, TokenEvent
from penstock.policy.confidence import MONOTONE_SCORES, PROMPT_SCORES, TOKEN_SCORES
from penstock.policy.text_answers import AnswerSpec

PROMISE = Promise(score="token_min", threshold=0.5, answer=AnswerSpec(max_new_tokens=8, stop=("\n",)))
REQUEST = GenerationRequest(id="r", prompt_ids=(1, 2), max_new_tokens=8, stop=("\n",))


CHOICE = Promise(
    score="max_prob",
    threshold=0.5,
    answer=AnswerSpec(max_new_tokens=8, stop=("\n",), choices=("yes", "no")),
)
CHOOSING = msgspec.structs.replace(
    REQUEST,
    max_new_tokens=2,
    grammar=Grammar(kind="choice", text='["yes","no"]'),
    options=Options(ids=((5,), (6,)), end_ids=(1,)),
)


def said(logprobs: list[float], options: tuple[float, ...] = ()) -> list[TokenEvent]:
    """A draft as it comes from the engine; options come with its last token."""
    events = [TokenEvent(token=2, text="x", logprob=one) for one in logprobs]
    return [*events[:-1], msgspec.structs.replace(events[-1], options=options)] if options else events


def gives_up(logprob: float, promise: Promise, *, place: int) -> bool:
    wish = text_cascade.give_up(promise)
    assert wish is not None
    return wish.applies(logprob, place=place)


def changed(**values: object) -> GenerationRequest:
    return msgspec.structs.replace(REQUEST, **values)


def test_what_was_certified_is_drafted() -> None:
    start = text_cascade.start(REQUEST, PROMISE, mode=CascadeMode.CASCADE)
    assert (start.drafts, start.reason, start.outside) == (True, Reason.ESCALATED, "")


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (changed(sampling=Sampling(temperature=0.7)), "temperature 0.7"),
        (changed(sampling=Sampling(repetition_penalty=1.1)), "penalties"),
        (changed(sampling=Sampling(logit_bias={3: 1.0})), "bias"),
        (changed(grammar=Grammar(kind="json_schema", text="{}")), "grammar"),
        (changed(stop=("\n", "x")), "stops at"),
        (changed(stop=()), "stops at nothing"),
        (changed(stop_ids=(7,)), "tokens that end it"),
        (changed(ignore_end=True), "goes on"),
    ],
)
def test_another_way_of_decoding_is_outside_of_the_promise(request_: GenerationRequest, why: str) -> None:
    up = text_cascade.start(request_, PROMISE, mode=CascadeMode.CASCADE)
    assert (up.drafts, up.reason) == (False, Reason.UNCERTIFIED)
    assert why in up.outside
    flagged = text_cascade.start(request_, PROMISE, mode=CascadeMode.CASCADE, outside="answer_flagged")
    assert (flagged.drafts, flagged.outside) == (True, up.outside)


def test_tools_are_outside_and_private_requests_are_drafted_anyway() -> None:
    assert "tools" in text_cascade.start(REQUEST, PROMISE, mode=CascadeMode.CASCADE, has_tools=True).outside
    private = text_cascade.start(REQUEST, None, mode=CascadeMode.ESCALATE_ALL, is_private=True)
    assert (private.drafts, private.reason) == (True, Reason.PRIVACY)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(CascadeMode.CLOUD_ONLY, Reason.CLOUD_ONLY), (CascadeMode.ESCALATE_ALL, Reason.UNCERTIFIED)],
)
def test_without_a_promise_nothing_is_drafted(mode: CascadeMode, reason: Reason) -> None:
    start = text_cascade.start(REQUEST, PROMISE, mode=mode)
    assert (start.drafts, start.reason) == (False, reason)


@pytest.mark.parametrize(
    ("finish", "tokens", "limit", "kept"),
    [
        ("stop", 3, 8, True),
        ("length", 8, 8, True),  # certified answers were cut there, too
        ("stop", 3, 100, True),  # the certified limit would have changed nothing
        ("stop", 3, 4, True),
        ("length", 4, 4, False),  # certified answers go on
        ("length", 100, 100, False),
        ("stop", 50, 100, False),  # ended, but later than certified answers do
    ],
)
def test_a_draft_is_kept_only_where_it_is_the_answer_that_was_certified(
    finish: str, tokens: int, limit: int, kept: bool
) -> None:
    found = text_cascade.is_kept(0.9, PROMISE, finish=finish, tokens=tokens, limit=limit)  # type: ignore[arg-type]
    assert found is kept


def test_a_tie_is_kept_and_nan_is_not() -> None:
    assert text_cascade.is_kept(0.5, PROMISE, finish="stop", tokens=1, limit=8)
    assert not text_cascade.is_kept(math.nan, PROMISE, finish="stop", tokens=1, limit=8)
    assert math.isnan(text_cascade.confidence([], PROMISE))


@given(st.lists(st.floats(-20.0, 0.0), min_size=1, max_size=30), st.floats(0.01, 0.99))
def test_giving_up_early_never_changes_the_decision(logprobs: list[float], threshold: float) -> None:
    promise = Promise(score="token_min", threshold=threshold, answer=PROMISE.answer)
    early = any(gives_up(one, promise, place=at) for at, one in enumerate(logprobs))
    assert early is not (text_cascade.confidence(said(logprobs), promise) >= threshold)


@pytest.mark.parametrize("score", sorted(set(TOKEN_SCORES) - MONOTONE_SCORES - PROMPT_SCORES))
def test_scores_that_may_rise_again_never_give_up_early(score: str) -> None:
    promise = Promise(score=score, threshold=0.9, answer=PROMISE.answer)
    assert text_cascade.give_up(promise) is None
    assert not text_cascade.is_kept_before(0.0, promise, limit=8)


@given(st.lists(st.floats(-20.0, 0.0), min_size=1, max_size=9), st.floats(0.01, 0.99))
def test_a_score_of_the_prompt_decides_at_the_first_token_as_at_the_end(
    logprobs: list[float], threshold: float
) -> None:
    promise = Promise(score="prompt_max_prob", threshold=threshold, answer=PROMISE.answer)
    escalates = [gives_up(one, promise, place=at) for at, one in enumerate(logprobs)]
    kept = text_cascade.is_kept_before(logprobs[0], promise, limit=8)
    at_the_end = text_cascade.confidence(said(logprobs), promise) >= threshold
    assert escalates[0] is not at_the_end
    assert kept is at_the_end
    assert not any(escalates[1:])


def test_before_the_end_nobody_knows_whether_a_limit_of_ones_own_cuts_the_answer() -> None:
    promise = Promise(score="prompt_max_prob", threshold=0.5, answer=PROMISE.answer)
    assert text_cascade.is_kept_before(0.0, promise, limit=8)
    assert not text_cascade.is_kept_before(0.0, promise, limit=7)
    assert not text_cascade.is_kept_before(math.nan, promise, limit=8)


@pytest.mark.parametrize(
    ("score", "was_given_up", "reason"),
    [
        ("prompt_max_prob", True, Reason.ESCALATED_BY_PROMPT),
        ("prompt_max_prob", False, Reason.ESCALATED),  # cut by a limit that is not the certified one
        ("token_min", True, Reason.ESCALATED),
    ],
)
def test_the_reason_says_whether_there_was_a_draft(score: str, was_given_up: bool, reason: Reason) -> None:
    promise = Promise(score=score, threshold=0.5, answer=PROMISE.answer)
    start = text_cascade.start(REQUEST, promise, mode=CascadeMode.CASCADE)
    assert text_cascade.reason_of(start, promise, was_given_up=was_given_up) is reason
    assert text_cascade.reason_of(start, None, was_given_up=False) is start.reason


# --- options


def test_the_certified_options_in_any_order_are_inside_of_the_promise() -> None:
    for text in ('["yes","no"]', '["no","yes"]'):
        request = msgspec.structs.replace(CHOOSING, grammar=Grammar(kind="choice", text=text))
        start = text_cascade.start(request, CHOICE, mode=CascadeMode.CASCADE)
        assert (start.drafts, start.outside) == (True, "")


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (msgspec.structs.replace(CHOOSING, grammar=Grammar(kind="choice", text='["yes","maybe"]')), "other choices"),
        (msgspec.structs.replace(CHOOSING, options=None), "no choices that are scored"),
        (REQUEST, "no choices that are scored"),
        (changed(grammar=Grammar(kind="regex", text="a")), "no choices that are scored"),
        (msgspec.structs.replace(CHOOSING, sampling=Sampling(temperature=1.0)), "temperature 1"),
    ],
)
def test_other_options_and_other_forms_are_outside(request_: GenerationRequest, why: str) -> None:
    start = text_cascade.start(request_, CHOICE, mode=CascadeMode.CASCADE)
    assert (start.drafts, start.reason) == (False, Reason.UNCERTIFIED)
    assert why in start.outside


def test_where_each_request_brings_its_own_options_any_are_inside() -> None:
    own = Promise(score="margin", threshold=0.5, answer=AnswerSpec(max_new_tokens=8, stop=("\n",), choices=()))
    other = msgspec.structs.replace(CHOOSING, grammar=Grammar(kind="choice", text='["a","b"]'))
    assert text_cascade.start(other, own, mode=CascadeMode.CASCADE).outside == ""
    assert "no choices" in text_cascade.start(REQUEST, own, mode=CascadeMode.CASCADE).outside


def test_options_are_no_business_of_a_promise_about_free_text() -> None:
    assert "a grammar" in text_cascade.start(CHOOSING, PROMISE, mode=CascadeMode.CASCADE).outside


def test_confidence_in_an_option_is_its_renormalised_probability() -> None:
    draft = said([-9.0, -0.1], options=(math.log(0.03), math.log(0.01)))
    assert text_cascade.confidence(draft, CHOICE) == pytest.approx(0.75)
    assert text_cascade.confidence(draft, None) == pytest.approx(0.75)
    margin = Promise(score="margin", threshold=0.5, answer=CHOICE.answer)
    assert text_cascade.confidence(draft, margin) == pytest.approx(0.5)
    cooled = Promise(score="max_prob", threshold=0.5, answer=CHOICE.answer, temperature=2.0)
    assert text_cascade.confidence(draft, cooled) == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))
    assert math.isnan(text_cascade.confidence(said([-0.1]), CHOICE))


def test_an_option_is_whole_whatever_its_length() -> None:
    assert text_cascade.is_kept(0.5, CHOICE, finish="stop", tokens=30, limit=31)
    assert not text_cascade.is_kept(0.49, CHOICE, finish="stop", tokens=2, limit=2)
    assert text_cascade.give_up(CHOICE) is None


def test_a_promise_by_a_score_that_its_answers_cannot_have_is_none() -> None:
    assert all(text_cascade.is_scored_so(score, PROMISE.answer) for score in TOKEN_SCORES)
    assert all(text_cascade.is_scored_so(score, CHOICE.answer) for score in ("max_prob", "margin", "entropy"))
    assert not text_cascade.is_scored_so("max_prob", PROMISE.answer)
    assert not any(text_cascade.is_scored_so(score, CHOICE.answer) for score in ("token_min", "energy", "probe"))
