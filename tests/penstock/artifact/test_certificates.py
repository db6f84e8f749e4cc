"""The certificate as a document: its levels, which one is used, and which is the newest of an artifact's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.artifact import certificates, manifests
from penstock.artifact.certificates import Certificate, Group, Level, RefusedLevel, Subject
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError, CertificateMismatch, ConfigError
from penstock.wire.tensors import TensorSpec
from tests import factories


def level(max_harm: float, threshold: float, **changes: Any) -> Level:
    values: dict[str, Any] = {
        "max_harm": max_harm,
        "delta": 0.025,
        "threshold": threshold,
        "n": 1000,
        "harm_count": 3,
        "kept_count": 700,
        "coverage": 0.7,
        "coverage_low": 0.66,
        "coverage_high": 0.74,
        "audit_max_harm": 2 * max_harm,
    }
    return Level(**values | changes)


def certificate(*levels: Level, **changes: Any) -> Certificate:
    first = levels[0] if levels else level(0.02, 0.9)
    return factories.certificate(levels=levels, **msgspec.structs.asdict(first) | changes)


SUBJECT = Subject(
    model="digits",
    edge_digest="sha256:" + "1" * 64,
    cloud_digest="sha256:" + "2" * 64,
    preprocessing_digest=manifests.preprocessing_digest({}),
)
LEVELS = (level(0.02, 0.9), level(0.005, 0.99), level(0.05, 0.5))


def test_no_level_asked_for_is_the_first() -> None:
    one = certificate(*LEVELS)
    assert one.at(None) is one
    assert one.at(0.02) is one
    assert one.max_harms == (0.02, 0.005, 0.05)


@pytest.mark.parametrize(
    ("max_harm", "threshold"), [(0.005, 0.99), (0.05, 0.5), (5 / 100, 0.5), (0.1 + 0.2 - 0.25, 0.5)]
)
def test_another_level_takes_the_place_of_the_first(max_harm: float, threshold: float) -> None:
    used = certificate(*LEVELS).at(max_harm)
    assert used.threshold == threshold
    assert used.max_harm == pytest.approx(max_harm)
    assert used.audit_max_harm == pytest.approx(2 * max_harm)
    assert used.max_harms == (0.02, 0.005, 0.05)
    assert f"at most {100 * used.max_harm:g} points" in used.promise()


def test_a_level_that_was_not_certified_is_refused_with_those_that_were() -> None:
    refused = RefusedLevel(max_harm=0.001, delta=0.025, reason="1000 certifying examples are too few", needed=3688)
    one = certificate(*LEVELS, refused=(refused,))
    with pytest.raises(ConfigError, match=r"max_harm 0.03 is not certified for 'digits'; certified: 0.02, 0.005, 0.05"):
        one.at(0.03)
    with pytest.raises(ConfigError, match=r"\(1000 certifying examples are too few\); certified: "):
        one.at(0.001)


def test_a_certificate_is_used_for_exactly_what_it_was_issued_for() -> None:
    one = certificate(*LEVELS)
    assert certificates.usable(one, SUBJECT) is one
    assert certificates.usable(one, SUBJECT, max_harm=0.005).threshold == 0.99


@pytest.mark.parametrize("have", ["sha256:" + "9" * 64, ""])
@pytest.mark.parametrize(
    ("field", "named"),
    [("edge_digest", "edge variant"), ("cloud_digest", "cloud variant"), ("preprocessing_digest", "preprocessing")],
)
def test_another_digest_or_none_ends_its_use(field: str, named: str, have: str) -> None:
    with pytest.raises(CertificateMismatch, match=f"issued for other digests \\({named}: .*have {have or 'none'}"):
        certificates.check(certificate(), replace(SUBJECT, **{field: have}))


def test_what_is_missing_on_both_sides_is_no_match() -> None:
    with pytest.raises(CertificateMismatch, match="cloud variant: certified , have none"):
        certificates.check(certificate(cloud_digest=""), replace(SUBJECT, cloud_digest=""))


def test_the_newest_has_the_highest_serial_and_of_equals_came_last() -> None:
    found = [(name, certificate(serial=serial)) for name, serial in (("a", 2), ("b", 3), ("c", 3), ("d", 1))]
    assert certificates.newest(found) == found[2]
    assert certificates.newest([]) is None


def test_a_score_that_this_release_does_not_know_ends_its_use() -> None:
    with pytest.raises(CertificateMismatch, match="'oracle' is not known here; known: max_prob"):
        certificates.usable(certificate(score="oracle"), SUBJECT)


def test_a_certificate_that_lists_no_levels_has_one() -> None:
    one = certificate()
    assert (one.max_harms, one.largest_audit_max_harm) == ((0.02,), 0.04)
    assert one.at(0.02) is one
    with pytest.raises(ConfigError, match="certified: 0.02"):
        one.at(0.05)


def test_the_largest_audit_bound_is_that_of_any_level() -> None:
    assert certificate(*LEVELS).largest_audit_max_harm == 0.1


def test_a_document_without_the_newer_fields_is_read() -> None:
    known = msgspec.to_builtins(certificate())
    for name in ("groups", "group_by", "levels", "refused", "evidence_digest", "serial"):
        del known[name]
    old = certificates.decode(msgspec.json.encode(known))
    assert (old.levels, old.serial, old.evidence_digest) == ((), 1, "")


def test_fields_that_are_not_those_of_the_first_level_are_refused() -> None:
    """An agent that is told no level reads the fields, one that is told the first reads the level: they must agree."""
    changed = msgspec.structs.replace(certificate(*LEVELS), threshold=0.1, audit_max_harm=0.9)
    with pytest.raises(ArtifactError, match="threshold, audit_max_harm are not those of its first level"):
        certificates.decode(certificates.encode(changed))


def test_levels_and_groups_are_bounded() -> None:
    many = certificate(*[level(k / 100, 0.5) for k in range(1, 10)])
    with pytest.raises(ArtifactError, match="length <= 8"):
        certificates.decode(certificates.encode(many))
    group = Group(name="g", n=1, harm_count=0, kept_count=0, coverage=0.0, threshold=0.5)
    with pytest.raises(ArtifactError, match="length <= 64"):
        certificates.decode(certificates.encode(certificate(groups=(group,) * 65)))


def test_the_promise_names_the_groups() -> None:
    group = Group(name="Ulm", n=500, harm_count=1, kept_count=400, coverage=0.8, threshold=0.5)
    assert certificate(groups=(group,), group_by="city").promise().endswith("always asking the cloud within each city")
    assert "with 97.5% confidence" in certificate().promise()
    assert "decided" not in certificate(score="token_min").promise()
    early = certificate(score="prompt_max_prob", threshold=0.5).promise()
    assert "locally at prompt_max_prob >= 0.5000, decided before generation, costs at most" in early


# --- the newest of an artifact


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Edge variants for two targets, and a cloud."""
    drafts = []
    for role, target in (("edge", "any"), ("edge", "arm64"), ("cloud", "cpu")):
        weights = tmp_path / f"{role}-{target}.onnx"
        weights.write_bytes(weights.name.encode())
        spec = VariantSpec(
            model="digits",
            role=role,
            engine="onnx",
            target=target,
            provider="cpu",
            precision="fp32",
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
            outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 3)),),
            score_output="logits",
        )
        drafts.append(VariantDraft(spec=spec, weights=weights))
    made = Layout.create(tmp_path / "layout")
    made.pack(drafts, tag="v1")
    return made


def attach(layout: Layout, target: str, serial: int) -> str:
    artifact = layout.artifact()
    issued = certificate(
        edge_digest=artifact.variant("edge", target=target).digest,
        cloud_digest=artifact.variant("cloud").digest,
        serial=serial,
    )
    return layout.attach_certificate(issued).digest


def test_each_variant_has_its_own_newest_certificate(layout: Layout) -> None:
    first, again, other = attach(layout, "any", 1), attach(layout, "any", 2), attach(layout, "arm64", 1)
    edges = {target: layout.artifact().variant("edge", target=target).digest for target in ("any", "arm64")}
    found = {target: layout.certificate_for(digest) for target, digest in edges.items()}
    assert {target: one and one[0] for target, one in found.items()} == {"any": again, "arm64": other}
    assert {digest for digest, _ in layout.certificates()} == {first, again, other}
    assert layout.certificates()[-1][0] == again
    assert layout.certificate_for("sha256:" + "9" * 64) is None


def test_newest_is_the_highest_serial_in_whatever_order_they_were_attached(layout: Layout) -> None:
    """A registry lists referrers as it likes, and a copy has them in that order."""
    newest = attach(layout, "any", 3)
    attach(layout, "any", 1)
    attach(layout, "any", 2)
    found = layout.certificate_for(layout.artifact().variant("edge", target="any").digest)
    assert found is not None
    assert (found[0], found[1].serial) == (newest, 3)
