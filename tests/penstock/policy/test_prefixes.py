"""What is remembered of prompts: whole blocks, each with all before it; the latest ones, and a bounded number."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.prefixes import SentPrefixes, blocks_of

ids = st.lists(st.integers(0, 3), max_size=24)


@given(ids, ids, st.integers(1, 5))
def test_prompts_share_as_many_blocks_as_they_are_equal_in(one: list[int], other: list[int], block: int) -> None:
    equal = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    sent = SentPrefixes(100)
    sent.add(blocks_of(one, block))
    assert sent.known(blocks_of(other, block)) == equal // block
    assert len(blocks_of(one, block)) == len(one) // block


@given(st.lists(ids, max_size=12), st.integers(1, 8))
def test_the_last_prompt_is_known_and_there_are_never_more_than_the_limit(prompts: list[list[int]], limit: int) -> None:
    sent = SentPrefixes(limit)
    for prompt in prompts:
        blocks = blocks_of(prompt, 2)
        sent.add(blocks)
        assert len(sent) <= limit
        assert sent.known(blocks) == min(limit, len(blocks))


def test_a_common_beginning_outlives_what_follows_it() -> None:
    sent = SentPrefixes(4)
    for user in range(20):
        sent.add(blocks_of([1, 2, 3, 4, user, user], 2))
    assert sent.known(blocks_of([1, 2, 3, 4, 0, 0], 2)) == 2, "the system prompt stays, the first user went"
    sent.clear()
    assert sent.known(blocks_of([1, 2], 2)) == 0
