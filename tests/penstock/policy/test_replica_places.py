from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.replica_places import TINY_BYTES, Placement, before_loading, when_measured


@pytest.mark.parametrize(
    ("placement", "size_bytes", "has_device", "is_inline"),
    [
        ("process", 1, False, False),
        ("inline", 10**12, True, True),
        ("auto", TINY_BYTES, False, None),
        ("auto", TINY_BYTES + 1, False, False),
        ("auto", 1, True, False),
    ],
)
def test_only_what_may_be_tiny_is_measured_and_who_says_where_is_obeyed(
    placement: Placement, size_bytes: int, has_device: bool, is_inline: bool | None
) -> None:
    choice = before_loading(placement, size_bytes=size_bytes, has_device=has_device)
    assert choice.is_inline is is_inline
    assert choice.why


@given(st.floats(0.0, 10.0), st.floats(0.0, 0.01))
def test_what_takes_less_than_a_hand_over_is_handed_over_to_nobody(longest_s: float, hand_over_s: float) -> None:
    assert when_measured(longest_s, hand_over_s=hand_over_s).is_inline is (longest_s < hand_over_s)


def test_nobody_knows_how_long_a_batch_of_free_shapes_takes() -> None:
    choice = when_measured(float("inf"), hand_over_s=1.0)
    assert not choice.is_inline
    assert "nobody knows" in choice.why
