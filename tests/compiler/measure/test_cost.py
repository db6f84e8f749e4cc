"""Latencies of all engines alike."""

from __future__ import annotations

import numpy as np

from compiler.measure import cost
from tests.compiler.measure.doubling import Doubling


def test_latencies_are_interleaved_and_named_by_batch_size() -> None:
    engines = {"a": Doubling(), "b": Doubling()}
    found = cost.call_seconds(engines, {"x": np.zeros((3, 2), np.float32)})
    assert {name: list(sizes) for name, sizes in found.items()} == {"a": ["1", "32"], "b": ["1", "32"]}
    assert all(value > 0 for sizes in found.values() for value in cost.medians_ms(sizes).values())
    assert found["a"]["1"].shape == found["b"]["1"].shape
    assert engines["a"].batches == engines["b"].batches
    assert set(engines["a"].batches) == {1, 32}
