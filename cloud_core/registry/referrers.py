"""What refers to an artifact and may be believed: its signatures, and the certificates that they cover.

Reads what is stored; which keys are trusted is ``penstock.signing.trust``'s, which referrers there are is the
registry's.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud_core.state.catalog import ManifestRow
from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore
from penstock.artifact.certificates import Certificate, newest
from penstock.artifact.manifests import Artifact
from penstock.errors import PenstockError
from penstock.signing.trust import MAX_SIGNATURES


def signatures(referring: Sequence[ManifestRow], store: BlobStore) -> list[bytes]:
    """Return signature documents of some referrers, oldest first; damaged ones are left out: they vouch for nothing."""
    rows = [row for row in referring if row.artifact_type == manifests.SIGNATURE]
    found: list[bytes] = []
    for row in rows[-MAX_SIGNATURES:]:
        try:
            layers = manifests.decode_manifest(store.read(row.digest)).layers[:1]
            found += [manifests.read_described(layer, store.read) for layer in layers]
        except PenstockError:
            continue
    return found


def certificates(
    artifact: Artifact, referring: Sequence[ManifestRow], store: BlobStore, covered: frozenset[str] | None
) -> tuple[tuple[str, Certificate], ...]:
    """Return the newest certificate that fits each variant, with its manifest's digest; the variant pushed for last
    first.

    Args:
        covered: the only ones that count; None where nothing need be signed.
    """
    fitting: dict[str, list[tuple[str, Certificate]]] = {}
    for row in reversed(referring):
        if row.artifact_type != manifests.CERTIFICATE or (covered is not None and row.digest not in covered):
            continue
        try:
            certificate = manifests.load_certificate(row.digest, store.read)
            manifests.check_certificate(certificate, artifact)
        except PenstockError:
            continue  # issued for other digests, and pushed before its subject was here to say so
        fitting.setdefault(certificate.edge_digest, []).insert(0, (row.digest, certificate))
    return tuple(one for found in fitting.values() if (one := newest(found)))
