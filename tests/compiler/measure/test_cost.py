"""Latencies of all engines alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from compiler.measure import cost
from penstock.wire.tensors import Array
from tests.compiler.measure.doubling import Doubling


def test_latencies_are_interleaved_and_named_by_batch_size() -> None:
    engines = {"a": Doubling(), "b": Doubling()}
    found = cost.call_seconds(engines, {"x": np.zeros((3, 2), np.float32)})
    assert {name: list(sizes) for name, sizes in found.items()} == {"a": ["1", "32"], "b": ["1", "32"]}
    assert all(value > 0 for sizes in found.values() for value in cost.medians_ms(sizes).values())
    assert found["a"]["1"].shape == found["b"]["1"].shape
    assert engines["a"].batches == engines["b"].batches
    assert set(engines["a"].batches) == {1, 32}


class Busy:
    """An engine that counts to some number."""

    inputs = outputs = ()

    def __init__(self, count: int) -> None:
        self._count = count

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        assert all(len(array) == 1 for array in inputs.values())
        for _ in range(self._count):
            pass
        return {}

    def close(self) -> None: ...


def test_what_is_added_to_a_call_is_told_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_PAIRS_BUDGET_S", 0.0)
    rows = {"x": np.zeros((3, 1))}
    added = cost.added_share(Busy(20_000), Busy(26_000), rows)
    assert 0.1 < added.low <= added.value <= added.high < 0.6
    nothing = cost.added_share(Busy(20_000), Busy(20_000), rows)
    assert nothing.low < 0.05
    assert abs(nothing.value) < 0.1
