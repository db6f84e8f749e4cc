from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.repeats import Repeats


def test_the_first_of_a_kind_is_said_and_later_the_number_that_was_kept_back() -> None:
    repeats = Repeats(every_s=10.0, max_kinds=5)
    assert [repeats.heard("a", float(now)) for now in (0, 1, 9, 10, 11, 30)] == [0, None, None, 2, None, 1]


def test_kinds_are_told_apart() -> None:
    repeats = Repeats(every_s=10.0, max_kinds=5)
    assert [repeats.heard(kind, 0.0) for kind in "aba"] == [0, 0, None]


def test_of_too_many_kinds_the_one_that_was_said_longest_ago_is_forgotten() -> None:
    repeats = Repeats(every_s=10.0, max_kinds=2)
    assert [repeats.heard(kind, 0.0) for kind in "abcbca"] == [0, 0, 0, None, None, 0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 5.0))))
def test_nothing_is_lost_and_no_kind_is_said_too_often(steps: list[tuple[str, float]]) -> None:
    repeats, now = Repeats(every_s=4.0, max_kinds=3), 0.0
    said: dict[str, list[float]] = {}
    counted: dict[str, int] = {}
    for kind, pause_s in steps:
        now += pause_s
        before = repeats.heard(kind, now)
        if before is not None:
            said.setdefault(kind, []).append(now)
            counted[kind] = counted.get(kind, 0) + 1 + before
    for times in said.values():
        assert all(later >= earlier + 4.0 for earlier, later in pairwise(times))
    for kind, count in counted.items():
        assert count + (repeats.heard(kind, now + 4.0) or 0) == [name for name, _ in steps].count(kind)
