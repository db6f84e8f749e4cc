"""What one step computes, which slot a request gets, and how slots are ordered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.generation.step_plan import (
    Arrangement,
    Chunk,
    Content,
    Placement,
    Unfinished,
    arrange,
    place,
    plan_step,
    shared_beginning,
)


def _rows(*tokens: int) -> list[Unfinished]:
    return [Unfinished(slot=slot, tokens=count, served=slot) for slot, count in enumerate(tokens)]


def test_all_that_decode_go_on_whatever_prompts_wait() -> None:
    plan = plan_step(_rows(1, 500, 1), 64)
    assert plan.decode == (0, 2)
    assert plan.chunks == (Chunk(slot=1, tokens=64),)


def test_short_prompts_share_a_step() -> None:
    assert plan_step(_rows(20, 30, 10), 64).chunks == (
        Chunk(slot=0, tokens=20), Chunk(slot=1, tokens=30), Chunk(slot=2, tokens=10),
    )  # fmt: skip


def test_a_second_prompt_gets_its_whole_rest_or_nothing() -> None:
    assert plan_step(_rows(20, 300, 40), 64).chunks == (Chunk(slot=0, tokens=20), Chunk(slot=2, tokens=40))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(1, 128))
def test_prompts_take_turns_and_all_come_to_their_end(tokens: list[int], chunk: int) -> None:
    rows = {row.slot: row for row in _rows(*tokens)}
    waits = dict.fromkeys(rows, 0)
    for step in range(len(tokens), 10_000):
        plan = plan_step(list(rows.values()), chunk)
        prompts = {slot for slot, row in rows.items() if row.tokens > 1}
        assert sum(each.tokens for each in plan.chunks) <= chunk
        assert bool(plan.chunks) == bool(prompts)
        for each in plan.chunks:
            left = rows[each.slot].tokens - each.tokens
            waits[each.slot] = 0
            rows[each.slot] = Unfinished(slot=each.slot, tokens=max(left, 1), served=step)
        for slot in prompts - {each.slot for each in plan.chunks}:
            waits[slot] += 1
            assert waits[slot] < len(tokens)
        if not prompts:
            break
    assert all(row.tokens == 1 for row in rows.values())


def _slots(*contents: tuple[str, bool, int]) -> list[Content]:
    return [Content(ids=[ord(each) for each in text], is_free=free, used=used) for text, free, used in contents]


def _placed(prompt: str, *contents: tuple[str, bool, int]) -> Placement:
    return place([ord(each) for each in prompt], _slots(*contents))


def test_a_new_prompt_gets_the_slot_that_is_free_for_longest() -> None:
    assert _placed("xyz", ("abc", True, 5), ("abd", True, 3), ("", False, 0)) == Placement(slot=1)


def test_the_next_turn_of_a_conversation_goes_on_in_its_slot() -> None:
    assert _placed("abcdef", ("abcd", True, 5), ("", True, -1)) == Placement(slot=0, cached=4)


def test_a_shared_beginning_is_copied_where_using_it_in_place_would_cut_what_follows() -> None:
    assert _placed("abX", ("abcd", True, 5), ("", True, -1)) == Placement(slot=1, cached=2, source=0)
    assert _placed("abX", ("abcd", True, 5), ("zz", False, 9)) == Placement(slot=0, cached=2)


def test_a_shared_beginning_is_copied_from_a_slot_in_use() -> None:
    assert _placed("abX", ("ab", False, 5), ("zzzz", True, 1)) == Placement(slot=1, cached=2, source=0)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    assert _placed("abc", ("abc", True, 5)) == Placement(slot=0, cached=2)
    assert _placed("a", ("a", True, 5)) == Placement(slot=0)


@given(
    st.text("ab", min_size=1, max_size=6),
    st.lists(st.tuples(st.text("ab", max_size=6), st.booleans(), st.integers(-1, 9)), min_size=1, max_size=5),
)
def test_what_is_said_to_be_cached_is_there(prompt: str, contents: list[tuple[str, bool, int]]) -> None:
    contents[0] = (contents[0][0], True, contents[0][2])
    placed = _placed(prompt, *contents)
    source = placed.slot if placed.source is None else placed.source
    assert contents[placed.slot][1]
    assert placed.cached <= len(prompt) - 1
    assert contents[source][0][: placed.cached] == prompt[: placed.cached]
    assert placed.cached == max(min(shared_beginning(prompt, c[0]), len(prompt) - 1) for c in contents)  # type: ignore[arg-type]


def test_slots_that_lie_side_by_side_stay_where_they_are() -> None:
    assert arrange({2, 3, 4}, 8) == Arrangement(first=2)


def test_a_hole_is_filled_from_outside() -> None:
    assert arrange({0, 1, 3}, 8) == Arrangement(first=0, swaps=((3, 2),))


@given(st.integers(1, 16).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_after_the_swaps_all_lie_side_by_side(case: tuple[int, set[int]]) -> None:
    slots, decode = case
    arranged = arrange(decode, slots)
    where = set(decode)
    for one, other in arranged.swaps:
        assert one in where
        assert other not in where
        where = (where - {one}) | {other}
    assert where == set(range(arranged.first, arranged.first + len(decode)))
