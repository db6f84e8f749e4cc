"""What of a request's rows is worth following: some numbers of each input, how sure the answer is, and what it says.

Pure and cheap: it picks columns and copies them, and computes nothing that grows with what is not picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

CONFIDENCE, PREDICTION, LENGTH = "confidence", "prediction", "length"


def features(
    inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], rows: int, *, max_features: int
) -> dict[str, Numbers]:
    """Pick columns of rows, by name: ``x[17]`` is the 18th number of a row of input ``x``.

    Args:
        rows: dimension 0; what has another one is left out.
        max_features: of each input; of more, as many are picked at even distances.
    """
    found: dict[str, Numbers] = {}
    for name, array in inputs.items():
        if array.ndim and len(array) == rows:
            found |= _of_input(name, array, max_features)
    for name, array in outputs.items():
        if array.ndim and len(array) == rows:
            found |= _of_output(name, array, max_features)
    return found


def _of_input(name: str, array: NDArray[Any], max_features: int) -> dict[str, Numbers]:
    if array.dtype.kind == "O":
        lengths = [sum(map(len, row)) for row in array.reshape(len(array), -1).tolist()]
        return {f"{name}.{LENGTH}": np.asarray(lengths, np.float64)}
    flat = array.reshape(len(array), -1)
    width = flat.shape[1]
    if width == 1 or array.ndim == 1:
        return {name: flat[:, 0].astype(np.float64)}
    if width == 0:
        return {}
    picked = np.linspace(0, width - 1, min(width, max_features)).astype(int)
    return {f"{name}[{place}]": flat[:, place].astype(np.float64) for place in dict.fromkeys(picked.tolist())}


def _of_output(name: str, array: NDArray[Any], max_features: int) -> dict[str, Numbers]:
    if array.dtype.kind not in "fiub":
        return {}
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":  # scores of classes
        scores = array.astype(np.float64)
        best = scores.max(axis=1)
        with np.errstate(all="ignore"):  # what is no number stays none
            shifted = np.exp(scores - best[:, None]).sum(axis=1)
        is_share = bool(np.all((scores >= 0) & (scores <= 1)))
        confidence = best if is_share else 1.0 / shifted
        return {f"{name}.{CONFIDENCE}": confidence, f"{name}.{PREDICTION}": scores.argmax(axis=1).astype(np.float64)}
    return _of_input(name, array, max_features)
