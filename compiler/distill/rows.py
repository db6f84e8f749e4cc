"""Which rows train a student, and which only judge it while it trains. Pure.

The rule: a student learns from the split that the recipe names in ``distill.split``, or else from the part of ``fit``
that gives integer ranges (``Dataset.ranges``). Rows of ``tune``, ``certify`` and ``test`` never train anything: a row
that is equal to one of theirs is left out of training, whichever split it came from. Otherwise the student would have
seen the answers that its own certificate is drawn from. Where rows repeat by nature (``data.repeats``) equal ones are
draws by themselves, and nobody holds any out (``compiler.distill.prepare.held_out``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.data.dataset import Split
from compiler.data.splitting import deal, row_keys
from penstock.errors import CalibrationError

MIN_ROWS = 16
"""Fewer rows than this train nothing worth certifying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a student's own.

    Attributes:
        split: what may be learned from.
        train: row numbers of ``split`` to learn from, ascending.
        validation: row numbers to judge by, ascending; equal rows are on the same side.
        left_out: rows that were equal to one of the held-out splits'.
    """

    split: Split
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    left_out: int


def choose(train: Split, held_out: Sequence[Split], *, validation: float, seed: int) -> Rows:
    """Leave out what is held out, and set the validation share apart.

    Args:
        validation: share of the remaining rows.

    Raises:
        CalibrationError: too few rows remain; ``needed`` says how many there must be.
    """
    keys = row_keys(train.inputs)
    forbidden = {key for split in held_out for key in row_keys(split.inputs)}
    kept = np.array([row for row, key in enumerate(keys) if key not in forbidden], dtype=np.intp)
    left_out = len(keys) - len(kept)
    dealt = deal([keys[row] for row in kept], {"train": 1 - validation, "validation": validation}, seed=seed)
    if len(kept) < MIN_ROWS or not len(dealt["train"]) or not len(dealt["validation"]):
        lost = f" besides the {left_out} that are held out for other uses" if left_out else ""
        raise CalibrationError(
            f"split {train.name!r} has {len(kept)} rows to learn from{lost}; a student needs {MIN_ROWS} at least, of "
            "which several are different, and thousands to be good. Give a split for training (distill.split)",
            needed=MIN_ROWS,
        )
    split = train if not left_out else train.take(kept, name=train.name)
    return Rows(split=split, train=dealt["train"], validation=dealt["validation"], left_out=left_out)
