"""The answers of a loaded model to all rows of some examples, in calls that are no larger than a device would make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from penstock.errors import CompileError
from penstock.runtime import Engine
from penstock.wire.tensors import Array


def answers(engine: Engine, inputs: Mapping[str, Array], *, output: str, max_batch: int, what: str) -> Array:
    """Return the scored output [N, ...] for all rows.

    Raises:
        CompileError: it holds NaN or infinities.
    """
    rows = len(next(iter(inputs.values())))
    parts = [
        engine.run({name: array[start : start + max_batch] for name, array in inputs.items()}, [output])[output]
        for start in range(0, rows, max_batch)
    ]
    values: Array = np.concatenate(parts)
    if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
        raise CompileError(f"{what}: output {output!r} holds NaN or infinite values for some examples")
    return values
