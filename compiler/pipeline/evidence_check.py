"""The certificates of a packed artifact, each compared with the evidence that it names. Changes nothing.

Owns that every figure is computed again from the stored examples, and that a certificate whose evidence is missing or
cannot be read is a problem, not an error: the others are still checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.certificate import evidence
from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout
from penstock.artifact.manifests import Artifact
from penstock.errors import NotFound, PenstockError


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Hold what the comparison of a certificate with its evidence found.

    Attributes:
        digest: of the certificate's manifest.
        problems: sentences; empty when every figure was found again.
        opinion: whose grades the figures rest on, in a sentence; "" where answers are right or wrong.
    """

    digest: str
    edge_digest: str
    serial: int
    problems: tuple[str, ...]
    opinion: str = ""


def check(directory: Path) -> list[Checked]:
    """Recompute every certificate of the artifact in ``directory`` from the evidence it names, the newest last.

    Raises:
        ArtifactError: no artifact. NotFound: an empty layout.
    """
    layout = Layout(directory)
    artifact = layout.artifact()
    checked = []
    for referrer in layout.referrers(manifests.CERTIFICATE):
        try:
            certificate = manifests.load_certificate(referrer.digest, layout.blobs.read)
        except PenstockError as error:
            checked.append(Checked(digest=referrer.digest, edge_digest="", serial=0, problems=(error.message,)))
            continue
        checked.append(
            Checked(
                digest=referrer.digest,
                edge_digest=certificate.edge_digest,
                serial=certificate.serial,
                problems=tuple(_problems(layout, artifact, certificate)),
                opinion=_opinion(certificate),
            )
        )
    return sorted(checked, key=lambda item: item.serial)


def _opinion(certificate: Certificate) -> str:
    if certificate.opinion is None:
        return ""
    return (
        f"in the opinion of {certificate.opinion.metric} {certificate.opinion.digest}, which graded answers by "
        f"{certificate.compared_with}: its grades are in the evidence, and it was not asked again"
    )


def _problems(layout: Layout, artifact: Artifact, certificate: Certificate) -> Iterator[str]:
    try:
        manifests.check_certificate(certificate, artifact)
    except PenstockError as error:
        yield error.message
    if not certificate.evidence_digest:
        yield "it names no evidence, so its figures cannot be recomputed; 'penstock certify' issues one that does"
        return
    try:
        stored = layout.blobs.read(certificate.evidence_digest, limit_bytes=evidence.MAX_BYTES)
        yield from evidence.differences(certificate, evidence.decode(stored))
    except NotFound:
        yield f"its evidence {certificate.evidence_digest} is missing from this artifact"
    except PenstockError as error:
        yield f"its evidence cannot be used: {error.message}"
