"""The temperature of the confidence score, fitted on examples that certify nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.policy import confidence
from penstock.wire.tensors import Array


def temperature(outputs: Array, classes: NDArray[np.int64], *, kind: confidence.Kind) -> float:
    """The temperature for an output, fitted on classes of a split that certifies nothing.

    Args:
        outputs: logits or probabilities [N, C]; ``classes``: [N], labels, or the cloud's answers where there are none.

    Raises:
        CalibrationError: outputs that are not finite, or no rows.
    """
    values = outputs.astype(np.float64)
    if kind == "probabilities":
        values = np.log(np.maximum(values, np.finfo(np.float64).tiny))  # what confidence.score divides by it
    return confidence.fit_temperature(values, classes)
