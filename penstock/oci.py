"""Push and pull whole artifacts, variants and referrers, between an OCI image layout and a registry.

Decides the order (children before what names them) and what is left out because it is there already. The calls are
``penstock.oci_client``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock import artifact as art
from penstock.artifact import Artifact, Descriptor
from penstock.blobs import MAX_DOCUMENT_BYTES
from penstock.certificate import Certificate
from penstock.errors import ArtifactError, DigestMismatch, InvalidInput
from penstock.layout import Layout, Referrer
from penstock.oci_client import Document, RegistryClient

__all__ = ["Found", "Moved", "RegistryClient", "look", "look_at_layout", "pull", "push"]

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a push or pull did. Bytes that were there already count as ``skipped_bytes``."""

    model: str
    tag: str
    digest: str
    moved_bytes: int
    skipped_bytes: int


def push(client: RegistryClient, layout: Layout, reference: str = "", *, report: Report | None = None) -> Moved:
    """Push a layout's artifact and its referrers.

    Args:
        reference: ``model:tag``; the layout's own by default.

    Raises:
        ArtifactError: the layout is damaged, or the registry refuses it. Unavailable: out of reach.
    """
    model, tag = art.split_reference(reference) if reference else (layout.artifact().model, "")
    tag = tag or layout.tag
    if not tag or ":" in tag:
        raise ArtifactError(f"{reference or layout.root}: a push needs a tag, as in {model}:v1")
    problems = layout.verify()
    if problems:
        raise ArtifactError(f"{layout.root} is damaged, nothing was pushed: {'; '.join(problems[:3])}")
    descriptors = list(layout.reachable())
    tally = _Tally(sum(d.size for d in descriptors), report)
    for descriptor in descriptors:
        if descriptor.media_type in (art.INDEX, art.MANIFEST):
            data = layout.blobs.read(descriptor.digest)
            client.push_manifest(model, descriptor.digest, data, descriptor.media_type)
            tally.moved(len(data))
        elif client.has_blob(model, descriptor.digest):
            tally.skipped(descriptor.size)
        else:
            client.push_blob(model, descriptor.digest, layout.blobs.path(descriptor.digest), tally.moved)
    # the name comes last: whoever sees it finds the certificate there too
    client.push_manifest(model, tag, layout.blobs.read(layout.digest), art.INDEX)
    return tally.result(model, tag, layout.digest)


def pull(client: RegistryClient, reference: str, root: Path, *, report: Report | None = None) -> Moved:
    """Pull an artifact with its referrers into the layout at ``root`` (created, or continued after an interruption).

    Raises:
        InvalidInput: no version given. NotFound: no such model or version.
        DigestMismatch, ArtifactError: what came is not what was named.
        StorageError: the disk is full; a later pull continues. Unavailable: out of reach.
    """
    model, version, document = _named(client, reference)
    index = art.decode_index(document.data)
    layout = Layout.create(root)
    manifests = [_described(client.manifest(model, entry.digest), entry) for entry in _bounded(index.manifests)]
    described = [entry for entry in client.referrers(model, document.digest) if entry.media_type == art.MANIFEST]
    referrers = [_described(client.manifest(model, entry.digest), entry) for entry in _bounded(described)]
    blobs: dict[str, Descriptor] = {}
    for found in (*manifests, *referrers):
        manifest = art.decode_manifest(found.data)
        blobs.update({blob.digest: blob for blob in _bounded([manifest.config, *manifest.layers])})
    tally = _Tally(sum(blob.size for blob in blobs.values()), report)
    for blob in blobs.values():
        if layout.blobs.has(blob.digest):
            tally.skipped(blob.size)
        else:
            client.fetch_blob(model, blob, layout.blobs, tally.moved)
    for found in (*manifests, *referrers, document):
        layout.blobs.put(found.data)
    art.load(document.digest, layout.blobs.read)
    tag = version if ":" not in version else document.digest.removeprefix("sha256:")[:12]
    names = {art.REF_NAME: tag, art.MODEL: model}
    size = len(document.data)
    layout.adopt(Descriptor(media_type=art.INDEX, digest=document.digest, size=size, annotations=names), described)
    return tally.result(model, tag, document.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An artifact as its documents describe it, wherever it is.

    Attributes:
        referrers: oldest first. ``certificates``: with their manifests' digests, the newest (highest serial) last, not
            checked. ``signatures``: documents with their manifests' digests, not verified.
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
        """The newest one."""
        return self.certificates[-1][1] if self.certificates else None


def look(client: RegistryClient, reference: str) -> Found:
    """Read an artifact's documents from a registry, without its weights.

    Raises:
        InvalidInput: no version given. NotFound, ArtifactError, Unavailable.
    """
    model, version, document = _named(client, reference)
    manifests = {document.digest, *(entry.digest for entry in _bounded(art.decode_index(document.data).manifests))}
    entries = [entry for entry in client.referrers(model, document.digest) if entry.media_type == art.MANIFEST]
    manifests.update(entry.digest for entry in _bounded(entries))

    def read(digest: str) -> bytes:
        if digest == document.digest:
            return document.data
        return client.manifest(model, digest).data if digest in manifests else client.small_blob(model, digest)

    referrers = []
    for entry in entries:
        manifest = art.decode_manifest(read(entry.digest))
        if len(manifest.layers) == 1:
            kind = manifest.artifact_type or ""
            referrers.append(Referrer(kind=kind, digest=entry.digest, content=manifest.layers[0]))
    return _found(art.load(document.digest, read), "" if ":" in version else version, tuple(referrers), read)


def look_at_layout(layout: Layout) -> Found:
    """The same for a layout on disk.

    Raises:
        ArtifactError, NotFound: it holds no artifact that can be read.
    """
    return _found(layout.artifact(), layout.tag, layout.referrers(), layout.blobs.read)


def _found(artifact: Artifact, tag: str, referrers: tuple[Referrer, ...], read: art.Read) -> Found:
    certificates, signatures, documents = [], [], {}
    for referrer in referrers:
        if referrer.kind == art.CERTIFICATE:
            certificates.append((referrer.digest, art.load_certificate(referrer.digest, read)))
        elif referrer.kind == art.SIGNATURE:
            signatures.append((referrer.digest, art.read_described(referrer.content, read)))
        elif referrer.kind in (art.LOCK, art.EVALUATION) and referrer.content.size <= MAX_DOCUMENT_BYTES:
            documents[referrer.kind] = art.read_described(referrer.content, read)
    return Found(
        artifact=artifact,
        tag=tag,
        referrers=referrers,
        certificates=tuple(sorted(certificates, key=lambda item: item[1].serial)),
        signatures=tuple(signatures),
        documents=documents,
    )


def _named(client: RegistryClient, reference: str) -> tuple[str, str, Document]:
    model, version = art.split_reference(reference)
    if not version:
        raise InvalidInput(f"{reference}: name a version; {model} has {', '.join(client.tags(model))}")
    return model, version, client.manifest(model, version)


class _Tally:
    def __init__(self, total_bytes: int, report: Report | None) -> None:
        self._total, self._report = total_bytes, report
        self._moved = self._skipped = 0

    def moved(self, count: int) -> None:
        self._moved += count
        self._tell()

    def skipped(self, count: int) -> None:
        self._skipped += count
        self._tell()

    def result(self, model: str, tag: str, digest: str) -> Moved:
        return Moved(model=model, tag=tag, digest=digest, moved_bytes=self._moved, skipped_bytes=self._skipped)

    def _tell(self) -> None:
        if self._report is not None:
            self._report(self._moved + self._skipped, self._total)


def _described(document: Document, entry: Descriptor) -> Document:
    if len(document.data) != entry.size:
        raise DigestMismatch(f"{entry.digest} has {len(document.data)} bytes, its descriptor says {entry.size}")
    return document


def _bounded(entries: list[Descriptor]) -> list[Descriptor]:
    if len(entries) > _MAX_ENTRIES:
        raise ArtifactError(f"{len(entries)} entries in one manifest, more than the {_MAX_ENTRIES} allowed")
    return entries
