"""Everything that an artifact's documents say of it, as one value, wherever it lies: in a layout or in a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.artifact import manifests
from penstock.artifact.blobs import MAX_DOCUMENT_BYTES
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout, Referrer
from penstock.artifact.manifests import Artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """An artifact as its documents describe it, wherever it is.

    Attributes:
        referrers: oldest first.
        certificates: with their manifests' digests, the newest (highest serial) last, not checked.
        signatures: documents with their manifests' digests, not verified.
        documents: content of the newest lock and evaluation by artifactType, where there are any.
    """

    artifact: Artifact
    tag: str
    referrers: tuple[Referrer, ...]
    certificates: tuple[tuple[str, Certificate], ...]
    signatures: tuple[tuple[str, bytes], ...]
    documents: Mapping[str, bytes]

    @property
    def certificate(self) -> Certificate | None:
        """Return the newest certificate, or None where there is none."""
        return self.certificates[-1][1] if self.certificates else None


def overview_of(layout: Layout) -> Overview:
    """Look at a layout on disk in the same way.

    Raises:
        ArtifactError, NotFound: it holds no artifact that can be read.
    """
    return gather(layout.artifact(), layout.tag, layout.referrers(), layout.blobs.read)


def gather(artifact: Artifact, tag: str, referrers: tuple[Referrer, ...], read: manifests.Read) -> Overview:
    """Read every document that refers to an artifact into one value."""
    certificates, signatures, documents = [], [], {}
    for referrer in referrers:
        if referrer.kind == manifests.CERTIFICATE:
            certificates.append((referrer.digest, manifests.load_certificate(referrer.digest, read)))
        elif referrer.kind == manifests.SIGNATURE:
            signatures.append((referrer.digest, manifests.read_described(referrer.content, read)))
        elif referrer.kind in (manifests.LOCK, manifests.EVALUATION) and referrer.content.size <= MAX_DOCUMENT_BYTES:
            documents[referrer.kind] = manifests.read_described(referrer.content, read)
    return Overview(
        artifact=artifact,
        tag=tag,
        referrers=referrers,
        certificates=tuple(sorted(certificates, key=lambda item: item[1].serial)),
        signatures=tuple(signatures),
        documents=documents,
    )
