"""Boxes of a detector: read from its output, thinned out, matched with other boxes. Pure.

A picture's boxes are rows ``x1, y1, x2, y2, class, score``, the surest first, at most :data:`MAX_BOXES`; rows that are
left empty hold -1.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput

Array = NDArray[Any]
Floats = NDArray[np.float64]
Layout = Literal["rows", "yolo", "yolo-objectness"]

MAX_BOXES = 100
_MAX_CANDIDATES = 1000  # of a picture, the surest: suppression compares each with each
_CLASS, _SCORE = 4, 5


def found(values: Array, *, layout: Layout, threshold: float, suppress: float) -> Floats:
    """Read the boxes of each picture, float64 [N, MAX_BOXES, 6].

    Args:
        values: a detector's output, laid out as ``layout`` says (``penstock.policy.decoding.DecodingSettings``).
        threshold: score from which a candidate is a box.
        suppress: overlap from which the less sure of two boxes of a class is left out; "rows" are taken as they are.

    Raises:
        InvalidInput: an output of another shape than the layout's.
    """
    read = _candidates(values, layout)
    boxes = np.full((len(read), MAX_BOXES, 6), -1.0)
    for at, candidates in enumerate(read):
        sure = candidates[candidates[:, _SCORE] >= threshold]  # never NaN
        sure = sure[np.argsort(-sure[:, _SCORE], kind="stable")][:_MAX_CANDIDATES]
        kept = sure[_survivors(sure, suppress)] if layout != "rows" else sure
        boxes[at, : min(len(kept), MAX_BOXES)] = kept[:MAX_BOXES]
    return boxes


def best_scores(values: Array, *, layout: Layout) -> Floats:
    """Return the score of each picture's surest candidate [N], a box or not; 0 where there is none."""
    return np.array(
        [max(0.0, min(1.0, float(np.nanmax(c[:, _SCORE], initial=0)))) for c in _candidates(values, layout)]
    )


def filled(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of one picture that hold a box."""
    return rows[rows[:, _CLASS] >= 0]


def overlaps(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """Return intersection over union of each box of ``one`` with each of ``other``, float64 [len(one), len(other)]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:4], other[None, :, 2:4])
    inside = np.clip(high - low, 0, None).prod(axis=2)
    sizes = [np.clip(b[:, 2:4] - b[:, :2], 0, None).prod(axis=1) for b in (one, other)]
    union = sizes[0][:, None] + sizes[1][None, :] - inside
    return np.asarray(np.divide(inside, union, out=np.zeros_like(union), where=union > 0))


def are_same(one: NDArray[Any], other: NDArray[Any], *, overlap: float) -> bool:
    """Say whether two pictures hold the same boxes: as many, and each with a partner of its class that overlaps."""
    one, other = filled(one), filled(other)
    if len(one) != len(other):
        return False
    shared = overlaps(one, other)
    shared[one[:, None, _CLASS] != other[None, :, _CLASS]] = 0
    return _can_pair(shared >= overlap)


def _can_pair(fits: NDArray[np.bool_]) -> bool:
    """Say whether every row can have a column of its own (augmenting paths): the same whichever comes first."""
    partner: dict[int, int] = {}

    def take(row: int, seen: set[int]) -> bool:
        for column in np.flatnonzero(fits[row]).tolist():
            if column not in seen:
                seen.add(column)
                if column not in partner or take(partner[column], seen):
                    partner[column] = row
                    return True
        return False

    return all(take(row, set()) for row in range(len(fits)))


def _survivors(boxes: Floats, suppress: float) -> NDArray[np.intp]:
    """Return the boxes, surest first, that no surer one of their class covers by more than ``suppress``."""
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < MAX_BOXES:
        first, rest = left[0], left[1:]
        kept.append(int(first))
        covered = overlaps(boxes[first : first + 1], boxes[rest])[0] > suppress
        left = rest[~(covered & (boxes[rest, _CLASS] == boxes[first, _CLASS]))]
    return np.array(kept, dtype=np.intp)


def _candidates(values: Array, layout: Layout) -> list[Floats]:
    numbers = np.asarray(values, dtype=np.float64)
    fits = (
        numbers.ndim == 3
        and {
            "rows": numbers.shape[-1] == 6,
            "yolo": numbers.shape[1] > 4,
            "yolo-objectness": numbers.shape[-1] > 5,
        }[layout]
    )
    if not fits:
        expected = {"rows": "[N, K, 6]", "yolo": "[N, 4 + classes, K]", "yolo-objectness": "[N, K, 5 + classes]"}
        raise InvalidInput(
            f"boxes: {list(numbers.shape)}, but the layout {layout!r} is {expected[layout]}", field="outputs"
        )
    if layout == "rows":
        rows = numbers[:, :, [0, 1, 2, 3, 5, 4]]
        rows[:, :, _CLASS] = np.rint(rows[:, :, _CLASS])  # half precision and rounding leave 2.998 of a 3
        return [_known(row) for row in rows]
    turned = numbers.transpose(0, 2, 1) if layout == "yolo" else numbers
    return [_of_yolo(row, has_objectness=layout == "yolo-objectness") for row in turned]


def _of_yolo(row: Floats, *, has_objectness: bool) -> Floats:
    scores = row[:, 5:] * row[:, 4:5] if has_objectness else row[:, 4:]
    classes = scores.argmax(axis=1)
    half = row[:, 2:4] / 2
    corners = (row[:, :2] - half, row[:, :2] + half)
    return _known(np.column_stack([*corners, classes, scores[np.arange(len(row)), classes]]))


def _known(boxes: Floats) -> Floats:
    """Leave out what is no box: NaN, no area, and classes below 0, by which some detectors fill up their rows."""
    has_area = (boxes[:, 2:4] > boxes[:, :2]).all(axis=1)
    return boxes[np.isfinite(boxes).all(axis=1) & has_area & (boxes[:, _CLASS] >= 0)]
