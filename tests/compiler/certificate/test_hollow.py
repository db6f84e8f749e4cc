"""Promises that say little: a cloud that guesses is refused with what is suspected, one that gains nothing is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.certificate import evidence, hollow
from compiler.certificate.columns import CertifyData
from compiler.certificate.evidence import Sample
from compiler.certificate.issue import AnsweredRows, Issued, issue
from compiler.measure.metrics import METRICS
from compiler.measure.quality import Judge
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact import certificates
from penstock.artifact.caveats import Caveat
from penstock.artifact.certificates import Subject
from penstock.errors import CalibrationError
from penstock.policy.decoding import Decoder

PROMISE = CertificateSection(max_harm=0.02)
SUBJECT = Subject(
    model="blobs",
    edge_digest="sha256:" + "1" * 64,
    cloud_digest="sha256:" + "2" * 64,
    preprocessing_digest="sha256:" + "3" * 64,
)
CLASSES = 10
JUDGE = Judge(
    task="classification",
    decoder=Decoder(output="y", kind="logits"),
    metric=METRICS["accuracy"],
    name="accuracy",
    right_at=1.0,
)


def logits(answers: np.ndarray, seed: int) -> np.ndarray:
    """Outputs that give these answers, more or less surely."""
    source = np.random.default_rng(seed)
    sure = source.uniform(1, 8, (len(answers), 1))
    return np.asarray(sure * np.eye(CLASSES)[answers] + source.uniform(0, 0.5, (len(answers), CLASSES)), np.float32)


def answered(labels: np.ndarray, edge: np.ndarray, cloud: np.ndarray) -> AnsweredRows:
    outputs, clouds = {"y": logits(edge, 1)}, {"y": logits(cloud, 2)}
    return AnsweredRows(outputs=outputs, cloud=clouds, labels=labels, groups=None, judge=JUDGE)


def sloppy(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The truth, but for a share of the rows."""
    source = np.random.default_rng(seed)
    return np.where(source.random(len(truth)) < share, source.integers(0, CLASSES, len(truth)), truth)


def issued(rows: AnsweredRows, promise: CertificateSection = PROMISE) -> Issued:
    choice = rows.choose(promise, rows_to_certify=600)
    return issue(
        rows.certify_data(choice, harm=promise.harm), promise, choice, SUBJECT, Sample(digest="sha256:" + "4" * 64)
    )


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(5).integers(0, CLASSES - 1, 600)


def test_labels_that_are_off_by_one_are_refused_with_the_suspicion(truth: np.ndarray) -> None:
    edge, cloud = sloppy(truth, 0.1, 1), sloppy(truth, 0.02, 2)
    with pytest.raises(CalibrationError, match=r"0 of 600|label is one more than the cloud's class") as caught:
        issued(answered(truth + 1, edge, cloud))
    assert "not shown to be better than guessing: right in " in caught.value.message
    assert "For 98" in caught.value.message
    assert (
        "the label is one more than the cloud's class: are labels counted from another number" in caught.value.message
    )
    assert "certificate.check_cloud = false" in caught.value.message


def test_classes_in_another_order_are_refused_with_the_order_that_explains_them(truth: np.ndarray) -> None:
    order = np.random.default_rng(3).permutation(CLASSES)
    with pytest.raises(
        CalibrationError, match=r"With classes in another order \(.* for .*, \.\.\.\) the cloud is right"
    ):
        issued(answered(order[truth], sloppy(truth, 0.1, 1), sloppy(truth, 0.02, 2)))


@pytest.mark.parametrize("seed", range(5))
def test_a_cloud_that_was_never_trained_is_refused_and_nothing_is_suspected(truth: np.ndarray, seed: int) -> None:
    guesses = np.random.default_rng(seed).integers(0, CLASSES, len(truth))
    with pytest.raises(CalibrationError, match="better than guessing") as caught:
        issued(answered(truth, guesses, guesses))
    assert "another order" not in caught.value.message
    assert "than the cloud's class" not in caught.value.message


def test_a_cloud_that_is_no_better_than_the_most_frequent_answer_is_refused_although_it_is_nearly_always_right() -> (
    None
):
    truth = (np.random.default_rng(0).random(600) < 0.03).astype(np.int64)
    cloud = np.where(np.random.default_rng(1).random(600) < 0.03, 1 - truth, truth)
    with pytest.raises(CalibrationError, match="the most frequent answer alone in 5"):
        issued(answered(truth, cloud, cloud))


def test_a_recipe_may_certify_it_all_the_same_and_the_first_words_say_so(truth: np.ndarray) -> None:
    rows = answered(truth + 1, sloppy(truth, 0.1, 1), sloppy(truth, 0.02, 2))
    certificate = issued(rows, CertificateSection(max_harm=0.02, check_cloud=False)).certificate
    assert certificate.promise().startswith("the cloud is not shown to be better than guessing: right in ")
    assert certificate.promise().endswith("against always asking the cloud")


def test_an_edge_that_is_the_cloud_is_certified_and_the_first_words_say_so(truth: np.ndarray) -> None:
    cloud = sloppy(truth, 0.1, 2)
    found = issued(answered(truth, cloud, cloud))
    right = int(np.sum(cloud == truth))
    assert found.certificate.promise().startswith(
        "edge and cloud agree on all 600 certifying examples, so that escalating gains nothing "
        f"(right: edge {right}, cloud {right}); with 95% confidence, "
    )
    assert certificates.decode(certificates.encode(found.certificate)) == found.certificate
    assert evidence.differences(found.certificate, evidence.decode(found.evidence)) == []


def test_a_cloud_that_is_not_shown_to_be_better_than_the_edge_is_told(truth: np.ndarray) -> None:
    certificate = issued(answered(truth, sloppy(truth, 0.02, 1), sloppy(truth, 0.02, 2))).certificate
    assert certificate.promise().startswith("600 certifying examples do not show that escalating gains accuracy (")
    assert certificate.caveat is not None
    assert certificate.caveat.kind == "cloud-no-better"


def test_a_cloud_that_is_better_needs_no_caveat_and_its_certificate_is_written_as_before(truth: np.ndarray) -> None:
    certificate = issued(answered(truth, sloppy(truth, 0.1, 1), truth)).certificate
    assert certificate.caveat is None
    assert b"caveat" not in certificates.encode(certificate)
    assert certificate.promise().startswith("with 95% confidence")


def test_a_caveat_that_the_evidence_does_not_bear_out_is_found(truth: np.ndarray) -> None:
    cloud = sloppy(truth, 0.1, 2)
    found = issued(answered(truth, cloud, cloud))
    other = evidence.decode(issued(answered(truth, sloppy(truth, 0.1, 1), truth)).evidence)
    assert any("caveat" in text for text in evidence.differences(found.certificate, other))


def test_without_labels_only_equal_answers_are_seen(truth: np.ndarray) -> None:
    def caveat(edge: np.ndarray, cloud: np.ndarray) -> str | None:
        scores = np.full(len(edge), 0.5)
        found = hollow.caveat(CertifyData(scores=scores, edge_predictions=edge, cloud_predictions=cloud))
        return None if found is None else found.words()

    assert caveat(truth, sloppy(truth, 0.1, 1)) is None
    assert (
        caveat(truth, truth) == "edge and cloud agree on all 600 certifying examples, so that escalating gains nothing"
    )
    constant = np.zeros_like(truth)
    assert caveat(truth, constant) == "the cloud gives the same answer to all 600 certifying examples"
    promise = CertificateSection(max_harm=0.02, harm="disagreement")
    with pytest.raises(CalibrationError, match="the cloud gives the same answer to all 600"):
        issued(answered(truth, constant, constant), promise)


def test_answers_that_are_no_classes_have_no_most_frequent_one(truth: np.ndarray) -> None:
    """Boxes and texts are right (0) or wrong (1); that all of them should be right makes being right no guess."""
    right, wrong, rarely = np.zeros(600, np.int64), np.ones(600, np.int64), (np.arange(600) >= 3).astype(np.int64)

    def caveat(edge: np.ndarray, cloud: np.ndarray, labels: np.ndarray | None = right) -> Caveat | None:
        data = CertifyData(scores=np.zeros(600), edge_predictions=edge, cloud_predictions=cloud, labels=labels)
        return hollow.caveat(data, are_classes=False)

    assert caveat(rarely, (np.arange(600) >= 550).astype(np.int64)) is None
    for cloud, count in ((wrong, 0), (rarely, 3)):
        found = caveat(wrong, cloud)
        assert found is not None
        assert found.words() == (
            f"the cloud is not shown to be better than guessing: right in {count} of 600 certifying examples"
        )
    same = caveat(right, right, labels=None)
    assert same is not None
    assert same.kind == "same-answers"


def test_copies_of_a_few_examples_do_not_make_a_cloud_better() -> None:
    """Of four patients the cloud is better for all, 100 times each: that is four throws, not four hundred."""
    labels, clusters = np.tile(np.arange(4), 100), np.repeat(np.arange(4), 100)
    edge = np.where(np.arange(400) % 100 == 0, labels, (labels + 1) % 4)

    def kind(clusters: np.ndarray | None) -> str | None:
        data = CertifyData(
            scores=np.zeros(400), edge_predictions=edge, cloud_predictions=labels, labels=labels, clusters=clusters
        )
        found = hollow.caveat(data)
        return None if found is None else found.kind

    assert kind(None) is None
    assert kind(clusters) == "cloud-guesses"


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 400), classes=st.integers(1, 30))
def test_a_guess_is_called_better_than_guessing_as_rarely_as_the_level_says_and_never_raises(seed, n, classes):
    source = np.random.default_rng(seed)
    labels, cloud, edge = (source.integers(0, classes, n) for _ in range(3))
    data = CertifyData(scores=np.zeros(n), edge_predictions=edge, cloud_predictions=cloud, labels=labels)
    found = hollow.caveat(data)
    assert found is None or hollow.reason(found, data)
    assert hollow.suspicion(cloud, labels) == "" or classes <= 3 or n < 40


def test_random_answers_pass_for_better_than_guessing_at_most_as_often_as_said() -> None:
    source = np.random.default_rng(9)
    passed = 0
    for _ in range(500):
        labels, cloud = source.integers(0, 3, (2, 300))
        data = CertifyData(scores=np.zeros(300), edge_predictions=cloud, cloud_predictions=cloud, labels=labels)
        found = hollow.caveat(data)
        passed += found is None or found.kind != "cloud-guesses"
    assert passed <= 0.05 * 500
