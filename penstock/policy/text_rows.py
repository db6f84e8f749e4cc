"""How texts become rows of tokens for a model that gives one vector for each: what was declared, how long rows are.

Pure: lengths in, lengths and groups out. Who tokenizes is ``penstock.generation.row_tokenizer``, who asks the model
``penstock.hosting.embedding``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

LENGTH_STEP = 16
"""Rows are padded to multiples of so many tokens: rows of equal length can run together, whoever asks for them."""

MAX_TOKENS_OF_BATCH = 8192
"""Of rows that are asked for together, padding included: attention takes memory by the square of a row's length."""


class EmbeddingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How texts become the inputs of a variant that gives one vector for each.

    Attributes:
        max_tokens: most tokens of a text, with those that the tokenizer adds; a longer one is refused.
        tokenizer: name of the variant's file that says which tokens a text has.
        pad_id: token that fills a row up.
        pad_type_id: its type.
        pads_left: it goes before the text.
        prefix: what goes before every text; a model was trained with it.
        is_lower_case: texts are put in lower case first.
        measured_tokens: texts were cut to so many when the variant was measured and certified; 0 where none was asked.
        is_padded: rows were filled up to ``measured_tokens`` then, however short their texts were.
    """

    max_tokens: int
    tokenizer: str = "tokenizer.json"
    pad_id: int = 0
    pad_type_id: int = 0
    pads_left: bool = False
    prefix: str = ""
    is_lower_case: bool = False
    measured_tokens: int = 0
    is_padded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Texts that are asked together.

    Attributes:
        places: of the texts among all that were sent.
        length: tokens of each of their rows.
    """

    places: tuple[int, ...]
    length: int


def row_length(tokens: int, spec: EmbeddingSpec, *, fixed: int, may_pad: bool) -> int:
    """Return the length of a text's row.

    Args:
        tokens: of the text.
        fixed: the only length that the model takes; 0 for any.
        may_pad: whether padding leaves the vector as it is. Where it does not, a row is as it was when the variant was
            measured, and beyond that as long as its text.
    """
    if fixed:
        return fixed
    if not may_pad:
        return max(tokens, spec.measured_tokens if spec.is_padded else 0)
    return max(tokens, min(-(-tokens // LENGTH_STEP) * LENGTH_STEP, spec.max_tokens))


def groups(lengths: Sequence[int], *, max_rows: int) -> Iterator[Group]:
    """Put rows of equal length together, at most ``max_rows`` and not too many tokens at a time."""
    by_length: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_length.setdefault(length, []).append(place)
    for length, places in sorted(by_length.items()):
        rows = max(1, min(max_rows, MAX_TOKENS_OF_BATCH // length))
        for start in range(0, len(places), rows):
            yield Group(places=tuple(places[start : start + rows]), length=length)
