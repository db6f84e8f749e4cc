"""What a cascade does to examples that neither chose nor certified it: figures that promise nothing. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import CascadeFigures, ReliabilityBin
from compiler.certificate.columns import CertifyData, difference, harm
from compiler.measure.quality import share

_RELIABILITY_BINS = 10


def at_threshold(data: CertifyData, threshold: float) -> CascadeFigures:
    """Count what the cascade does to some examples at ``threshold``."""
    kept = np.asarray(data.scores >= threshold)  # never for a NaN score
    edge, cloud, labels, grades = data.edge_predictions, data.cloud_predictions, data.labels, data.graded
    accuracy = None
    if grades is not None:
        accuracy = share(np.where(kept, grades.edge, grades.cloud))
    elif labels is not None:
        accuracy = share(np.asarray(np.where(kept, edge, cloud) == labels))
    return CascadeFigures(
        coverage=share(kept),
        accuracy=accuracy,
        harm=share(kept * harm(data)),
        disagreement=share(kept * difference(data)),
    )


def reliability(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Count how often answers of similar confidence are right: the calibration curve (Guo et al., arXiv 1706.04599).

    Args:
        sure: probability [N] that the model gives its own answer.
        right: bool [N], whether the answer was right.
    """
    bins = np.minimum((sure * _RELIABILITY_BINS).astype(np.int64), _RELIABILITY_BINS - 1)
    found = []
    for index in range(_RELIABILITY_BINS):
        inside = bins == index
        if inside.any():
            often = share(right[inside])
            found.append(
                ReliabilityBin(
                    confidence=float(sure[inside].mean()),
                    accuracy=often.value,
                    low=often.low,
                    high=often.high,
                    rows=often.n,
                )
            )
    return tuple(found)
