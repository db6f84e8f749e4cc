"""The cascade on examples that it was not made with, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.certificate.columns import CertifyData
from compiler.measure import cascade_figures
from compiler.measure.quality import share

classes = hnp.arrays(np.int64, 12, elements=st.integers(0, 2))
scores = hnp.arrays(np.float64, 12, elements=st.floats(0, 1) | st.just(float("nan")))


@given(scores=scores, edge=classes, cloud=classes, labels=classes, threshold=st.floats(0, 1))
def test_cascade_is_what_a_row_by_row_count_gives(
    scores: np.ndarray, edge: np.ndarray, cloud: np.ndarray, labels: np.ndarray, threshold: float
) -> None:
    data = CertifyData(scores=scores, edge_predictions=edge, cloud_predictions=cloud, labels=labels)
    found = cascade_figures.at_threshold(data, threshold)
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
    found = cascade_figures.at_threshold(data, 0.5)
    assert found.accuracy is None
    assert found.harm == found.disagreement == share(np.array([False, True, False]))


def test_reliability_counts_rows_of_similar_confidence() -> None:
    sure = np.array([0.05, 0.95, 0.97, 1.0])
    low, high = cascade_figures.reliability(sure, np.array([False, True, False, True]))
    assert (low.confidence, low.accuracy, low.rows) == (0.05, 0.0, 1)
    assert (high.confidence, high.accuracy, high.rows) == (pytest.approx(0.97333, abs=1e-4), pytest.approx(2 / 3), 3)
