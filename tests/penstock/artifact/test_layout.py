"""Packing, parsing and verifying artifacts; every kind of damage is found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from penstock.artifact import manifests, references
from penstock.artifact.layout import Layout, VariantDraft, variant_digest
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError, CertificateMismatch, NotFound
from penstock.wire import tensors
from penstock.wire.tensors import TensorSpec
from tests.factories import X, certificate_for, echo_spec


def spec(role: manifests.Role, **changes: object) -> VariantSpec:
    return echo_spec(role, preprocessing={"scale": 16}, **changes)


def drafts(tmp_path: Path) -> list[VariantDraft]:
    weights = tmp_path / "model.json"
    weights.write_bytes(msgspec.json.encode([X]))
    return [
        VariantDraft(spec=spec("edge"), weights=weights, golden=tensors.pack({})),
        VariantDraft(spec=spec("cloud"), weights=weights),
    ]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout.create(tmp_path / "layout")
    made.pack(drafts(tmp_path), tag="v1")
    return made


def test_a_packed_artifact_parses_back(layout: Layout) -> None:
    parsed = layout.artifact()
    assert (parsed.model, layout.tag) == ("digits", "v1")
    assert parsed.variant("edge").golden is not None
    assert parsed.variant("cloud").spec.target == "cpu"
    assert layout.verify() == []


def test_same_input_same_digest(layout: Layout, tmp_path: Path) -> None:
    again = Layout.create(tmp_path / "again")
    assert again.pack(drafts(tmp_path), tag="other").digest == layout.digest


def test_the_tag_is_a_pointer_and_not_part_of_the_artifact(layout: Layout, tmp_path: Path) -> None:
    before = layout.digest
    layout.pack(drafts(tmp_path), tag="v9")
    assert (layout.digest, layout.tag) == (before, "v9")


def test_variant_digest_is_known_before_packing(layout: Layout, tmp_path: Path) -> None:
    edge = drafts(tmp_path)[0]
    assert variant_digest(edge, tmp_path / "scratch") == layout.artifact().variant("edge").digest


def test_a_certificate_is_attached_and_found(layout: Layout) -> None:
    issued = certificate_for(layout)
    layout.attach_certificate(issued)
    assert layout.certificates()[-1][1] == issued
    assert layout.verify() == []


@pytest.mark.parametrize("field", ["edge_digest", "cloud_digest", "preprocessing_digest"])
def test_a_certificate_for_other_digests_is_refused(layout: Layout, field: str) -> None:
    with pytest.raises(CertificateMismatch, match="issued for other digests"):
        layout.attach_certificate(certificate_for(layout, **{field: "sha256:" + "1" * 64}))


def test_a_certificate_of_another_pair_is_found_by_verify(layout: Layout) -> None:
    from penstock.artifact import certificates

    wrong = certificate_for(layout, cloud_digest="sha256:" + "1" * 64)
    layout.attach(manifests.CERTIFICATE, certificates.encode(wrong), title="certificate.json")
    assert any("issued for other digests" in problem for problem in layout.verify())


def test_every_blob_is_checked(layout: Layout) -> None:
    for digest in list(layout.blobs.digests()):
        path = layout.blobs.path(digest)
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert layout.verify(), f"damage to {digest} went unnoticed"
        path.write_bytes(original)
    assert layout.verify() == []


def test_a_missing_blob_is_reported(layout: Layout) -> None:
    layout.blobs.delete(layout.artifact().variant("edge").weights.digest)
    assert any("no blob" in problem for problem in layout.verify())


def test_a_tampered_index_is_refused(layout: Layout) -> None:
    index = json.loads((layout.root / "index.json").read_text())
    index["manifests"][0]["digest"] = "sha256:" + "2" * 64
    (layout.root / "index.json").write_text(json.dumps(index))
    with pytest.raises(NotFound):
        layout.artifact()


def test_variants_must_be_interchangeable(tmp_path: Path) -> None:
    edge, cloud = drafts(tmp_path)
    other = VariantDraft(spec=spec("cloud", score_output="y"), weights=cloud.weights)
    with pytest.raises(ArtifactError, match="disagree on score_output"):
        Layout.create(tmp_path / "l").pack([edge, other], tag="v1")


def test_a_variants_own_confidence_is_no_answer_that_the_cloud_must_give_too(tmp_path: Path) -> None:
    edge, cloud = drafts(tmp_path)
    probe = TensorSpec(name="probe", datatype="FP32", shape=(-1,))
    probed = msgspec.structs.replace(edge.spec, outputs=(*edge.spec.outputs, probe), probe_output="probe")
    assert b"probe" not in manifests.canonical_json(edge.spec)  # read by releases that know of none
    made = Layout.create(tmp_path / "l")
    made.pack([dataclasses.replace(edge, spec=probed), cloud], tag="v1")
    assert made.artifact().variant("edge").spec.probe == "probe"
    assert made.artifact().variant("cloud").spec.probe == ""


def test_a_directory_that_is_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not an OCI image layout"):
        Layout(tmp_path)


@pytest.mark.parametrize("name", ["Digits", "models", "a/b", "", "../x", "a" * 200])
def test_bad_model_names_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="not a model name"):
        manifests.check_model_name(name)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("digits:v2", ("digits", "v2")),
        ("digits", ("digits", "")),
        ("acme/vision/digits:v2", ("acme/vision/digits", "v2")),
        ("digits@sha256:" + "a" * 64, ("digits", "sha256:" + "a" * 64)),
    ],
)
def test_references(reference: str, parts: tuple[str, str]) -> None:
    assert references.split_reference(reference) == parts


@pytest.mark.parametrize("reference", ["/digits", "acme//digits:v1", "Acme/digits", "acme/models:v1", "a b/digits"])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ArtifactError, match="is not a"):
        references.split_reference(reference)


def test_reachable_names_children_before_parents(layout: Layout) -> None:
    order = [d.digest for d in layout.reachable()]
    assert order.index(layout.artifact().variant("edge").weights.digest) < order.index(layout.digest)
    assert len(order) == len(set(order))
