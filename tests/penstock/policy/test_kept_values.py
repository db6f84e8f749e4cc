from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.kept_values import LARGEST_SHARE, KeptValues

KEYS = [b"a", b"b", b"c", b"d"]


def test_what_was_not_asked_for_longest_makes_room() -> None:
    kept: KeptValues[str] = KeptValues(10 * LARGEST_SHARE)
    for key in range(LARGEST_SHARE):
        kept.put(bytes([key]), f"value {key}", 10)
    assert kept.get(b"\0") == "value 0"
    kept.put(b"new", "new", 10)
    assert (kept.get(b"\0"), kept.get(b"\1"), kept.get(b"new")) == ("value 0", None, "new")
    assert (kept.ended, kept.size_bytes) == (1, 10 * LARGEST_SHARE)


def test_what_would_push_out_many_is_not_kept_and_what_was_there_stays() -> None:
    kept: KeptValues[str] = KeptValues(80)
    kept.put(b"a", "small", 10)
    kept.put(b"b", "large", 11)
    assert (kept.get(b"a"), kept.get(b"b"), kept.ended) == ("small", None, 0)


def test_use_makes_nothing_younger() -> None:
    kept: KeptValues[str] = KeptValues(80, ttl_s=5.0)
    kept.put(b"a", "old", 10, 100.0)
    assert kept.get(b"a", 104.9) == "old"
    assert kept.get(b"a", 105.0) is None
    assert (kept.size_bytes, len(kept), kept.ended) == (0, 0, 1)
    kept.put(b"a", "new", 10, 105.0)
    assert kept.get(b"a", 106.0) == "new"


def test_nothing_is_kept_where_there_is_no_room_or_after_it_was_cleared() -> None:
    none: KeptValues[str] = KeptValues(0)
    none.put(b"a", "a", 1)
    some: KeptValues[str] = KeptValues(80)
    some.put(b"a", "a", 1)
    some.clear()
    for kept in (none, some):
        assert (kept.get(b"a"), kept.size_bytes, len(kept)) == (None, 0, 0)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 12), st.integers(0, 4), st.booleans())))
def test_any_life_is_that_of_a_plain_list_within_its_bounds(steps: list[tuple[bytes, int, int, bool]]) -> None:
    """Against the rules written out: newest last, too old is gone, too large is not taken, the first makes room."""
    ttl_s, room, now = 6.0, 80, 0.0
    kept: KeptValues[int] = KeptValues(room, ttl_s=ttl_s)
    plain: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
    for key, size, passed_s, is_put in steps:
        now += passed_s
        if is_put:
            kept.put(key, size, size, now)
            if size <= room // LARGEST_SHARE:
                plain.pop(key, None)
                plain[key] = (size, now)
            while sum(one for one, _ in plain.values()) > room:
                plain.popitem(last=False)
        else:
            if key in plain and now - plain[key][1] >= ttl_s:
                del plain[key]
            assert kept.get(key, now) == (plain[key][0] if key in plain else None)
            if key in plain:
                plain.move_to_end(key)
        assert kept.size_bytes == sum(one for one, _ in plain.values()) <= room
