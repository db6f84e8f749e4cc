"""Masks: a class for each pixel. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.policy import confidence
from penstock.policy.confidence import Kind

Floats = NDArray[np.float64]
_MOST_SMALL = 127


def classes(values: NDArray[Any], *, kind: Kind, threshold: float) -> NDArray[Any]:
    """Read the class of each pixel [N, ...] from an output [N, classes, ...], in the smallest type that holds it.

    Args:
        threshold: probability from which a pixel is inside, where there is one channel for two classes.

    Raises:
        InvalidInput: an output of another shape.
    """
    p = probabilities(values, kind=kind)
    found = p[:, 1] >= threshold if values.shape[1] == 1 else p.argmax(axis=1)
    small = np.int8 if p.shape[1] <= _MOST_SMALL else np.int32
    return np.asarray(found, dtype=small).reshape(len(values), *values.shape[2:])


def probabilities(values: NDArray[Any], *, kind: Kind) -> Floats:
    """Return probabilities [N, classes, pixels]; a single channel is that of the second of two classes.

    Raises:
        InvalidInput: an output of another shape.
    """
    if values.ndim < 3 or values.dtype.kind not in "fiu":
        raise InvalidInput(
            f"mask: {values.dtype} {list(values.shape)}, expected numbers [N, classes, height, width]", field="outputs"
        )
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), values.shape[1], -1)
    if values.shape[1] == 1:
        inside = confidence.each(flat, kind=kind)
        return np.concatenate([1 - inside, inside], axis=1)
    if kind == "probabilities":
        return np.clip(flat, 0.0, 1.0)
    weights = np.exp(flat - flat.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def overlap(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """Return the mean over classes of the overlap (IoU) of two masks [N, ...], float [N]; 1 where both are alike.

    Classes that neither mask has do not count; nor do pixels that are below 0 in either.
    """
    found = np.ones(len(one))
    for row, (a, b) in enumerate(zip(one.reshape(len(one), -1), other.reshape(len(other), -1), strict=True)):
        counts = (a >= 0) & (b >= 0)
        a, b = a[counts], b[counts]
        named = np.union1d(a, b)
        shares = [np.count_nonzero((a == c) & (b == c)) / np.count_nonzero((a == c) | (b == c)) for c in named]
        found[row] = float(np.mean(shares)) if shares else 1.0
    return found
