"""An artifact on disk: an OCI image layout directory. Packs variants and referrers, lists and verifies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from penstock.artifact import certificates, manifests
from penstock.artifact.blobs import SHARED, BlobStore, digest_of, disk_errors, write_atomically
from penstock.artifact.certificates import Certificate
from penstock.artifact.manifests import Artifact, Descriptor, Index, Manifest, VariantSpec
from penstock.errors import ArtifactError, NotFound, PenstockError

_LAYOUT_FILE = "oci-layout"
_INDEX_FILE = "index.json"
_NAME_CHARS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantDraft:
    """A variant before it is packed: its spec, the weights file and golden vectors (``penstock.wire.tensors.pack``).

    Attributes:
        files: further files that belong to the model (external data, tokenizer, configuration), by their names.
    """

    spec: VariantSpec
    weights: Path
    golden: bytes | None = None
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest that refers to the artifact. ``kind`` is its artifactType; ``content`` its only layer."""

    kind: str
    digest: str
    content: Descriptor


class Layout:
    """An OCI image layout that holds one artifact (``index.json`` names it and its referrers)."""

    def __init__(self, root: Path) -> None:
        """Open an existing layout.

        Raises:
            ArtifactError: not an OCI image layout.
        """
        if not (root / _LAYOUT_FILE).is_file() or not (root / _INDEX_FILE).is_file():
            raise ArtifactError(f"{root} is not an OCI image layout (no {_LAYOUT_FILE} and {_INDEX_FILE} in it)")
        self.root = root
        self.blobs = BlobStore(root)

    @classmethod
    def create(cls, root: Path) -> Layout:
        """Create an empty layout, or open the one that is there.

        Raises:
            StorageError: not writable, or the disk is full.
        """
        with disk_errors(f"creating {root}"):
            root.mkdir(parents=True, exist_ok=True)
        if not (root / _LAYOUT_FILE).exists():
            write_atomically(root / _LAYOUT_FILE, b'{"imageLayoutVersion":"1.0.0"}', mode=SHARED)
        if not (root / _INDEX_FILE).exists():
            empty = Index(schema_version=2, media_type=manifests.INDEX, manifests=[])
            write_atomically(root / _INDEX_FILE, manifests.canonical_json(empty), mode=SHARED)
        return cls(root)

    @property
    def index(self) -> Index:
        """Read ``index.json``, which another process may have changed since."""
        return manifests.decode_index((self.root / _INDEX_FILE).read_bytes())

    @property
    def tag(self) -> str:
        """Return the tag of the artifact in this layout."""
        return self._entry().annotations.get(manifests.REF_NAME, "")

    @property
    def digest(self) -> str:
        """Return the digest of the artifact in this layout."""
        return self._entry().digest

    def artifact(self) -> Artifact:
        """Parse the artifact, verifying every document that is read.

        Raises:
            ArtifactError: malformed, truncated or tampered with.
        """
        return manifests.load(self.digest, self.blobs.read)

    def referrers(self, kind: str | None = None) -> tuple[Referrer, ...]:
        """List certificate, evaluation and report manifests, oldest first; only those of one artifactType where
        asked."""
        found = []
        for entry in self.index.manifests:
            if entry.media_type != manifests.MANIFEST or (kind and entry.artifact_type != kind):
                continue
            manifest = manifests.decode_manifest(self.blobs.read(entry.digest))
            if manifest.subject and len(manifest.layers) == 1:
                found.append(
                    Referrer(kind=manifest.artifact_type or "", digest=entry.digest, content=manifest.layers[0])
                )
        return tuple(found)

    def certificates(self) -> tuple[tuple[str, Certificate], ...]:
        """List every certificate with its manifest's digest, of every edge variant; the newest (highest serial) last.

        Raises:
            ArtifactError: one of them is malformed.
        """
        found = [
            (r.digest, manifests.load_certificate(r.digest, self.blobs.read))
            for r in self.referrers(manifests.CERTIFICATE)
        ]
        return tuple(sorted(found, key=lambda item: item[1].serial))  # stable: the later attached of equals is newer

    def certificate_for(self, edge_digest: str) -> tuple[str, Certificate] | None:
        """Return the newest certificate of one edge variant and its manifest's digest, or None.

        Raises:
            ArtifactError: a certificate is malformed.
        """
        return certificates.newest([item for item in self.certificates() if item[1].edge_digest == edge_digest])

    def pack(self, drafts: Sequence[VariantDraft], *, tag: str) -> Artifact:
        """Store variants and the artifact index, and make it this layout's artifact. Same input, same digests.

        Raises:
            ArtifactError: variants that disagree on model, inputs or outputs, or a bad name or tag.
        """
        _check_drafts(drafts)
        manifests.check_tag(tag)
        entries = [self._pack_variant(draft) for draft in drafts]
        model = manifests.check_model_name(drafts[0].spec.model)
        index = Index(
            schema_version=2, media_type=manifests.INDEX, manifests=entries, annotations={manifests.MODEL: model}
        )
        # exactly as Go's image-spec 1.0 writes an index (its field order, no artifactType in descriptors): skopeo and
        # its kin re-encode indexes when they copy, and the artifact's digest must survive that
        data = msgspec.json.encode(index, order="deterministic")
        described = Descriptor(
            media_type=manifests.INDEX,
            digest=self.blobs.put(data),
            size=len(data),
            annotations={manifests.REF_NAME: tag, manifests.MODEL: model},
        )
        self._write_index([described])
        return self.artifact()

    def attach(self, kind: str, content: bytes, *, title: str) -> Referrer:
        """Attach a referrer (certificate, evaluation, report) to the artifact."""
        subject = self._entry()
        layer = Descriptor(
            media_type=kind, digest=self.blobs.put(content), size=len(content), annotations={manifests.TITLE: title}
        )
        self.blobs.put(b"{}")
        manifest = Manifest(
            schema_version=2,
            media_type=manifests.MANIFEST,
            artifact_type=kind,
            config=Descriptor(media_type=manifests.EMPTY_CONFIG, digest=digest_of(b"{}"), size=2),
            layers=[layer],
            subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        )
        data = manifests.canonical_json(manifest)
        digest = self.blobs.put(data)
        entry = Descriptor(media_type=manifests.MANIFEST, digest=digest, size=len(data), artifact_type=kind)
        self._write_index([*(e for e in self.index.manifests if e.digest != digest), entry])
        return Referrer(kind=kind, digest=digest, content=layer)

    def attach_certificate(self, certificate: Certificate) -> Referrer:
        """Attach a certificate after checking that it fits this artifact (invariant 5).

        Raises:
            CertificateMismatch: it was issued for other digests.
        """
        manifests.check_certificate(certificate, self.artifact())
        return self.attach(manifests.CERTIFICATE, certificates.encode(certificate), title="certificate.json")

    def adopt(self, artifact: Descriptor, referrers: Sequence[Descriptor]) -> None:
        """Make documents already in ``blobs`` this layout's artifact and referrers: the last step of a pull."""
        self._write_index([artifact, *referrers])

    def verify(self) -> list[str]:
        """Check everything: every reachable blob's digest and size, the structure, the certificates. [] is good."""
        problems = []
        for descriptor in self.reachable():
            try:
                path = self.blobs.verify(descriptor.digest)
                if path.stat().st_size != descriptor.size:
                    problems.append(f"{descriptor.digest}: {path.stat().st_size} bytes, described as {descriptor.size}")
            except PenstockError as error:
                problems.append(f"{descriptor.digest}: {error.message}")
        if not problems:
            try:
                parsed = self.artifact()
                for referrer in self.referrers(manifests.CERTIFICATE):
                    manifests.check_certificate(manifests.load_certificate(referrer.digest, self.blobs.read), parsed)
            except PenstockError as error:
                problems.append(error.message)
        return problems

    def reachable(self) -> Iterator[Descriptor]:
        """Return every descriptor reachable from ``index.json``; children before the manifests that name them.

        The order in which a registry accepts a push. Manifests that cannot be read yield themselves only.
        """
        seen: set[str] = set()
        for entry in self.index.manifests:
            yield from self._walk(entry, seen)

    def _walk(self, entry: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
        if entry.digest in seen:
            return
        seen.add(entry.digest)
        try:
            if entry.media_type == manifests.INDEX:
                for child in manifests.decode_index(self.blobs.read(entry.digest)).manifests:
                    yield from self._walk(child, seen)
            elif entry.media_type == manifests.MANIFEST:
                manifest = manifests.decode_manifest(self.blobs.read(entry.digest))
                for child in (manifest.config, *manifest.layers):
                    if child.digest not in seen:
                        seen.add(child.digest)
                        yield child
        except PenstockError:
            pass  # the entry itself is yielded below, and whoever verifies it gets the same error with its digest
        yield entry

    def _entry(self) -> Descriptor:
        for entry in self.index.manifests:
            if entry.media_type == manifests.INDEX:
                return entry
        raise NotFound(f"{self.root} holds no artifact yet; 'penstock compile' writes one")

    def _pack_variant(self, draft: VariantDraft) -> Descriptor:
        weights_name = f"model{draft.weights.suffix}"
        for name in draft.files:
            if manifests.check_file_name(name).lower() == weights_name:
                raise ArtifactError(f"{name!r} is the name of the weights; a further file needs another one")
        weights_digest = self.blobs.put_file(draft.weights)
        layers = [
            Descriptor(
                media_type=manifests.MODEL_WEIGHT,
                digest=weights_digest,
                size=self.blobs.size_bytes(weights_digest),
                annotations={manifests.TITLE: weights_name},
            ),
            self._document(manifests.VARIANT_SPEC, manifests.canonical_json(draft.spec), "variant.json"),
        ]
        if draft.golden is not None:
            layers.append(self._document(manifests.GOLDEN, draft.golden, "golden.msgpack"))
        for title, path in sorted(draft.files.items()):
            digest = self.blobs.put_file(path)
            size, titled = self.blobs.size_bytes(digest), {manifests.TITLE: title}
            layers.append(Descriptor(media_type=manifests.MODEL_FILE, digest=digest, size=size, annotations=titled))
        spec = draft.spec
        annotations = {
            manifests.MODEL: spec.model,
            manifests.ROLE: spec.role,
            manifests.TARGET: spec.target,
            manifests.PROVIDER: spec.provider,
            manifests.PRECISION: spec.precision,
        }
        config = self._document(manifests.MODEL_CONFIG, _model_config(spec, layers), "config.json")
        manifest = Manifest(
            schema_version=2,
            media_type=manifests.MANIFEST,
            artifact_type=manifests.MODEL_MANIFEST,
            config=config,
            layers=layers,
            annotations=annotations,
        )
        data = manifests.canonical_json(manifest)
        digest = self.blobs.put(data)
        return Descriptor(media_type=manifests.MANIFEST, digest=digest, size=len(data), annotations=annotations)

    def _document(self, media_type: str, data: bytes, title: str) -> Descriptor:
        return Descriptor(
            media_type=media_type, digest=self.blobs.put(data), size=len(data), annotations={manifests.TITLE: title}
        )

    def _write_index(self, entries: list[Descriptor]) -> None:
        index = Index(schema_version=2, media_type=manifests.INDEX, manifests=[_named(entry) for entry in entries])
        write_atomically(self.root / _INDEX_FILE, manifests.canonical_json(index), mode=SHARED)


def variant_digest(draft: VariantDraft, scratch: Path) -> str:
    """Return the manifest digest that ``draft`` will have once packed; needed to bind a certificate before packing."""
    return Layout.create(scratch)._pack_variant(draft).digest


def _named(entry: Descriptor) -> Descriptor:
    """Give referrers a name too: tools such as skopeo can only be pointed at what has one in ``index.json``."""
    if entry.media_type != manifests.MANIFEST:
        return entry
    name = entry.digest.removeprefix("sha256:")[:_NAME_CHARS]
    return msgspec.structs.replace(entry, annotations={**entry.annotations, manifests.REF_NAME: name})


def _check_drafts(drafts: Sequence[VariantDraft]) -> None:
    if not drafts:
        raise ArtifactError("nothing to pack: an artifact needs at least one variant")
    first = drafts[0].spec
    for draft in drafts[1:]:
        for what in ("model", "inputs", "answers", "score_output"):
            if getattr(draft.spec, what) != getattr(first, what):
                named = "outputs" if what == "answers" else what
                raise ArtifactError(
                    f"variants disagree on {named}: {getattr(first, what)!r} ({first.role}) and "
                    f"{getattr(draft.spec, what)!r} ({draft.spec.role}); the cloud could not answer for the edge"
                )


def _model_config(spec: VariantSpec, layers: Sequence[Descriptor]) -> bytes:
    """Write the config of the CNCF ModelPack specification, with what it has words for."""
    return msgspec.json.encode(
        {
            "descriptor": {"name": spec.model},
            "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
            "config": {"format": spec.engine, "precision": spec.precision},
        },
        order="sorted",
    )
