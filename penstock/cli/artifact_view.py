"""How ``penstock artifact inspect`` shows an artifact: tables for people, one document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from penstock import wording
from penstock.cli.output import print_fields, print_table

if TYPE_CHECKING:
    from penstock.artifact.certificates import Certificate
    from penstock.artifact.overview import Overview
    from penstock.signing.trust import TrustRoot


def signers(found: Overview, root: TrustRoot | None) -> list[str]:
    """Write a line for each signature: whose it is, and whether that says anything here."""
    from penstock.errors import SignatureError
    from penstock.signing import statements

    if root is not None:
        verdict = root.examine(found.artifact, [document for _, document in found.signatures])
        return [
            *(f"{one.name} ({one.keyid[:16]}), trusted" for one in verdict.vouched),
            *(f"{keyid[:16]}, not trusted here" for keyid in verdict.unknown),
            *(f"not valid: {problem}" for problem in verdict.problems),
        ]
    lines = []
    for digest, document in found.signatures:
        try:
            lines += [f"{keyid[:16]}, not checked: no trust root" for keyid, _ in statements.decode(document)[1]]
        except SignatureError as error:
            lines.append(f"{digest}: {error.message}")
    return lines


def document(found: Overview, signed_by: Sequence[str]) -> dict[str, Any]:
    """Return what ``-o json`` prints."""
    artifact = found.artifact
    return {
        "model": artifact.model,
        "tag": found.tag,
        "digest": artifact.digest,
        "variants": [
            {
                "digest": variant.digest,
                "weights_bytes": variant.weights.size,
                "files": [{"name": _title(one), "bytes": one.size, "digest": one.digest} for one in variant.files],
                "has_golden": variant.golden is not None,
                "spec": variant.spec,
            }
            for variant in artifact.variants
        ],
        "certificate": found.certificate,
        "certificates": [{"digest": digest, "certificate": one} for digest, one in found.certificates],
        "signatures": [{"digest": digest} for digest, _ in found.signatures],
        "signed_by": list(signed_by),
        "referrers": [
            {"kind": one.kind, "digest": one.digest, "title": _title(one.content), "bytes": one.content.size}
            for one in found.referrers
        ],
    }


def show(found: Overview, signed_by: Sequence[str]) -> None:
    """Print an artifact's overview as tables. A digest's beginning names what it is of as well; JSON has all of it."""
    artifact = found.artifact
    print_fields({"model": artifact.model, "tag": found.tag or "-", "digest": artifact.digest})
    click.echo()
    rows = [
        (
            v.spec.role,
            v.spec.target,
            v.spec.precision,
            v.spec.engine,
            wording.size(v.weights.size + sum(one.size for one in v.files)),
            "yes" if v.golden else "no",
            "rows alone" if v.spec.max_batch == 1 else str(v.spec.max_batch),
            wording.short(v.digest),
        )
        for v in artifact.variants
    ]
    print_table(["role", "target", "precision", "engine", "size", "golden", "batch", "variant"], rows)
    files = [
        (f"{v.spec.role}/{v.spec.target}", _title(one), wording.size(one.size), wording.short(one.digest))
        for v in artifact.variants
        if v.files
        for one in (v.weights, *v.files)
    ]
    if files:
        click.echo()
        print_table(["variant", "file", "size", "digest"], files)
    click.echo()
    if not found.certificates:
        click.echo("certificate  none: agents escalate every answer")
    for _, one in found.certificates:
        _show_certificate(found, one)
    print_table(
        ["document", "size", "digest"],
        [(_title(one.content), wording.size(one.content.size), wording.short(one.digest)) for one in found.referrers],
    )
    click.echo()
    for line in signed_by or ("nobody",):
        click.echo(f"signed by  {line}")


def _show_certificate(found: Overview, one: Certificate) -> None:
    from penstock.artifact.certificates import by_how_much
    from penstock.artifact.manifests import check_certificate
    from penstock.errors import ArtifactError

    variant = next((v for v in found.artifact.variants if v.digest == one.edge_digest), None)
    try:
        check_certificate(one, found.artifact)
        fits = "yes"
    except ArtifactError as error:
        fits = f"no: {error.message}"
    named = f"{variant.spec.role}/{variant.spec.target}" if variant else "another artifact's variant"
    graded = by_how_much(one)
    of_rows = f" (of {one.rows} examples)" if one.rows else ""
    coverage = f"{wording.percent(one.coverage)} ({wording.between(one.coverage_low, one.coverage_high)})"
    fields: dict[str, object] = {
        "certificate": f"{one.serial} of {named}: {one.promise()}",
        "audits": _audits(one),
        "evidence": f"{one.harm_count} harmful of {one.n} {one.unit_name}{of_rows}{graded}, {one.kept_count} kept",
        "on device": coverage,
        "fits": fits,
    }
    if one.opinion is not None:
        fields["opinion"] = f"{one.opinion.metric} {one.opinion.digest}, compared with {one.compared_with}"
    for level in one.levels[1:]:
        kept = f"{wording.percent(level.coverage)} on device"
        fields[f"at {wording.allowed(level.max_harm)} points"] = f"threshold {level.threshold:.6g}, {kept}"
    for refused in one.refused:
        fields[f"at {wording.allowed(refused.max_harm)} points"] = f"refused: {refused.reason}"
    for group in one.groups:
        harm = f"{group.harm_count} harmful of {group.n}{by_how_much(group)}"
        fields[f"{one.group_by} {group.name}"] = f"{harm}, {wording.percent(group.coverage)} on device"
    print_fields(fields)
    click.echo()


def _audits(one: Certificate) -> str:
    """Say what audits test in service, and why that is another number than what was promised."""
    if one.opinion is not None:
        points = wording.points(one.audit_max_harm)
        return (
            f"kept answers, graded by the cloud's, lack at most {points} points on average over all; a device needs "
            f"{one.opinion.metric} for it (cascade.metric_of)"
        )
    bound = wording.bound(one.audit_max_harm)
    if one.audit_max_harm <= one.max_harm:
        return f"test the same in service: at most {bound} of audited rows"
    return f"at most {bound} of audited rows differ from the cloud's answer; in service nobody knows who is right"


def _title(described: Any) -> str:
    from penstock.artifact.manifests import TITLE

    title: str = described.annotations.get(TITLE, described.media_type)
    return title
