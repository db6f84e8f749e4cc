"""Which server is asked: the one that owes the fewest tokens, among those that may be asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import QueueFull, Unavailable
from penstock.policy.balancing import Owes, choose

servers = st.lists(
    st.builds(
        Owes,
        generations=st.integers(0, 4),
        tokens=st.integers(0, 5000),
        is_left_alone=st.booleans(),
        was_tried=st.booleans(),
    ),
    max_size=6,
)


@given(servers)
def test_the_one_that_owes_the_fewest_tokens_is_asked(given: list[Owes]) -> None:
    chosen = choose(given, max_outstanding=4, retry_after_s=2.0)
    able = [server for server in given if not server.is_left_alone and not server.was_tried]
    free = [server for server in able if server.generations < 4]
    if isinstance(chosen, int):
        assert given[chosen] in free
        assert given[chosen].tokens == min(server.tokens for server in free)
    else:
        assert not free
        assert isinstance(chosen, QueueFull if able else Unavailable)
        assert chosen.retry_after_s == 2.0


def test_idle_servers_are_taken_in_order() -> None:
    assert choose([Owes(generations=0, tokens=0)] * 3, max_outstanding=1, retry_after_s=1.0) == 0
