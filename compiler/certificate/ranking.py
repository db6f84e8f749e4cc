"""How well a score ranks answers, whatever the threshold: the area under its ROC curve, and risk against coverage.

Pure. These figures describe; what is promised, and what is chosen, does not rest on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]

_POINTS = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well a score ranks.

    Attributes:
        auroc: chance that a harmless answer scores higher than a harmful one, ties by half; None where there are not
            both.
        curve: (coverage, harm), shares of all examples, from none kept to all that have a score.
    """

    auroc: float | None
    curve: tuple[tuple[float, float], ...]


def ranking(scores: Floats, harmful: Rows) -> Ranking:
    """Look at scores [N]; one that is NaN is never kept, and so the lowest."""
    return Ranking(auroc=_auroc(np.nan_to_num(scores, nan=-1.0), harmful), curve=_curve(scores, harmful))


def _auroc(scores: Floats, harmful: Rows) -> float | None:
    bad = int(np.count_nonzero(harmful))
    good = len(scores) - bad
    if not (bad and good):
        return None
    ordered = np.sort(scores)
    below, upto = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    ranks = (below + upto + 1) / 2  # of equal scores their middle
    return float((ranks[~harmful].sum() - good * (good + 1) / 2) / (good * bad))


def _curve(scores: Floats, harmful: Rows) -> tuple[tuple[float, float], ...]:
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    lost = np.concatenate([[0], np.cumsum(harmful[order])])
    kept = np.unique(np.round(np.linspace(0, len(order), _POINTS)).astype(np.int64))
    return tuple((float(count / n), float(lost[count] / n)) for count in kept)
