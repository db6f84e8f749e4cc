"""An engine that needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from penstock.wire.tensors import Array, TensorSpec


class Doubling:
    """An engine that doubles; counts its calls."""

    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.batches.append(len(inputs["x"]))
        return {"y": np.asarray(inputs["x"] * 2)}  # type: ignore[operator]

    def close(self) -> None:
        pass
