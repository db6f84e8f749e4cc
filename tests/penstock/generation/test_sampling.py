"""The next token, against an oracle that does literally what transformers' and OpenAI's documentation say."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Internal, InvalidInput
from penstock.generation import sampling
from penstock.generation.values import Sampling

# coarse numbers, so that ties are common; a few impossible tokens
logit_rows = st.lists(
    st.one_of(st.integers(-6, 6).map(lambda n: n / 2), st.just(-math.inf)), min_size=1, max_size=40
).filter(lambda row: max(row) > -math.inf)
ways = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 30, 1000]),
    min_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.6]),
)


def oracle(row: list[float], how: Sampling, prompt: list[int], answer: list[int]) -> dict[int, float]:
    """Return the probability of each token that may be drawn, in loops over Python's floats."""
    logits = [value + how.logit_bias.get(token, 0.0) for token, value in enumerate(row)]
    for token in {*prompt, *answer}:  # RepetitionPenaltyLogitsProcessor
        value = logits[token]
        logits[token] = value * how.repetition_penalty if value < 0 else value / how.repetition_penalty
    for token, times in Counter(answer).items():  # OpenAI: mu[j] - c[j] * frequency - (c[j] > 0) * presence
        logits[token] -= times * how.frequency_penalty + how.presence_penalty
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if how.temperature == 0:
        return {ranked[0]: 1.0}
    highest = logits[ranked[0]]
    weights = {token: math.exp((logits[token] - highest) / how.temperature) for token in ranked}
    weights = {token: weight for token, weight in weights.items() if weight > 0}
    if how.top_k:
        weights = dict(list(weights.items())[: how.top_k])
    if how.top_p < 1:
        total, held, kept = math.fsum(weights.values()), 0.0, {}
        for token, weight in weights.items():
            if held >= how.top_p * total - 1e-12:
                break
            kept[token] = weight
            held += weight
        weights = kept
    weights = {token: weight for token, weight in weights.items() if weight >= how.min_p * weights[ranked[0]]}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


@given(logit_rows, ways, st.data())
def test_what_may_be_drawn_and_how_often_is_what_the_formulas_say(
    row: list[float], how: Sampling, data: st.DataObject
) -> None:
    tokens = st.lists(st.integers(0, len(row) - 1), max_size=6)
    prompt, answer = data.draw(tokens), data.draw(tokens)
    ids, shares = sampling.distribution(np.array(row, np.float32), how, seen=(prompt, answer))
    wanted = oracle(row, how, prompt, answer)
    assert ids.tolist() == sorted(wanted)
    assert shares == pytest.approx([wanted[token] for token in sorted(wanted)], rel=1e-9)


@given(logit_rows, ways, st.floats(0, 1, exclude_max=True), st.integers(0, 5))
def test_the_drawn_token_is_where_the_number_falls_and_is_told_as_the_raw_model_has_it(
    row: list[float], how: Sampling, number: float, top: int
) -> None:
    drawn = sampling.sample(np.array(row, np.float32), how, seen=([], []), number=number, top=top)
    before = 0.0
    for token, share in sorted(oracle(row, how, [], []).items()):
        if number < before + share - 1e-9:
            assert drawn.token == token
            break
        before += share
        if number < before + 1e-9:
            break  # on the edge between two tokens: rounding decides
    total = math.log(math.fsum(math.exp(value) for value in row))
    assert drawn.logprob == pytest.approx(row[drawn.token] - total, abs=1e-6)
    ranked = sorted(range(len(row)), key=lambda token: (-row[token], token))[:top]
    assert [token for token, _ in drawn.top] == ranked
    assert [said for _, said in drawn.top] == pytest.approx([row[token] - total for token in ranked], abs=1e-6)


@given(st.lists(st.lists(st.integers(-9, 9), min_size=7, max_size=7), min_size=1, max_size=5))
def test_greedy_rows_get_what_each_gets_alone(rows: list[list[int]]) -> None:
    logits = np.array(rows, np.float32) / 2
    tokens, logprobs = sampling.sample_greedy_rows(logits)
    alone = [sampling.sample(row, Sampling(), seen=([], []), number=0.0) for row in logits]
    assert tokens.tolist() == [one.token for one in alone]
    assert logprobs == pytest.approx([one.logprob for one in alone], abs=1e-9)


@pytest.mark.parametrize("vocabulary", [100, 5000])
def test_a_nucleus_is_found_wherever_it_ends(vocabulary: int) -> None:
    logits = np.random.default_rng(0).normal(0, 0.3, vocabulary).astype(np.float32)
    for top_p in (0.001, 0.5, 0.999, 1 - 1e-9):
        ids, _ = sampling.distribution(logits, Sampling(temperature=1, top_p=top_p), seen=([], []))
        assert ids.tolist() == sorted(oracle(logits.tolist(), Sampling(temperature=1, top_p=top_p), [], []))


def test_of_equally_likely_tokens_the_lowest_id_is_taken() -> None:
    logits = np.array([0, 3, 3, 1, 3], np.float32)
    assert sampling.sample(logits, Sampling(), seen=([], []), number=0.9).token == 1
    ids, _ = sampling.distribution(logits, Sampling(temperature=1, top_k=2), seen=([], []))
    assert ids.tolist() == [1, 2]


@pytest.mark.parametrize("row", [[0, math.nan, 1], [math.inf, 0, 0], [-math.inf] * 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_a_failure_of_the_engine(row: list[float], temperature: float) -> None:
    logits = np.array(row, np.float32)
    with pytest.raises(Internal, match="logits"):
        sampling.sample(logits, Sampling(temperature=temperature), seen=([], []), number=0.5)
    with pytest.raises(Internal, match="logits"):
        sampling.sample_greedy_rows(np.stack([np.zeros(3, np.float32), logits]))


def test_a_temperature_near_zero_is_nearly_greedy_and_never_nan() -> None:
    for temperature in (5e-324, 1e-30):
        drawn = sampling.sample(
            np.array([1, 5, -math.inf], np.float32), Sampling(temperature=temperature), seen=([], []), number=0.999
        )
        assert drawn.token == 1


def test_half_precision_logits_are_read() -> None:
    drawn = sampling.sample(np.array([1, 5, 2], np.float16), Sampling(), seen=([], []), number=0.0)
    assert drawn.logprob == pytest.approx(5 - math.log(math.exp(1) + math.exp(5) + math.exp(2)), abs=1e-5)


def test_a_bias_forbids_and_forces() -> None:
    logits = np.array([1, 5, 2], np.float32)
    forced = Sampling(logit_bias={0: 100.0, 1: -100.0})
    assert sampling.sample(logits, forced, seen=([], []), number=0.0).token == 0


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    numbers = [sampling.number_at(7, position) for position in range(2000)]
    assert numbers[1234] == sampling.number_at(7, 1234)
    assert sampling.number_at(7, 0) == pytest.approx(0.8720734548204873, abs=1e-15)  # a wire format
    assert numbers != [sampling.number_at(8, position) for position in range(2000)]
    assert all(0 <= number < 1 for number in numbers)
    assert np.mean(numbers) == pytest.approx(0.5, abs=0.03)
    assert np.var(numbers) == pytest.approx(1 / 12, abs=0.01)
    assert sampling.number_at(-1, 0) == sampling.number_at(2**64 - 1, 0)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    drawn = [
        sampling.sample(logits, Sampling(temperature=1), seen=([], []), number=sampling.number_at(3, at)).token
        for at in range(4000)
    ]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.1, 0.6, 0.3], abs=0.03)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (Sampling(temperature=-1), "temperature"),
        (Sampling(temperature=math.nan), "temperature"),
        (Sampling(top_p=0), "top_p"),
        (Sampling(top_p=1.1), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(min_p=2), "min_p"),
        (Sampling(repetition_penalty=0), "repetition_penalty"),
        (Sampling(presence_penalty=math.inf), "presence_penalty"),
        (Sampling(frequency_penalty=math.nan), "frequency_penalty"),
        (Sampling(logit_bias={10: 1.0}), "logit_bias"),
        (Sampling(logit_bias={-1: 1.0}), "logit_bias"),
        (Sampling(logit_bias={1: math.nan}), "logit_bias"),
    ],
)
def test_numbers_with_which_nothing_can_be_drawn_are_refused_by_name(wrong: Sampling, field: str) -> None:
    with pytest.raises(InvalidInput, match=field) as raised:
        sampling.check(wrong, vocabulary=10)
    assert raised.value.field == field


def test_usual_numbers_are_taken() -> None:
    sampling.check(Sampling(temperature=1.5, top_p=0.9, top_k=40, min_p=0.05, logit_bias={9: -100}), vocabulary=10)
