"""Text in the output of a network that names a character, or none, at each step. Pure.

Connectionist temporal classification, read greedily (Graves et al., ICML 2006): the likeliest class of each step,
without repeats and blanks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.policy import confidence
from penstock.policy.confidence import Kind

Floats = NDArray[np.float64]


def characters(values: NDArray[Any], *, blank: int) -> NDArray[np.int64]:
    """Read the characters of each row by number, int64 [N, steps], filled up with -1.

    Args:
        values: [N, steps, classes].
        blank: the class that is no character; negative ones count from the last.

    Raises:
        InvalidInput: an output of another shape.
    """
    _check(values)
    classes, blank = values.argmax(axis=2), blank % values.shape[2]
    found = np.full(classes.shape, -1, dtype=np.int64)
    for at, row in enumerate(classes):
        starts, are_said = _runs(row, blank)
        said = row[starts[are_said]]
        found[at, : len(said)] = said
    return found


def probabilities(values: NDArray[Any], *, kind: Kind, blank: int) -> list[Floats]:
    """Return the probability of each row's characters, a character's being its surest step's; of no text at all, those
    of all steps.

    Raises:
        InvalidInput: an output of another shape.
    """
    _check(values)
    if kind == "probabilities":
        p = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0)
    else:
        p = confidence.softmax(values.reshape(-1, values.shape[2])).reshape(values.shape)
    parts, blank = [], blank % values.shape[2]
    for classes, highest in zip(p.argmax(axis=2), p.max(axis=2), strict=True):
        starts, are_said = _runs(classes, blank)
        surest = np.maximum.reduceat(highest, starts)
        parts.append(surest[are_said] if are_said.any() else highest)
    return parts


def _runs(classes: NDArray[np.int64], blank: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where runs of equal classes begin, and which runs are a character rather than blank."""
    starts = np.flatnonzero(np.concatenate([[True], classes[1:] != classes[:-1]]))
    return starts, np.asarray(classes[starts] != blank)


def _check(values: NDArray[Any]) -> None:
    if values.ndim != 3 or values.dtype.kind not in "fiu" or values.shape[1] < 1 or values.shape[2] < 2:
        raise InvalidInput(
            f"text: {values.dtype} {list(values.shape)}, expected numbers [N, steps, classes] with two classes or more",
            field="outputs",
        )
