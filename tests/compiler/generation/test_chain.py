"""The whole chain of the example: train, build, compare, choose, certify, and keep what was promised."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.generation import golden_answers
from examples.tiny_llama import data, run
from penstock.policy.confidence import TOKEN_SCORES

pytestmark = pytest.mark.timeout(900)  # training, where nothing was kept from another session


def test_the_chain_ends_in_a_promise_that_it_keeps(chain: Any) -> None:
    outcome = chain.outcome
    level = outcome.promised.default
    assert level.harm == "disagreement"
    assert 230 <= level.n <= 250  # half of the prompts, seen by nothing else; equal ones are dealt whole
    assert 0 < level.kept_count < level.n
    assert level.harm_count <= 0.05 * level.n
    assert outcome.harm_on_test <= 0.1  # 96 prompts: the promise is 0.05, and their own spread is 0.02
    assert outcome.score in TOKEN_SCORES


def test_figures_before_and_after(chain: Any) -> None:
    outcome = chain.outcome
    for perplexity in (outcome.cloud_perplexity, outcome.change.before, outcome.change.after):
        assert perplexity < 400  # of 768 tokens: both have learned something
    assert outcome.size_bytes["edge int4"] < outcome.size_bytes["edge fp32"]
    assert set(outcome.speeds) == {"edge fp32", "edge int4", "cloud fp32"}
    assert len(outcome.golden.outputs[golden_answers.TOKEN_IDS]) >= 1
    table = run.table(outcome)
    assert "edge perplexity" in table
    assert "with 95% confidence at most 5 points of harm" in table


def test_no_model_is_examined_on_what_it_has_read() -> None:
    seen, held_out = set(data.texts(held_out=False)), data.texts(held_out=True)
    assert len(held_out) > 10
    assert not [text for text in held_out if text.strip() and text in seen]
    rows = list(data.completions(50, seed=0))
    assert rows == list(data.completions(50, seed=0))
    assert all(row["prompt"] and row["answer"] for row in rows)
    assert all(any(row["prompt"] in text and row["answer"] in text for text in held_out) for row in rows)
