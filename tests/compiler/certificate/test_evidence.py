"""The evidence document: small, the same for the same examples, and enough to find every changed figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.certificate import evidence
from compiler.certificate.columns import CertifyData
from compiler.certificate.evidence import Sample
from compiler.certificate.learn_then_test import Promised, promise
from compiler.recipe.certificate_section import CertificateSection
from penstock.artifact import certificates
from penstock.artifact.blobs import digest_of
from penstock.artifact.certificates import Certificate, Subject
from penstock.errors import ArtifactError, CalibrationError
from penstock.wire import tensors

SUBJECT = Subject(
    model="digits",
    edge_digest="sha256:" + "1" * 64,
    cloud_digest="sha256:" + "2" * 64,
    preprocessing_digest="sha256:" + "3" * 64,
)
GOLDEN = Path(__file__).parent / "golden"
SECTION = CertificateSection(max_harm=(0.05, 0.1, 0.001), delta=0.1)


def examples(*, groups: bool = False, labels: bool = True, clusters: bool = False, n: int = 600) -> CertifyData:
    rng = np.random.default_rng(4)
    scores, truth = rng.random(n), rng.integers(0, 300, n)
    edge = np.where(rng.random(n) < 0.3 * (1 - scores), (truth + 1) % 300, truth)
    cloud = np.where(rng.random(n) < 0.02, (truth + 2) % 300, truth)
    return CertifyData(
        scores=scores,
        edge_predictions=edge,
        cloud_predictions=cloud,
        labels=truth if labels else None,
        groups=np.where(rng.random(n) < 0.5, "Ulm", "Köln") if groups else None,
        clusters=rng.integers(1000, 1400, n) if clusters else None,
    )


def issue(data: CertifyData, section: CertificateSection = SECTION) -> tuple[Certificate, bytes, Promised]:
    harm = "labels" if data.labels is not None else "disagreement"
    found = promise(data, msgspec.structs.replace(section, harm=harm))
    document = evidence.encode(data, found.thresholds)
    certificate = evidence.bind(
        found,
        SUBJECT,
        Sample(
            digest="sha256:" + "4" * 64,
            group_by="city" if data.groups is not None else "",
            cluster_by="patient" if data.clusters is not None else "",
            rows=len(data.scores),
        ),
        score="margin",
        temperature=1.5,
        evidence=document,
        serial=3,
    )
    return certificate, document, found


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("clusters", [False, True])
def test_every_figure_is_found_again(groups: bool, labels: bool, clusters: bool) -> None:
    certificate, document, _ = issue(examples(groups=groups, labels=labels, clusters=clusters))
    again = certificates.decode(certificates.encode(certificate))
    assert again == certificate
    assert evidence.differences(again, evidence.decode(document)) == []


def test_a_certificate_says_what_was_found_and_what_it_is_about() -> None:
    certificate, document, found = issue(examples(groups=True))
    assert (certificate.model, certificate.edge_digest, certificate.cloud_digest) == (
        SUBJECT.model,
        SUBJECT.edge_digest,
        SUBJECT.cloud_digest,
    )
    assert (certificate.score, certificate.temperature, certificate.serial) == ("margin", 1.5, 3)
    assert certificate.evidence_digest == digest_of(document)
    assert certificate.group_by == "city"
    assert certificate.max_harms == (0.05, 0.1)
    assert certificate.threshold == found.default.threshold == certificate.levels[0].threshold
    assert [level.groups for level in certificate.levels] == [level.groups for level in found.levels]
    (refused,) = certificate.refused
    assert (refused.max_harm, refused.needed) == (0.001, found.refused[0].needed)


def test_the_same_examples_give_the_same_bytes_and_come_back() -> None:
    data = examples(groups=True)
    document = evidence.encode(data, (0.9, 0.5))
    assert document == evidence.encode(examples(groups=True), (0.9, 0.5))
    back = evidence.decode(document)
    assert back.thresholds == (0.9, 0.5)
    for name in ("scores", "edge_predictions", "cloud_predictions", "labels", "groups"):
        np.testing.assert_array_equal(getattr(back.data, name), getattr(data, name))


def test_a_row_costs_little() -> None:
    """A score is eight bytes, a class of 300 is two, a group is one."""
    few, many = (len(evidence.encode(examples(groups=True, n=n), (0.5,))) for n in (500, 1500))
    assert (many - few) / 1000 == pytest.approx(8 + 3 * 2 + 1, abs=0.1)


def test_nan_scores_and_large_and_negative_classes_come_back() -> None:
    data = CertifyData(
        scores=np.array([np.nan, 0.5]),
        edge_predictions=np.array([-1, 2**40]),
        cloud_predictions=np.array([70_000, 0]),
    )
    back = evidence.decode(evidence.encode(data, (0.5,))).data
    np.testing.assert_array_equal(back.scores, data.scores)
    np.testing.assert_array_equal(back.edge_predictions, data.edge_predictions)
    np.testing.assert_array_equal(back.cloud_predictions, data.cloud_predictions)


def test_more_rows_than_are_kept_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_ROWS", 599)
    with pytest.raises(CalibrationError, match="600 certifying examples, more than the 599"):
        evidence.encode(examples(), (0.5,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": 0.1}, "level 0.05: threshold: 0.1 certified"),
        ({"harm_count": 0}, "level 0.05: harm_count: 0 certified"),
        ({"n": 6000}, "level 0.05: n: 6000 certified, 600 recomputed"),
        ({"delta": 0.5}, "level 0.05: "),
        ({"coverage_high": 0.99}, "level 0.05: coverage_high: 0.99 certified"),
        ({"audit_max_harm": 0.05}, "level 0.05: audit_max_harm: 0.05 certified"),
        ({"max_harm": 0.001}, "the evidence does not support it: 600 certifying examples are too few"),
    ],
)
def test_each_changed_figure_is_named(change: dict[str, Any], said: str) -> None:
    certificate, document, _ = issue(examples())
    first = msgspec.structs.replace(certificate.levels[0], **change)
    changed = msgspec.structs.replace(certificate, levels=(first, *certificate.levels[1:]), **change)
    found = evidence.differences(changed, evidence.decode(document))
    assert any(said in text for text in found), found


def test_a_changed_group_is_named() -> None:
    certificate, document, _ = issue(examples(groups=True))
    first = certificate.levels[0]
    groups = (msgspec.structs.replace(first.groups[0], harm_count=0, name=first.groups[0].name), *first.groups[1:])
    changed = msgspec.structs.replace(
        certificate, levels=(msgspec.structs.replace(first, groups=groups), *certificate.levels[1:])
    )
    (text,) = evidence.differences(changed, evidence.decode(document))
    assert text.startswith("level 0.05: group 'Köln': harm_count: 0 certified")


def test_groups_that_were_left_out_are_named() -> None:
    certificate, document, _ = issue(examples(groups=True))
    levels = tuple(msgspec.structs.replace(level, groups=()) for level in certificate.levels)
    found = evidence.differences(msgspec.structs.replace(certificate, levels=levels), evidence.decode(document))
    assert "level 0.05: groups: [] certified, ['Köln', 'Ulm'] in the evidence" in found


def test_evidence_of_other_examples_is_found_out() -> None:
    certificate, _, _ = issue(examples())
    data = examples()
    other = evidence.encode(replace(data, edge_predictions=data.cloud_predictions), (0.9, 0.5))
    assert evidence.differences(certificate, evidence.decode(other))


def test_evidence_of_another_harm_is_named() -> None:
    certificate, document, _ = issue(examples(labels=False))
    changed = msgspec.structs.replace(certificate, harm="labels")
    assert evidence.differences(changed, evidence.decode(document))[0].startswith("harm: labels certified")


def test_a_refusal_that_the_evidence_does_not_bear_out_is_named() -> None:
    certificate, document, _ = issue(examples())
    lenient = msgspec.structs.replace(certificate.refused[0], max_harm=0.3)
    found = evidence.differences(msgspec.structs.replace(certificate, refused=(lenient,)), evidence.decode(document))
    assert found == ["level 0.3: refused, but the evidence supports it"]


def test_a_certificate_of_one_level_from_before_there_were_several_is_recomputed() -> None:
    certificate, document, _ = issue(examples(), CertificateSection(max_harm=0.05))
    old = msgspec.structs.replace(certificate, levels=())
    assert evidence.differences(old, evidence.decode(document)) == []
    assert evidence.differences(msgspec.structs.replace(old, kept_count=1), evidence.decode(document))


def test_a_certificate_over_clusters_says_so_and_its_evidence_names_none_of_them() -> None:
    certificate, document, _ = issue(examples(clusters=True))
    assert (certificate.test, certificate.over, certificate.cluster_by) == ("betting-clusters", "clusters", "patient")
    clusters = evidence.decode(document).data.clusters
    assert clusters is not None
    assert (certificate.n, certificate.rows) == (len(np.unique(clusters)), 600)
    assert sorted(np.unique(clusters).tolist()) == list(range(certificate.n))  # numbers of their own, from 0
    assert certificate.promise().endswith("cloud, on average over clusters by 'patient', each counted once")


def test_a_changed_number_of_rows_in_the_clusters_is_named() -> None:
    certificate, document, _ = issue(examples(clusters=True))
    (text,) = evidence.differences(msgspec.structs.replace(certificate, rows=900), evidence.decode(document))
    assert text == "rows: 900 certified, the evidence has 600"


def test_copies_that_counted_once_are_told() -> None:
    data = examples()
    found = promise(data, SECTION)
    sample = Sample(digest="sha256:" + "4" * 64, rows=5000)
    certificate = evidence.bind(found, SUBJECT, sample, score="margin", temperature=1.0)
    assert (certificate.over, certificate.n, certificate.rows) == ("distinct rows", 600, 5000)
    assert certificate.promise().endswith("cloud, counting equal rows once")


@pytest.mark.parametrize("clusters", [False, True])
def test_clusters_are_recomputed_only_as_clusters(clusters: bool) -> None:
    """Neither may rows that belong together be tested as rows, nor the other way round."""
    certificate, document, _ = issue(examples(clusters=clusters))
    over, test = ("rows", "binomial") if clusters else ("clusters", "betting-clusters")
    changed = msgspec.structs.replace(certificate, over=over, test=test)
    said = evidence.differences(changed, evidence.decode(document))
    assert said[0].startswith(f"test: {test} certified, the evidence is for ")
    assert said[1].startswith(f"over: {over} certified, the evidence has ")


@pytest.mark.parametrize("name", ["all", "groups", "each", "clusters", "grades"])
def test_certificates_of_earlier_releases_verify(name: str) -> None:
    """Files that penstock wrote once, with refused levels among them: a later release must find every figure again."""
    certificate = certificates.decode((GOLDEN / f"{name}.certificate.json").read_bytes())
    assert certificate.refused
    document = (GOLDEN / f"{name}.evidence.msgpack").read_bytes()
    assert digest_of(document) == certificate.evidence_digest
    assert evidence.differences(certificate, evidence.decode(document)) == []


@pytest.mark.parametrize(("has_groups", "test"), [(False, "binomial"), (True, "binomial-each")])
def test_a_certificate_names_its_test_and_only_where_an_older_release_would_not_know_it(
    has_groups: bool, test: str
) -> None:
    certificate, _, _ = issue(examples(groups=has_groups))
    assert certificate.test == test
    written = msgspec.json.decode(certificates.encode(certificate))
    assert ("test" in written) == has_groups
    assert certificates.decode(certificates.encode(certificate)) == certificate


def test_groups_are_recomputed_by_the_test_that_the_certificate_names() -> None:
    """Without a name each group had delta / groups, which gives other thresholds."""
    certificate, document, _ = issue(examples(groups=True), CertificateSection(max_harm=0.04, delta=0.1))
    renamed = msgspec.structs.replace(certificate, test="binomial")
    assert any("threshold" in text for text in evidence.differences(renamed, evidence.decode(document)))


def test_a_test_that_the_evidence_is_not_for_is_named() -> None:
    certificate, document, _ = issue(examples())
    renamed = msgspec.structs.replace(certificate, test="binomial-each")
    assert evidence.differences(renamed, evidence.decode(document))[0] == (
        "test: binomial-each certified, the evidence is for binomial"
    )


def test_a_refusal_in_other_words_verifies_and_one_with_another_number_does_not() -> None:
    """What a message says may be worded better one day; that must not invalidate what was issued before."""
    certificate, document, _ = issue(examples())
    (refused,) = certificate.refused
    reworded = msgspec.structs.replace(refused, reason="not enough examples")
    same = msgspec.structs.replace(certificate, refused=(reworded,))
    assert evidence.differences(same, evidence.decode(document)) == []
    assert refused.needed is not None
    other = msgspec.structs.replace(reworded, needed=refused.needed + 1)
    (text,) = evidence.differences(msgspec.structs.replace(certificate, refused=(other,)), evidence.decode(document))
    assert text == f"level 0.001: refused, needed: {refused.needed + 1} certified, {refused.needed} recomputed"


def columns(**changes: NDArray[Any] | None) -> bytes:
    named: dict[str, Any] = {
        "scores": np.array([0.5, 0.6]),
        "edge": np.array([0, 1], np.uint8),
        "cloud": np.array([0, 1], np.uint8),
        "thresholds": np.array([0.5]),
    }
    return tensors.pack({name: array for name, array in (named | changes).items() if array is not None})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"\x00not msgpack", "not a packed tensor document"),
        (columns(edge=None), r"missing columns \['edge'\]"),
        (columns(inputs=np.zeros(2)), r"unknown columns \['inputs'\]"),
        (columns(scores=np.array([0.5, 0.6], np.float32)), "expected float64"),
        (columns(scores=np.array([0.5, 1.6])), "outside"),
        (columns(edge=np.array([0.0, 1.0])), "expected integers"),
        (columns(cloud=np.array([0], np.uint8)), "cloud_predictions"),
        (columns(groups=np.array([0, 0], np.uint8)), "groups need their members' numbers"),
        (columns(groups=np.array([0, 1], np.uint8), group_names=np.array([b"a"], object)), "of 1 names"),
        (columns(groups=np.array([0, 0], np.uint8), group_names=np.array([b"\xff"], object)), "is no text"),
        (columns(groups=np.array([0, 0], np.uint8), group_names=np.array([b"x"] * 65, object)), "1 to 64 names"),
    ],
)
def test_documents_that_are_none_are_refused(document: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        evidence.decode(document)
