"""Figures: shares with exact intervals, the cascade against brute force, latencies of all engines alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.certificate.certify import CertifyData
from compiler.measure import side_by_side
from penstock.errors import CompileError
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


def test_answers_are_all_rows_in_order_within_the_batch_limit() -> None:
    engine = Doubling()
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(side_by_side.answers(engine, {"x": x}, output="y", max_batch=4, what="edge"), x * 2)
    assert engine.batches == [4, 4, 2]


def test_a_model_that_answers_nan_is_refused_by_name() -> None:
    x = np.array([[1, np.nan]], dtype=np.float32)
    with pytest.raises(CompileError, match=r"cloud.onnx: output 'y' holds NaN"):
        side_by_side.answers(Doubling(), {"x": x}, output="y", max_batch=4, what="cloud.onnx")


def test_share_has_the_exact_interval() -> None:
    found = side_by_side.share(np.array([True] * 8 + [False] * 2))
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4439, abs=1e-4)  # scipy.stats.binomtest(8, 10).proportion_ci()
    assert found.high == pytest.approx(0.9748, abs=1e-4)


def test_share_of_nothing_and_of_everything_stay_inside_0_and_1() -> None:
    assert (side_by_side.share(np.zeros(5, bool)).low, side_by_side.share(np.ones(5, bool)).high) == (0.0, 1.0)


classes = hnp.arrays(np.int64, 12, elements=st.integers(0, 2))
scores = hnp.arrays(np.float64, 12, elements=st.floats(0, 1) | st.just(float("nan")))


@settings(deadline=None)  # a busy machine is no defect
@given(scores=scores, edge=classes, cloud=classes, labels=classes, threshold=st.floats(0, 1))
def test_cascade_is_what_a_row_by_row_count_gives(
    scores: np.ndarray, edge: np.ndarray, cloud: np.ndarray, labels: np.ndarray, threshold: float
) -> None:
    data = CertifyData(scores=scores, edge_predictions=edge, cloud_predictions=cloud, labels=labels)
    found = side_by_side.cascade(data, threshold)
    kept = harm = differs = right = 0
    for s, e, c, y in zip(scores, edge, cloud, labels, strict=True):
        is_kept = s >= threshold
        kept += is_kept
        harm += is_kept and e != y and c == y
        differs += is_kept and e != c
        right += (e if is_kept else c) == y
    assert found.accuracy is not None
    counts = [found.coverage.value, found.harm.value, found.disagreement.value, found.accuracy.value]
    assert [round(12 * value) for value in counts] == [kept, harm, differs, right]
    # the promise's identity: what the cascade loses against always asking the cloud is never more than the harm
    assert np.mean(cloud == labels) - found.accuracy.value <= found.harm.value + 1e-12


def test_without_labels_harm_is_disagreement() -> None:
    data = CertifyData(
        scores=np.array([0.9, 0.9, 0.1]), edge_predictions=np.array([0, 1, 1]), cloud_predictions=np.array([0, 0, 0])
    )
    found = side_by_side.cascade(data, 0.5)
    assert found.accuracy is None
    assert found.harm == found.disagreement == side_by_side.share(np.array([False, True, False]))


def test_latencies_are_interleaved_and_named_by_batch_size() -> None:
    engines = {"a": Doubling(), "b": Doubling()}
    found = side_by_side.latencies_ms(engines, {"x": np.zeros((3, 2), np.float32)})
    assert {name: list(sizes) for name, sizes in found.items()} == {"a": ["1", "32"], "b": ["1", "32"]}
    assert all(value > 0 for sizes in found.values() for value in sizes.values())
    assert engines["a"].batches == engines["b"].batches
    assert set(engines["a"].batches) == {1, 32}
