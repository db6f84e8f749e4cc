"""Which names and manifests the registry accepts.

Decides from the bytes and from what is stored already. Writes nothing. An index of Penstock variants is parsed to the
last layer before a name may point at it; any other OCI artifact only has to be complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from cloud_core.registry import oci_errors
from cloud_core.registry.oci_errors import Refused
from cloud_core.state.catalog import ManifestRow
from penstock.artifact import golden, manifests
from penstock.artifact.blobs import BlobStore, check_digest
from penstock.artifact.manifests import Descriptor, Index, Manifest
from penstock.errors import ArtifactError, InvalidInput, PenstockError, TooLarge
from penstock.wire.tensors import unpack

INDEX_TYPES = frozenset({manifests.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({manifests.MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
RESERVED = frozenset({"models", "health", "repository"})
"""First path segments that the Open Inference Protocol owns under ``/v2``."""

MAX_ENTRIES = 1000
"""Most layers of a manifest and most manifests of an index."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What the catalog keeps of a manifest. ``children``: digests it names, ``subject`` not included."""

    artifact_type: str
    subject: str
    annotations: dict[str, str]
    is_artifact: bool
    children: tuple[str, ...]


def check_repository(name: str) -> str:
    """Check the name of a repository.

    Raises:
        Refused: NAME_INVALID, not a repository name, or one that belongs to the Open Inference Protocol.
    """
    if not _NAME.fullmatch(name) or len(name) > 255:
        raise Refused(oci_errors.NAME_INVALID, f"{name[:100]!r} is not a repository name (lower-case, digits, . _ - /)")
    if name.split("/", 1)[0] in RESERVED:
        raise Refused(
            oci_errors.NAME_INVALID,
            f"{name!r} cannot be a repository: /v2/{name.split('/', 1)[0]} belongs to the Open Inference Protocol; "
            "choose another name",
        )
    return name


def check_reference_digest(digest: str) -> str:
    """Check a digest that a client names.

    Raises:
        Refused: DIGEST_INVALID, not a sha256 digest.
    """
    try:
        return check_digest(digest)
    except ArtifactError as error:
        raise Refused(oci_errors.DIGEST_INVALID, error.message) from None


def tag_of(reference: str, digest: str) -> str | None:
    """Return the tag that a manifest of ``digest`` is pushed under, or None where it is pushed by its digest.

    Raises:
        Refused: MANIFEST_INVALID, not a tag; DIGEST_INVALID, the digest of something else.
    """
    if ":" not in reference:
        try:
            return manifests.check_tag(reference)
        except PenstockError as error:
            raise Refused(oci_errors.MANIFEST_INVALID, error.message) from error
    if check_reference_digest(reference) != digest:
        raise Refused(oci_errors.DIGEST_INVALID, f"the manifest sent hashes to {digest}, not to {reference}")
    return None


def row_of(
    examined: Examined, repository: str, digest: str, media_type: str, *, size_bytes: int, pushed_at: float
) -> ManifestRow:
    """Return what the catalog keeps of a manifest."""
    return ManifestRow(
        repository=repository,
        digest=digest,
        media_type=media_type,
        artifact_type=examined.artifact_type[:255],
        subject=examined.subject,
        annotations=msgspec.json.encode(examined.annotations, order="sorted").decode(),
        size_bytes=size_bytes,
        is_artifact=examined.is_artifact,
        pushed_at=pushed_at,
    )


def described(row: ManifestRow) -> Descriptor:
    """Describe a manifest as a listing of referrers names it."""
    return Descriptor(
        media_type=row.media_type,
        digest=row.digest,
        size=row.size_bytes,
        artifact_type=row.artifact_type or None,
        annotations=msgspec.json.decode(row.annotations, type=dict[str, str]),
    )


def examine(
    data: bytes, media_type: str, *, digest: str, repository: str, store: BlobStore, has_manifest: Callable[[str], bool]
) -> Examined:
    """Check a manifest that is being pushed.

    Raises:
        Refused: MANIFEST_INVALID when it is malformed, MANIFEST_BLOB_UNKNOWN when it names something absent.
    """
    try:
        document = _decoded(data, media_type)
        _check_complete(document, store, has_manifest)
        is_ours = isinstance(document, Index) and is_artifact_index(document)
        if is_ours:
            _check_artifact(data, digest, repository, store)
        if isinstance(document, Manifest) and document.artifact_type == manifests.CERTIFICATE and document.subject:
            _check_certificate(data, digest, document.subject.digest, store)
    except (ArtifactError, InvalidInput, TooLarge) as error:
        raise Refused(oci_errors.MANIFEST_INVALID, error.message, detail=digest) from error
    config_type = document.config.media_type if isinstance(document, Manifest) else ""
    return Examined(
        artifact_type=document.artifact_type or config_type,
        subject=document.subject.digest if document.subject else "",
        annotations=document.annotations,
        is_artifact=is_ours,
        children=tuple(child.digest for child in children_of(document)),
    )


def children_of(document: Index | Manifest) -> list[Descriptor]:
    """Return what a manifest needs to be complete."""
    if isinstance(document, Index):
        return document.manifests
    return [document.config, *document.layers]


def children_in(data: bytes, media_type: str) -> list[str]:
    """Return digests that a stored manifest names.

    Raises:
        ArtifactError: malformed.
    """
    return [child.digest for child in children_of(_decoded(data, media_type))]


def is_artifact_index(index: Index) -> bool:
    """Say whether an index claims to hold variants of a model of ours."""
    return manifests.MODEL in index.annotations or any(manifests.ROLE in entry.annotations for entry in index.manifests)


def _decoded(data: bytes, media_type: str) -> Index | Manifest:
    document: Index | Manifest
    if media_type in INDEX_TYPES:
        document = manifests.decode_index(data)
    elif media_type in MANIFEST_TYPES:
        document = manifests.decode_manifest(data)
    else:
        known = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
        raise ArtifactError(f"Content-Type {media_type[:100]!r} is not a manifest; expected one of {known}")
    if document.media_type not in ("", media_type):
        raise ArtifactError(f"mediaType says {document.media_type[:100]!r}, but it was sent as {media_type!r}")
    if len(children_of(document)) > MAX_ENTRIES:
        raise ArtifactError(f"more than {MAX_ENTRIES} entries")
    for descriptor in (*children_of(document), *((document.subject,) if document.subject else ())):
        check_digest(descriptor.digest)
    return document


def _check_complete(document: Index | Manifest, store: BlobStore, has_manifest: Callable[[str], bool]) -> None:
    for child in children_of(document):
        is_there = has_manifest(child.digest) if isinstance(document, Index) else store.has(child.digest)
        if not is_there:
            raise Refused(
                oci_errors.MANIFEST_BLOB_UNKNOWN,
                f"it names {child.digest} ({child.media_type}), which is not in this registry; push that first",
                detail=child.digest,
            )
        size = store.size_bytes(child.digest)
        if size != child.size:
            raise ArtifactError(f"it says that {child.digest} has {child.size} bytes; it has {size}")


def _check_artifact(data: bytes, digest: str, repository: str, store: BlobStore) -> None:
    parsed = manifests.load(digest, lambda wanted: data if wanted == digest else store.read(wanted))
    if parsed.model != repository:
        raise ArtifactError(
            f"this is an artifact of model {parsed.model!r}; push it to repository {parsed.model!r}, not {repository!r}"
        )
    for variant in parsed.variants:
        if variant.golden is not None:
            read = partial(store.read, limit_bytes=golden.MAX_BYTES)
            unpack(manifests.read_described(variant.golden, read))


def _check_certificate(data: bytes, digest: str, subject: str, store: BlobStore) -> None:
    certificate = manifests.load_certificate(digest, lambda wanted: data if wanted == digest else store.read(wanted))
    if not store.has(subject):
        return  # OCI lets a referrer arrive before its subject; whoever uses it checks again
    try:
        parsed = manifests.load(subject, store.read)
    except PenstockError as error:
        raise ArtifactError(f"the certificate's subject is not an artifact: {error.message}") from error
    manifests.check_certificate(certificate, parsed)
