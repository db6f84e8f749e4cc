"""The cache of whole answers: what counts as the same request, what is kept, and that it stays within its bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.generation.values import Grammar, Sampling, TokenEvent, Usage
from penstock.hosting.generation.answer_cache import AnswerCache, cache_key
from tests.penstock.hosting.generation.letters import asked

MANY = 2**20
USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=1)


def answer(text: str = "ok", finish: Any = "stop") -> list[TokenEvent]:
    return [
        TokenEvent(token=1, text=text, logprob=-0.25, top=((1, -0.25), (2, -3.5))),
        TokenEvent(token=2, text="", logprob=-0.5, finish=finish, usage=USAGE, matched_stop="x"),
    ]


def test_an_answer_is_found_again_as_it_was_and_nothing_was_computed() -> None:
    cache = AnswerCache(MANY)
    key = cache_key(asked(), model="sha256:1")
    assert cache.get(key) is None
    cache.put(key, answer())
    found = cache.get(cache_key(asked(id="another"), model="sha256:1"))
    assert found is not None
    assert list(found[:-1]) == answer()[:-1]
    assert found[-1].usage == Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=5)
    assert (found[-1].finish, found[-1].matched_stop) == ("stop", "x")
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"prompt_ids": (1, 2)},
        {"max_new_tokens": 9},
        {"stop": ("a",)},
        {"stop_ids": (3,)},
        {"ignore_end": False},
        {"top_logprobs": 1},
        {"grammar": Grammar(kind="regex", text="a")},
        {"sampling": Sampling(repetition_penalty=1.5)},
        {"sampling": Sampling(logit_bias={3: 1.0})},
        {"sampling": Sampling(temperature=1.0, seed=3)},
    ],
)
def test_whatever_may_change_an_answer_is_another_request(other: dict[str, Any]) -> None:
    changed = msgspec.structs.replace(asked(), **other)
    assert cache_key(changed, model="sha256:1") != cache_key(asked(), model="sha256:1")


def test_another_version_and_another_tenant_never_share() -> None:
    keys = {cache_key(asked(), model=model, tenant=tenant) for model in ("1", "2") for tenant in ("", "a", "b")}
    assert len(keys) == 6
    assert cache_key(asked(), model="ab", tenant="c") != cache_key(asked(), model="b", tenant="ca")


def test_what_is_drawn_without_a_seed_is_never_the_same() -> None:
    assert cache_key(asked(sampling=Sampling(temperature=0.5)), model="1") is None
    cache = AnswerCache(MANY)
    cache.put(None, answer())
    assert cache.get(None) is None
    assert len(cache) == 0


def test_what_decides_among_several_tokens_changes_no_greedy_answer() -> None:
    plain = cache_key(asked(), model="1")
    assert cache_key(asked(sampling=Sampling(top_p=0.5, top_k=3, min_p=0.1, seed=9)), model="1") == plain
    biases = [Sampling(logit_bias={3: 1.0, 5: 2.0}), Sampling(logit_bias={5: 2.0, 3: 1.0})]
    assert cache_key(asked(sampling=biases[0]), model="1") == cache_key(asked(sampling=biases[1]), model="1")


@pytest.mark.parametrize("events", [[], answer()[:1], answer(finish="cancelled")])
def test_what_is_no_whole_answer_is_not_kept(events: list[TokenEvent]) -> None:
    cache = AnswerCache(MANY)
    cache.put(cache_key(asked(), model="1"), events)
    assert len(cache) == 0


def test_nothing_is_kept_without_room_and_no_answer_pushes_out_many() -> None:
    for cache in (AnswerCache(0), AnswerCache(4000)):
        cache.put(b"k", answer("x" * 1000))
        assert len(cache) == 0
    with pytest.raises(ConfigError):
        AnswerCache(-1)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 300), st.booleans()), max_size=60))
def test_it_stays_within_its_bytes_and_forgets_what_was_used_least_lately(
    uses: list[tuple[int, int, bool]],
) -> None:
    cache = AnswerCache(6000)
    used: list[bytes] = []
    for number, size, is_put in uses:
        key = bytes([number])
        if is_put:
            cache.put(key, answer("x" * size))
        if is_put or cache.get(key) is not None:
            used = [*(each for each in used if each != key), key]
        assert cache.size_bytes <= 6000
    kept = [key for key in used if key in cache._answers]
    assert kept == used[len(used) - len(kept) :]
    assert list(cache._answers) == kept
