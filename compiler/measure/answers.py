"""The answers of a loaded model to all rows of some examples, in calls that are no larger than a device would make."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from penstock.errors import CompileError
from penstock.policy.decoding import Decoder, joined
from penstock.runtime import Engine
from penstock.wire.tensors import Array


def answers(
    engine: Engine, inputs: Mapping[str, Array], *, decoder: Decoder, max_batch: int, what: str
) -> dict[str, Array]:
    """Return what the decoder reads of all rows, by name [N, ...]; large outputs are read batch by batch.

    Raises:
        CompileError: an output holds NaN or infinities. InvalidInput: one has another shape than the decoder reads.
    """
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, max_batch):
        given = engine.run(
            {name: array[start : start + max_batch] for name, array in inputs.items()}, list(decoder.outputs)
        )
        for name, values in given.items():
            if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
                raise CompileError(f"{what}: output {name!r} holds NaN or infinite values for some examples")
        parts.append(decoder.reduced(given))
    return {name: joined([part[name] for part in parts]) for name in parts[0]}
