"""What makes an answer good, by task, against brute force and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compiler.measure import metrics, quality
from compiler.measure.metrics import METRICS
from compiler.measure.quality import Judge
from compiler.recipe.choices import Task
from penstock.errors import CompileError, InvalidInput
from penstock.policy.decoding import Decoder, Decoding
from penstock.wire.tensors import TensorSpec


def output(*shape: int, datatype: str = "FP32", name: str = "y") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def judge(task: Task, metric: str = "") -> Judge:
    row, decoding = quality.TASKS[task], Decoding(form=quality.TASKS[task].form)
    return Judge(
        task=task,
        decoder=Decoder(output="y", kind="logits", decoding=decoding),
        metric=METRICS[metric or row.metric],
        name=metric or row.metric,
        right_at=1.0,
    )


@pytest.mark.parametrize(
    ("task", "spec"),
    [
        ("classification", output(-1)),
        ("classification", output(-1, 10, datatype="INT64")),
        ("embedding", output(-1)),
        ("regression", output(-1, datatype="INT64")),
        ("ranking", output(-1, 1)),
        ("detection", output(-1, 6)),
        ("segmentation", output(-1, 3)),
    ],
)
def test_an_output_that_a_task_cannot_use_is_refused_with_what_it_is(task, spec):
    kind = spec.datatype
    with pytest.raises(CompileError, match=rf"output 'y' is {kind}.*but task '{task}' reads floats"):
        quality.scored_output(task, [spec], "y")
    with pytest.raises(CompileError, match=rf"no output of the model is that; it has y {kind}"):
        quality.scored_output(task, [spec], "")


@pytest.mark.parametrize(
    ("task", "spec"),
    [
        ("classification", output(-1, 2)),
        ("classification", output(-1, 1)),
        ("embedding", output(-1, 7, 384)),
        ("regression", output(-1)),
        ("detection", output(-1, 84, 8400)),
        ("ocr", output(-1, 40, 97)),
        ("segmentation", output(-1, 21, 32, 32)),
    ],
)
def test_an_output_that_fits_is_found(task, spec):
    others = [output(-1, datatype="INT64", name="label"), output(-1, datatype="BYTES", name="word")]
    assert quality.scored_output(task, [*others, spec], "") == spec


def test_of_several_outputs_that_fit_the_one_with_a_usual_name_is_scored_and_otherwise_all_are_listed() -> None:
    logits, features = output(-1, 3, name="logits"), output(-1, 512, name="features")
    assert quality.scored_output("classification", [features, logits], "") == logits
    assert quality.scored_output("classification", [features, output(-1, 1, name="value")], "") == features
    with pytest.raises(CompileError, match=r"name the output.*a FP32\[-1, 3\], features FP32\[-1, 512\]"):
        quality.scored_output("classification", [output(-1, 3, name="a"), features], "")
    with pytest.raises(CompileError, match=r"Set model.task to what the model is for \(.*multilabel"):
        quality.scored_output("detection", [logits], "")


def test_a_class_is_good_when_it_is_right_or_without_labels_when_the_reference_says_it():
    outputs, reference = {"y": np.eye(3)[[0, 1, 2, 0]]}, {"y": np.eye(3)[[0, 1, 1, 1]]}
    labels = np.array([0, 2, 2, 0])
    assert judge("classification").scores(outputs, reference, labels, None).tolist() == [1, 0, 1, 1]
    assert judge("classification").scores(outputs, reference, None, None).tolist() == [1, 1, 0, 0]


def test_a_regression_is_good_within_a_share_of_the_references_spread():
    reference = np.arange(100, dtype=np.float32)[:, None]
    near = metrics.REGRESSION_TOLERANCE * reference.std()
    outputs = reference + np.where(np.arange(100) % 2, 0.9 * near, 1.1 * near)[:, None]
    good = judge("regression").scores({"y": outputs}, {"y": reference}, None, None)
    np.testing.assert_array_equal(good, np.arange(100) % 2 == 1)
    by_labels = judge("regression").scores({"y": outputs}, {"y": reference}, np.zeros(100), None)
    np.testing.assert_array_equal(by_labels, good)  # what the model was taught is not what quantizing it costs


def test_an_embedding_is_good_when_its_nearest_neighbour_stays():
    source = np.random.default_rng(0)
    reference = source.normal(size=(300, 16))
    outputs = reference + source.normal(size=(300, 16)) * 0.4
    good = judge("embedding").scores({"y": outputs}, {"y": reference}, None, None)

    def neighbour(values: np.ndarray, row: int) -> int:
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        similarity = unit @ unit[row]
        similarity[row] = -2
        return int(similarity.argmax())

    assert good.tolist() == [neighbour(outputs, i) == neighbour(reference, i) for i in range(300)]
    assert 0.1 < good.mean() < 0.99


def test_words_are_spelt_in_the_models_own_characters() -> None:
    spelling = Judge(**{**{f: getattr(judge("ocr"), f) for f in Judge.__slots__}, "labels": ("_", "a", "b")})
    found = spelling.references(np.array(["ab", "", "bx"], dtype=object))
    assert found is not None
    assert found.tolist() == [[1, 2], [-1, -1], [2, -2]]
    with pytest.raises(InvalidInput, match=r"model\.labels: the labels are words"):
        judge("ocr").references(np.array(["ab"], dtype=object))


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


@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_graded_rows_is_their_mean_and_its_interval_covers_the_truth(seed: int) -> None:
    source, truth = np.random.default_rng(seed), 0.3
    found = [quality.share(source.beta(3, 7, 200)) for _ in range(200)]
    assert np.mean([share.low <= truth <= share.high for share in found]) > 0.92
    assert all(0 <= share.low <= share.value <= share.high <= 1 for share in found)
