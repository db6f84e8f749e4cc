"""How long rows of texts are, and which are asked together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.policy.text_rows import LENGTH_STEP, MAX_TOKENS_OF_BATCH, EmbeddingSpec, groups, row_length

SPEC = EmbeddingSpec(max_tokens=100, measured_tokens=30, is_padded=True)


@given(tokens=st.integers(1, 100))
def test_a_row_holds_its_text_and_no_more_than_the_model_takes(tokens: int) -> None:
    padded = row_length(tokens, SPEC, fixed=0, may_pad=True)
    assert tokens <= padded <= 100
    assert padded == 100 or padded % LENGTH_STEP == 0
    assert row_length(tokens, SPEC, fixed=128, may_pad=False) == 128


def test_a_row_that_padding_changes_is_as_it_was_measured() -> None:
    assert [row_length(tokens, SPEC, fixed=0, may_pad=False) for tokens in (5, 30, 41)] == [30, 30, 41]
    as_long_as_texts = EmbeddingSpec(max_tokens=100, measured_tokens=30)
    assert row_length(5, as_long_as_texts, fixed=0, may_pad=False) == 5


@given(lengths=st.lists(st.integers(1, 9000), max_size=200), max_rows=st.integers(1, 64))
def test_every_text_is_in_one_group_of_its_length(lengths: list[int], max_rows: int) -> None:
    found = list(groups(lengths, max_rows=max_rows))
    assert sorted(place for group in found for place in group.places) == list(range(len(lengths)))
    for group in found:
        rows = len(group.places)
        assert {lengths[place] for place in group.places} == {group.length}
        assert rows == 1 or (rows <= max_rows and rows * group.length <= MAX_TOKENS_OF_BATCH)
