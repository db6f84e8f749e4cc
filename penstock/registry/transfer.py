"""Push and pull whole artifacts, variants and referrers, between an OCI image layout and a registry.

Decides the order (children before what names them) and what is left out because it is there already. The calls are
``penstock.registry.client``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.artifact import manifests
from penstock.artifact.layout import Layout, Referrer
from penstock.artifact.manifests import Descriptor
from penstock.artifact.overview import Overview, gather
from penstock.artifact.references import split_reference
from penstock.errors import ArtifactError, DigestMismatch, InvalidInput
from penstock.registry import referrers
from penstock.registry.client import Document, RegistryClient

__all__ = ["Moved", "RegistryClient", "overview", "pull", "push"]

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""

_MAX_ENTRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a push or pull did. Bytes that were there already count as ``skipped_bytes``."""

    model: str  # with its namespace, where the reference named one
    tag: str
    digest: str
    moved_bytes: int
    skipped_bytes: int


def push(client: RegistryClient, layout: Layout, reference: str = "", *, report: Report | None = None) -> Moved:
    """Push a layout's artifact and its referrers.

    Args:
        reference: ``model:tag`` or ``namespace/model:tag``; the layout's own by default.

    Raises:
        ArtifactError: the layout is damaged, or the registry refuses it, or does not list afterwards what belongs to
            the artifact. Unavailable: out of reach.
    """
    own = layout.artifact().model
    model, tag = split_reference(reference) if reference else (own, "")
    if model.rpartition("/")[2] != own:
        raise ArtifactError(
            f"{reference}: this is an artifact of model {own!r}; its repository has to end with that, as in acme/{own}"
        )
    tag = tag or layout.tag
    if not tag or ":" in tag:
        raise ArtifactError(f"{reference or layout.root}: a push needs a tag, as in {model}:v1")
    problems = layout.verify()
    if problems:
        raise ArtifactError(f"{layout.root} is damaged, nothing was pushed: {'; '.join(problems[:3])}")
    descriptors = list(layout.reachable())
    tally = _Tally(sum(d.size for d in descriptors), report)
    for descriptor in descriptors:
        if descriptor.media_type in (manifests.INDEX, manifests.MANIFEST):
            data = layout.blobs.read(descriptor.digest)
            client.push_manifest(model, descriptor.digest, data, descriptor.media_type)
            tally.moved(len(data))
        elif client.has_blob(model, descriptor.digest):
            tally.skipped(descriptor.size)
        else:
            client.push_blob(model, descriptor.digest, layout.blobs.path(descriptor.digest), tally.moved)
    attached = [entry for entry in layout.index.manifests if entry.media_type == manifests.MANIFEST]
    referrers.ensure_listed(client, model, layout.digest, attached)
    # the name comes last: whoever sees it finds the certificate there too
    client.push_manifest(model, tag, layout.blobs.read(layout.digest), manifests.INDEX)
    return tally.result(model, tag, layout.digest)


def pull(client: RegistryClient, reference: str, root: Path, *, report: Report | None = None) -> Moved:
    """Pull an artifact with its referrers into the layout at ``root`` (created, or continued after an interruption).

    Raises:
        InvalidInput: no version given. NotFound: no such model or version.
        DigestMismatch, ArtifactError: what came is not what was named.
        StorageError: the disk is full; a later pull continues. Unavailable: out of reach.
    """
    model, version, document = _named(client, reference)
    index = manifests.decode_index(document.data)
    layout = Layout.create(root)
    variants = [_described(client.manifest(model, entry.digest), entry) for entry in _bounded(index.manifests)]
    described = _attached(client, model, document.digest)
    attached = [_described(client.manifest(model, entry.digest), entry) for entry in described]
    blobs: dict[str, Descriptor] = {}
    for found in (*variants, *attached):
        manifest = manifests.decode_manifest(found.data)
        blobs.update({blob.digest: blob for blob in _bounded([manifest.config, *manifest.layers])})
    tally = _Tally(sum(blob.size for blob in blobs.values()), report)
    for blob in blobs.values():
        if layout.blobs.has(blob.digest):
            tally.skipped(blob.size)
        else:
            client.fetch_blob(model, blob, layout.blobs, tally.moved)
    for found in (*variants, *attached, document):
        layout.blobs.put(found.data)
    artifact = manifests.load(document.digest, layout.blobs.read)
    tag = version if ":" not in version else document.digest.removeprefix("sha256:")[:12]
    names = {manifests.REF_NAME: tag, manifests.MODEL: artifact.model}
    size = len(document.data)
    entry = Descriptor(media_type=manifests.INDEX, digest=document.digest, size=size, annotations=names)
    layout.adopt(entry, described)
    return tally.result(model, tag, document.digest)


def overview(client: RegistryClient, reference: str) -> Overview:
    """Read an artifact's documents from a registry, without its weights.

    Raises:
        InvalidInput: no version given. NotFound, ArtifactError, Unavailable.
    """
    model, version, document = _named(client, reference)
    variants = _bounded(manifests.decode_index(document.data).manifests)
    described = {document.digest, *(entry.digest for entry in variants)}
    entries = _attached(client, model, document.digest)
    described.update(entry.digest for entry in entries)

    def read(digest: str) -> bytes:
        if digest == document.digest:
            return document.data
        return client.manifest(model, digest).data if digest in described else client.small_blob(model, digest)

    attached = []
    for entry in entries:
        manifest = manifests.decode_manifest(read(entry.digest))
        if len(manifest.layers) == 1:
            kind = manifest.artifact_type or ""
            attached.append(Referrer(kind=kind, digest=entry.digest, content=manifest.layers[0]))
    return gather(manifests.load(document.digest, read), "" if ":" in version else version, tuple(attached), read)


def _attached(client: RegistryClient, model: str, digest: str) -> list[Descriptor]:
    found = referrers.find(client, model, digest)
    return _bounded([entry for entry in found if entry.media_type == manifests.MANIFEST])


def _named(client: RegistryClient, reference: str) -> tuple[str, str, Document]:
    model, version = split_reference(reference)
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
