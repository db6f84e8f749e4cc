"""How well a score ranks answers, whatever the threshold: the area under its ROC curve, and risk against coverage.

Pure. These figures describe; what is promised, and what is chosen, does not rest on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_POINTS = 33


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well a score ranks.

    Attributes:
        auroc: chance that a harmless answer scores higher than a harmful one, ties by half; None where there are not
            both. An answer that is harmful in part is as much of each.
        curve: (coverage, harm), shares of all examples, from none kept to all that have a score.
    """

    auroc: float | None
    curve: tuple[tuple[float, float], ...]


def ranking(scores: Floats, harm: Floats | NDArray[np.bool_]) -> Ranking:
    """Look at scores [N] with the harm of each answer [N], 0 to 1; a score that is NaN is never kept, and so the
    lowest."""
    harms = harm.astype(np.float64)
    return Ranking(auroc=_auroc(np.nan_to_num(scores, nan=-1.0), harms), curve=_curve(scores, harms))


def _auroc(scores: Floats, harm: Floats) -> float | None:
    bad, good = float(harm.sum()), float((1 - harm).sum())
    if not (bad and good):
        return None
    order = np.argsort(scores, kind="stable")
    harm_upto = np.concatenate([[0.0], np.cumsum(harm[order])])
    below, upto = (harm_upto[np.searchsorted(scores[order], scores, side=side)] for side in ("left", "right"))
    return float(((1 - harm) * (below + upto) / 2).sum() / (good * bad))  # of equal scores half


def _curve(scores: Floats, harm: Floats) -> tuple[tuple[float, float], ...]:
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(scores[order])]
    lost = np.concatenate([[0], np.cumsum(harm[order])])
    kept = np.unique(np.round(np.linspace(0, len(order), _POINTS)).astype(np.int64))
    return tuple((float(count / n), float(lost[count] / n)) for count in kept)
