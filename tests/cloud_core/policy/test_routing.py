from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.routing import least_loaded


@given(st.lists(st.integers(0, 100), min_size=1, max_size=64))
def test_the_first_of_the_least_loaded_takes_the_chunk(outstanding: list[int]) -> None:
    assert least_loaded(outstanding) == outstanding.index(min(outstanding))
