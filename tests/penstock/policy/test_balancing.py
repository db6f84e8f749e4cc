"""Which server is asked: the one with the fewest tokens to compute, among those that may be asked."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import QueueFull, Unavailable
from penstock.policy.balancing import Owes, choose

servers = st.lists(
    st.builds(
        Owes,
        generations=st.integers(0, 4),
        tokens=st.integers(0, 5000),
        cached_tokens=st.sampled_from((0, 0, 128, 1024)),
        is_left_alone=st.booleans(),
        was_tried=st.booleans(),
    ),
    max_size=6,
)


@given(servers)
def test_the_one_that_is_at_the_end_first_is_asked(given: list[Owes]) -> None:
    chosen = choose(given, max_outstanding=4, retry_after_s=2.0)
    able = [server for server in given if not server.is_left_alone and not server.was_tried]
    free = [server for server in able if server.generations < 4]
    if isinstance(chosen, int):
        assert given[chosen] in free
        least = min(server.tokens - server.cached_tokens for server in free)
        assert given[chosen].tokens - given[chosen].cached_tokens == least
        fewest = min(server.tokens for server in free)
        assert given[chosen].tokens - fewest <= given[chosen].cached_tokens, (
            "no cache is waited for longer than it saves"
        )
    else:
        assert not free
        assert isinstance(chosen, QueueFull if able else Unavailable)
        assert chosen.retry_after_s == 2.0


def test_idle_servers_are_taken_in_order() -> None:
    assert choose([Owes(generations=0, tokens=0)] * 3, max_outstanding=1, retry_after_s=1.0) == 0


def test_a_cache_is_worth_the_tokens_that_it_saves() -> None:
    def chosen(busy: int, cached: int) -> object:
        with_cache = Owes(generations=1, tokens=busy, cached_tokens=cached)
        return choose([Owes(generations=1, tokens=1000), with_cache], max_outstanding=9, retry_after_s=1.0)

    assert chosen(busy=1100, cached=128) == 1
    assert chosen(busy=1200, cached=128) == 0
    assert chosen(busy=1200, cached=1024) == 1


@given(servers, st.integers(0, 5), st.integers(1, 2000))
def test_more_cache_never_turns_a_prompt_away(given: list[Owes], at: int, more: int) -> None:
    chosen = choose(given, max_outstanding=4, retry_after_s=2.0)
    if chosen == at:
        better = [
            replace(server, cached_tokens=server.cached_tokens + more * (place == at))
            for place, server in enumerate(given)
        ]
        assert choose(better, max_outstanding=4, retry_after_s=2.0) == at
