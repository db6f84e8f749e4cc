"""Tokens that a model generated itself, row by row, with the probability it gave each one when it chose it. Pure.

A row has ended where probabilities are 0: a chosen token's never is. Which tokens are no text (an end, a beginning) is
said by the caller; they count in how sure an answer is, and not in what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput

Floats = NDArray[np.float64]


def paired(ids: NDArray[Any], probabilities: NDArray[Any]) -> Floats:
    """Put tokens and their probabilities, both [N, tokens], into one array [N, tokens, 2].

    Raises:
        InvalidInput: arrays of another shape, or tokens that are no whole numbers.
    """
    are_tokens = ids.ndim == 2 and ids.dtype.kind in "iu"
    if not are_tokens or probabilities.shape != ids.shape or probabilities.dtype.kind != "f":
        raise InvalidInput(
            f"tokens: {ids.dtype} {list(ids.shape)} with probabilities {probabilities.dtype} "
            f"{list(probabilities.shape)}, expected whole numbers and real numbers [N, tokens]",
            field="outputs",
        )
    return np.stack([ids.astype(np.float64), probabilities.astype(np.float64)], axis=2)


def said(values: Floats, *, skip: Sequence[int]) -> NDArray[np.int64]:
    """Read the tokens of each row, int64 [N, tokens], filled up with -1.

    Args:
        values: as :func:`paired` gives them.
        skip: tokens that are no text.
    """
    ids = values[..., 0].astype(np.int64)
    is_text = (values[..., 1] > 0) & ~np.isin(ids, np.asarray(skip, dtype=np.int64))
    found = np.full(ids.shape, -1, dtype=np.int64)
    for at, (row, kept) in enumerate(zip(ids, is_text, strict=True)):
        found[at, : np.count_nonzero(kept)] = row[kept]
    return found


def probabilities(values: Floats) -> list[Floats]:
    """Return the probabilities of the tokens of each row, ends included."""
    return [row[row != 0] for row in values[..., 1]]
