"""A certificate issued: whatever answers are made of, they are chosen on, looked at once and bound in one way."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.certificate import evidence
from compiler.certificate.evidence import Sample
from compiler.certificate.issue import AnsweredRows, issue
from compiler.measure.metrics import METRICS
from compiler.measure.quality import Judge
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact.blobs import digest_of
from penstock.artifact.certificates import Subject
from penstock.errors import CalibrationError
from penstock.policy import confidence
from penstock.policy.decoding import Decoder

PROMISE = CertificateSection(max_harm=0.05)
SUBJECT = Subject(
    model="blobs",
    edge_digest="sha256:" + "1" * 64,
    cloud_digest="sha256:" + "2" * 64,
    preprocessing_digest="sha256:" + "3" * 64,
)
JUDGE = Judge(
    task="classification",
    decoder=Decoder(output="y", kind="logits"),
    metric=METRICS["accuracy"],
    name="accuracy",
    right_at=1.0,
)
DATA_DIGEST = "sha256:" + "4" * 64


def answered(seed: int, n: int, *, labels: bool = True) -> AnsweredRows:
    """A student that is unsure where it is wrong, and a teacher that is nearly always right."""
    source = np.random.default_rng(seed)
    truth = source.integers(0, 5, n)
    right = np.eye(5)[truth]
    return AnsweredRows(
        outputs={"y": (2 * right + source.normal(0, 1, (n, 5))).astype(np.float32)},
        cloud={"y": (9 * right + source.normal(0, 1, (n, 5))).astype(np.float32)},
        labels=truth if labels else None,
        groups=None,
        judge=JUDGE,
    )


def test_what_is_issued_is_found_again_in_its_evidence() -> None:
    choice = answered(1, 600).choose(PROMISE, rows_to_certify=900)
    issued = issue(
        answered(2, 900).certify_data(choice, harm="labels"),
        PROMISE,
        choice,
        SUBJECT,
        Sample(digest=DATA_DIGEST),
        serial=4,
    )
    certificate = issued.certificate
    assert certificate.evidence_digest == digest_of(issued.evidence)
    assert evidence.differences(certificate, evidence.decode(issued.evidence)) == []
    assert (certificate.score, certificate.temperature) == (choice.score, choice.temperature)
    assert (certificate.edge_digest, certificate.data_digest, certificate.serial) == (
        SUBJECT.edge_digest,
        DATA_DIGEST,
        4,
    )


def test_columns_are_scored_as_was_chosen_and_hold_labels_only_where_harm_needs_them() -> None:
    rows = answered(1, 200)
    choice = rows.choose(PROMISE, rows_to_certify=200)
    data = rows.certify_data(choice, harm="disagreement")
    expected = confidence.score(rows.outputs["y"], kind="logits", name=choice.score, temperature=choice.temperature)
    np.testing.assert_array_equal(data.scores, expected)
    assert data.labels is None
    found = rows.certify_data(choice, harm="labels").labels
    assert found is not None
    assert rows.labels is not None
    np.testing.assert_array_equal(found, rows.labels)


def test_a_refusal_says_how_many_examples_are_needed() -> None:
    choice = answered(1, 600).choose(PROMISE, rows_to_certify=20)
    with pytest.raises(CalibrationError) as caught:
        issue(answered(2, 20).certify_data(choice, harm="labels"), PROMISE, choice, SUBJECT, Sample(digest=DATA_DIGEST))
    assert caught.value.needed == 59  # ln(0.05) / ln(1 - 0.05)


def test_without_labels_nobody_knows_what_is_right() -> None:
    assert answered(1, 50, labels=False).sure_and_right(1.0) is None
    found = answered(1, 5000).sure_and_right(1.0)
    assert found is not None
    sure, right = found
    assert right[sure > 0.9].mean() > right[sure < 0.5].mean()
