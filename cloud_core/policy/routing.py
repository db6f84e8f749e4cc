"""Decides which replica takes a chunk. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def least_loaded(outstanding_rows: Sequence[int]) -> int:
    """Choose the replica with the fewest rows queued or running, by its index; the first of equals.

    Not round robin: chunks differ in rows, and a replica that is behind must not get its turn all the same.
    """
    best = 0
    for index in range(1, len(outstanding_rows)):
        if outstanding_rows[index] < outstanding_rows[best]:
            best = index
    return best
