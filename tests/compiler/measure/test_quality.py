"""What makes an answer good, by task, against brute force and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compiler.measure import quality
from penstock.errors import CompileError
from penstock.wire.tensors import TensorSpec


def output(*shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name="y", datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("task", "spec"),
    [
        ("classification", output(-1)),
        ("classification", output(-1, 1)),
        ("classification", output(-1, 10, datatype="INT64")),
        ("embedding", output(-1)),
        ("regression", output(-1, datatype="INT64")),
    ],
)
def test_an_output_that_a_task_cannot_use_is_refused_with_what_it_is(task, spec):
    with pytest.raises(CompileError, match=f"output 'y' is {spec.datatype}"):
        quality.check_output(task, spec)


@pytest.mark.parametrize(
    ("task", "spec"),
    [("classification", output(-1, 2)), ("embedding", output(-1, 7, 384)), ("regression", output(-1))],
)
def test_an_output_that_fits_is_fine(task, spec):
    quality.check_output(task, spec)


def test_a_class_is_good_when_it_is_right_or_without_labels_when_the_reference_says_it():
    outputs, reference = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 1]]
    labels = np.array([0, 2, 2, 0])
    assert quality.good_rows("classification", outputs, reference, labels=labels, inputs={}).tolist() == [1, 0, 1, 1]
    assert quality.good_rows("classification", outputs, reference, labels=None, inputs={}).tolist() == [1, 1, 0, 0]


def test_a_regression_is_good_within_a_share_of_the_references_spread():
    reference = np.arange(100, dtype=np.float32)[:, None]
    near = quality.REGRESSION_TOLERANCE * reference.std()
    outputs = reference + np.where(np.arange(100) % 2, 0.9 * near, 1.1 * near)[:, None]
    good = quality.good_rows("regression", outputs, reference, labels=None, inputs={})
    np.testing.assert_array_equal(good, np.arange(100) % 2 == 1)


def test_an_embedding_is_good_when_its_nearest_neighbour_stays():
    source = np.random.default_rng(0)
    reference = source.normal(size=(300, 16))
    outputs = reference + source.normal(size=(300, 16)) * 0.4
    good = quality.good_rows("embedding", outputs, reference, labels=None, inputs={})

    def neighbour(values: np.ndarray, row: int) -> int:
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        similarity = unit @ unit[row]
        similarity[row] = -2
        return int(similarity.argmax())

    assert good.tolist() == [neighbour(outputs, i) == neighbour(reference, i) for i in range(300)]
    assert 0.1 < good.mean() < 0.99


def test_tokens_are_averaged_where_the_mask_marks_them():
    tokens = np.array([[[2.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    found = quality.pooled(tokens, np.array([[1, 1, 0]]))
    np.testing.assert_allclose(found, [[2**-0.5, 2**-0.5]])
    assert np.isfinite(quality.pooled(tokens, np.array([[0, 0, 0]]))).all()


def test_rank_correlation_is_spearmans():
    source = np.random.default_rng(1)
    reference = source.normal(size=(40, 8))
    outputs = reference + 0.3 * source.normal(size=(40, 8))
    pairs = [
        (v @ v.T)[np.triu_indices(40, 1)] for v in (quality.pooled(outputs, None), quality.pooled(reference, None))
    ]
    assert quality.ranking_kept(outputs, reference, None) == pytest.approx(stats.spearmanr(*pairs).statistic)
    assert quality.ranking_kept(reference, reference, None) == pytest.approx(1.0)


def test_share_has_the_exact_interval() -> None:
    found = quality.share(np.array([True] * 8 + [False] * 2))
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4439, abs=1e-4)  # scipy.stats.binomtest(8, 10).proportion_ci()
    assert found.high == pytest.approx(0.9748, abs=1e-4)


def test_share_of_nothing_and_of_everything_stay_inside_0_and_1() -> None:
    assert (quality.share(np.zeros(5, bool)).low, quality.share(np.ones(5, bool)).high) == (0.0, 1.0)
