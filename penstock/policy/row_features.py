"""What of a request's rows is worth following: some numbers of each input, how sure the answer is, and what it says.

In two steps: :func:`taken` copies what is needed, a few microseconds beside each request; :func:`columns` makes columns
of that, wherever there is time. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Taken = Mapping[tuple[str, str], NDArray[Any]]
"""Copies by what they are (``INPUT``, ``SCORES``) and by the tensor's name."""

CONFIDENCE, PREDICTION, LENGTH = "confidence", "prediction", "length"
INPUT, SCORES = "input", "scores"
_NUMBERS = frozenset("fiub")


def taken(
    inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], rows: int, *, max_features: int
) -> Taken:
    """Copy what columns are made of: numbers of each input at even distances, and scores of classes whole.

    Args:
        rows: dimension 0; what has another one is left out.
        max_features: of each input; of more, as many are picked.
    """
    found: dict[tuple[str, str], NDArray[Any]] = {}
    for name, array in inputs.items():
        if array.ndim and len(array) == rows:
            found[INPUT, name] = _picked(array, max_features)
    for name, array in outputs.items():
        if name in inputs or not array.ndim or len(array) != rows or array.dtype.kind not in _NUMBERS:
            continue
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":
            found[SCORES, name] = array.copy()
        else:
            found[INPUT, name] = _picked(array, max_features)
    return found


def columns(copies: Taken, widths: Mapping[str, int], *, max_features: int) -> dict[str, Numbers]:
    """Make columns of copies, by name: ``x[17]`` is the 18th number of a row of ``x``.

    Args:
        widths: numbers of a row of each tensor before some were picked.
    """
    found: dict[str, Numbers] = {}
    for (kind, name), array in copies.items():
        if kind == SCORES:
            found |= _scored(name, array.astype(np.float64))
        elif array.dtype.kind == "O":
            lengths = [sum(map(len, row)) for row in array.reshape(len(array), -1).tolist()]
            found[f"{name}.{LENGTH}"] = np.asarray(lengths, np.float64)
        else:
            numbers, width = array.astype(np.float64), widths[name]
            places = _places(width, max_features).tolist()
            names = [name] if width == 1 else [f"{name}[{place}]" for place in places]
            found |= {one: numbers[:, at] for at, one in enumerate(names)}
    return found


def widths_of(*tensors: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Count the numbers of a row of each tensor."""
    return {
        name: array.size // len(array) if array.ndim and len(array) else 1
        for group in tensors
        for name, array in group.items()
    }


def features(
    inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], rows: int, *, max_features: int
) -> dict[str, Numbers]:
    """Do both steps at once."""
    copies = taken(inputs, outputs, rows, max_features=max_features)
    return columns(copies, widths_of(outputs, inputs), max_features=max_features)


def _picked(array: NDArray[Any], max_features: int) -> NDArray[Any]:
    if array.dtype.kind == "O":
        return array.copy()
    flat = array.reshape(len(array), -1)
    return flat.take(_places(flat.shape[1], max_features), axis=1)


@lru_cache(maxsize=1024)
def _places(width: int, max_features: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, max(0, width - 1), min(width, max_features)).astype(np.intp))


def _scored(name: str, scores: Numbers) -> dict[str, Numbers]:
    best = scores.max(axis=1)
    with np.errstate(all="ignore"):  # what is no number stays none
        spread = np.exp(scores - best[:, None]).sum(axis=1)
    is_share = bool(np.all((scores >= 0) & (scores <= 1)))
    confidence = best if is_share else 1.0 / spread
    return {f"{name}.{CONFIDENCE}": confidence, f"{name}.{PREDICTION}": scores.argmax(axis=1).astype(np.float64)}
