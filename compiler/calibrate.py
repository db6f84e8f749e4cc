"""Calibration: feeding every example of a split to the quantizer, and the temperature of the confidence score.

Owns that no example is dropped: the quantizer's own options for large sets (``CalibMaxIntermediateOutputs``) lose data
silently, and its cache is keyed on nothing, so neither is used. Ranges are running minima and maxima: batches of any
size give the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from penstock import confidence
from penstock.errors import CalibrationError
from penstock.tensors import Array


class Feed:
    """Hands out all rows of some inputs in batches, once; ``rows_fed`` counts them. A ``CalibrationDataReader``."""

    def __init__(self, inputs: Mapping[str, Array], *, max_batch: int) -> None:
        self._rows = len(next(iter(inputs.values())))
        self._batches = batches(inputs, max_batch)
        self.rows_fed = 0

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, None at the end."""
        batch = next(self._batches, None)
        if batch is not None:
            self.rows_fed += len(next(iter(batch.values())))
        return batch

    def check_complete(self) -> None:
        """
        Raises:
            CalibrationError: whoever read this feed left rows behind.
        """
        if self.rows_fed != self._rows:
            raise CalibrationError(f"the quantizer read {self.rows_fed} of {self._rows} calibration rows")


def batches(inputs: Mapping[str, Array], max_batch: int) -> Iterator[dict[str, Array]]:
    """All rows in order, at most ``max_batch`` at a time; the last batch may be smaller."""
    rows = len(next(iter(inputs.values())))
    for start in range(0, rows, max_batch):
        yield {name: array[start : start + max_batch] for name, array in inputs.items()}


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
