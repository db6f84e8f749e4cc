"""The registry: content-addressed artifacts, the names that point at them, and each model's default version.

Reads are answered from memory and never wait; a write returns when it is durable. What makes a push acceptable is
decided in ``manifest_rules``; the protocol on the wire is ``cloud_core.api.oci``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cloud_core.registry import manifest_rules, oci_errors, referrers
from cloud_core.registry.garbage import GarbageCollector
from cloud_core.registry.oci_errors import Refused
from cloud_core.registry.settings import RegistrySettings
from cloud_core.registry.uploads import Uploads
from cloud_core.state import Database, Transaction, catalog, to_its_end, uncancelled
from cloud_core.state.catalog import ManifestRow, Snapshot
from penstock.artifact import manifests, variant_files
from penstock.artifact.blobs import BlobStore, digest_of, write_atomically
from penstock.artifact.certificates import Certificate
from penstock.artifact.manifests import Artifact, Descriptor, Variant
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import NotFound, PenstockError
from penstock.signing.trust import TrustRoot

_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_MAX_CACHED = 256
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model. ``tag`` is "" for an artifact that no name points at any more."""

    model: str
    tag: str
    digest: str
    is_default: bool
    pushed_at: datetime


class Registry:
    """Owns ``data_dir/registry`` and the catalog tables. One instance per data directory."""

    def __init__(
        self,
        root: Path,
        database: Database,
        settings: RegistrySettings,
        now: Callable[[], datetime],
        trust: TrustRoot | None = None,
    ) -> None:
        self.settings, self.now, self._database, self._trust = settings, now, database, trust
        self._unpacked = root / "unpacked"
        self.store = BlobStore(root)
        self.uploads = Uploads(root / "uploads", self.store, settings)
        self._listeners: list[Callable[[], None]] = []
        self._writing = asyncio.Lock()
        self.garbage = GarbageCollector(
            self.store, self.uploads, self._unpacked, settings, rows=lambda: self._manifests.values(),
            writing=self._writing, now=now,
        )  # fmt: skip
        self._load(database.run_now(catalog.snapshot))

    @classmethod
    def open(
        cls,
        data_dir: Path,
        database: Database,
        settings: RegistrySettings | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        trust: TrustRoot | None = None,
    ) -> Registry:
        """Open or create the registry; drops expired uploads and old blobs that nothing names.

        Args:
            trust: who has to have signed what is served; None asks for no signatures.

        Raises:
            StorageError: not writable.
        """
        registry = cls((settings := settings or RegistrySettings()).root(data_dir), database, settings, now, trust)
        variant_files.discard(registry._unpacked)  # of the process before this one; made again by whatever is loaded
        registry.garbage.collect_at_start()
        return registry

    def __repr__(self) -> str:
        return f"Registry({str(self.store.root)!r}, {len(self._manifests)} manifests)"

    # -- what serving and the fleet ask ------------------------------------------------------------------------------

    def models(self) -> tuple[str, ...]:
        """Return the names of models that have at least one version, sorted."""
        return tuple(sorted(self._defaults))

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """Return tagged versions of a model in order of arrival.

        Raises:
            NotFound: no such model; names those that exist.
        """
        self._check_model(model)
        tagged = [(tag, row) for tag, row in self._tags.get(model, {}).items() if row.is_artifact]
        tagged.sort(key=lambda pair: (self._tagged_at[model, pair[0]], pair[0]))
        return tuple(self._version(row, tag) for tag, row in tagged)

    def resolve(self, model: str, version: str = "") -> ModelVersion:
        """Find the version that a tag, a digest, or a unique prefix of at least 12 hex digits means; "" is the default.

        Raises:
            NotFound: no such model or version, or an ambiguous prefix; names what exists.
        """
        self._check_model(model)
        digest = self._defaults[model] if version == "" else self._digest_of(model, version)
        row = self._manifests.get((model, digest))
        if row is None or not row.is_artifact:
            raise NotFound(f"model {model!r} has no version {version!r}; it has {self._listing(model)}")
        tag = version if version in self._tags.get(model, {}) else self._newest_tag(model, digest)
        return self._version(row, tag)

    def tag_of(self, model: str, digest: str) -> str:
        """Return the newest tag of an artifact; "" where it has none, or is gone."""
        try:
            return self.resolve(model, digest).tag
        except NotFound:
            return ""

    def artifact(self, digest: str) -> Artifact:
        """Return a parsed artifact.

        Raises:
            NotFound: no such artifact.
            ArtifactError: its files were tampered with since the push.
        """
        return self._artifact(digest)

    def certificate(self, digest: str) -> Certificate:
        """Return the certificate that a manifest carries; each heartbeat of a device asks for some.

        Raises:
            NotFound: no such manifest.
            ArtifactError: it carries none, or its files were tampered with since the push.
        """
        return self._certificate(digest)

    def check_signed(self, artifact: Artifact) -> frozenset[str] | None:
        """Return the manifest digests of the referrers that are vouched for; None where the core has no trust root.

        Raises:
            SignatureError: no key that this core trusts signed the artifact: it may be kept here, and is not served.
        """
        if self._trust is None:
            return None
        return self._trust.check(artifact, referrers.signatures(self._referring(artifact.digest), self.store))

    def verified_files(self, variant: Variant) -> VariantFiles:
        """Verify what a variant is loaded from, and put its files side by side where it has several. Blocks.

        Raises:
            NotFound, DigestMismatch: a blob is gone or was changed. StorageError: the disk said no.
        """
        return variant_files.verified_files(variant, self.store, self._unpacked)

    def blob_path(self, digest: str) -> Path:
        """Return the file of a blob, for an engine that maps it.

        Raises:
            NotFound: no such blob.
        """
        self.store.size_bytes(digest)
        return self.store.path(digest)

    def certificate_of(self, digest: str) -> tuple[str, Certificate] | None:
        """Return the certificate to name for an artifact, with its manifest's digest; None when there is none.

        It is the newest of the edge variant whose certificate was pushed last: what is desired of devices then changes
        with each new one, and devices of other variants find their own (``edge_agent.updates.fetch``).
        """
        return next(iter(self.certificates_of(digest)), None)

    def certificates_of(self, digest: str) -> tuple[tuple[str, Certificate], ...]:
        """Return the newest certificate of each edge variant that fits, the variant pushed for last first."""
        if digest not in self._certificates:
            self._certificates[digest] = self._find_certificates(digest)
        return self._certificates[digest]

    async def set_default(self, model: str, digest: str) -> None:
        """Move a model's default version.

        Raises:
            NotFound: no such version.
        """
        version = self.resolve(model, digest)
        at = self.now().timestamp()
        await self._change(lambda tx: catalog.set_default(tx, model, version.digest, at))

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the event loop after every change of names, manifests or defaults."""
        self._listeners.append(callback)

    async def reload(self) -> None:
        """Read the catalog again, after this or another owner of its tables committed a change."""
        self._load(await self._database.run(catalog.snapshot))
        for listener in self._listeners:
            listener()

    # -- what the distribution protocol asks -------------------------------------------------------------------------

    def repositories(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        return sorted({repository for repository, _ in self._manifests})

    def tags(self, repository: str) -> list[str]:
        """Return tags of a repository in lexical order.

        Raises:
            Refused: NAME_UNKNOWN.
        """
        self._check_known(repository)
        return sorted(self._tags.get(repository, {}))

    def manifest(self, repository: str, reference: str) -> ManifestRow:
        """Return a stored manifest.

        Raises:
            Refused: NAME_UNKNOWN, MANIFEST_UNKNOWN or DIGEST_INVALID.
        """
        self._check_known(repository)
        if ":" in reference:
            row = self._manifests.get((repository, manifest_rules.check_reference_digest(reference)))
        else:
            row = self._tags.get(repository, {}).get(reference)
        if row is None:
            raise Refused(oci_errors.MANIFEST_UNKNOWN, f"{repository} has no manifest {reference[:140]!r}")
        return row

    def referrers(self, repository: str, subject: str, kind: str = "") -> list[Descriptor]:
        """Return manifests whose subject is ``subject``, oldest first; an unknown subject has none (OCI 1.1)."""
        manifest_rules.check_reference_digest(subject)
        return [
            manifest_rules.described(row)
            for row in self._referrers.get((repository, subject), ())
            if kind in ("", row.artifact_type)
        ]

    async def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> ManifestRow:
        """Store a manifest and point ``reference`` at it, if that is a tag. Durable when this returns.

        Raises:
            Refused: NAME_INVALID, DIGEST_INVALID, MANIFEST_INVALID, MANIFEST_BLOB_UNKNOWN, SIZE_INVALID, DENIED.
            StorageError: the disk said no.
        """
        manifest_rules.check_repository(repository)
        digest = digest_of(data)
        tag = manifest_rules.tag_of(reference, digest)
        if len(data) > self.settings.max_manifest_bytes:
            limit = self.settings.max_manifest_bytes
            raise Refused(oci_errors.SIZE_INVALID, f"the manifest has {len(data)} bytes, more than the {limit} allowed")
        async with self._writing:
            is_new = (repository, digest) not in self._manifests
            if is_new and len(self._manifests) >= self.settings.max_manifests:
                raise Refused(
                    oci_errors.DENIED, f"the registry holds {self.settings.max_manifests} manifests, its limit"
                )
            row = await to_its_end(asyncio.to_thread(self._store_manifest, repository, digest, media_type, data))
            await self._change(lambda tx: catalog.put_manifest(tx, row, tag))
        return row

    async def delete_manifest(self, repository: str, reference: str) -> None:
        """Forget a tag, or a manifest with the tags that point at it. Blobs go when garbage is collected.

        Raises:
            Refused: NAME_UNKNOWN, MANIFEST_UNKNOWN; DENIED while something relies on the manifest.
        """
        async with self._writing:
            row = self.manifest(repository, reference)
            if ":" not in reference:
                await self._change(lambda tx: catalog.delete_tag(tx, repository, reference))
            else:
                self._check_no_parent(row)
                await self._change(lambda tx: _delete_unused(tx, row))

    # -- inside ------------------------------------------------------------------------------------------------------

    @uncancelled
    async def _change(self, work: Callable[[Transaction], None]) -> None:
        await self._database.run(work)
        await self.reload()

    def _load(self, snapshot: Snapshot) -> None:
        self._manifests = {(row.repository, row.digest): row for row in snapshot.manifests}
        self._arrival = {key: index for index, key in enumerate(self._manifests)}
        self._tags: dict[str, dict[str, ManifestRow]] = {}
        self._tagged_at: dict[tuple[str, str], float] = {}
        for tag in snapshot.tags:
            self._tags.setdefault(tag.repository, {})[tag.tag] = self._manifests[tag.repository, tag.digest]
            self._tagged_at[tag.repository, tag.tag] = tag.pushed_at
        self._referrers: dict[tuple[str, str], list[ManifestRow]] = {}
        for row in snapshot.manifests:
            if row.subject:
                self._referrers.setdefault((row.repository, row.subject), []).append(row)
        self._defaults = snapshot.defaults
        read = self.store.read
        self._artifact = lru_cache(_MAX_CACHED)(lambda digest: manifests.load(digest, read))
        self._certificate = lru_cache(_MAX_CACHED)(lambda digest: manifests.load_certificate(digest, read))
        self._certificates: dict[str, tuple[tuple[str, Certificate], ...]] = {}

    def _store_manifest(self, repository: str, digest: str, media_type: str, data: bytes) -> ManifestRow:
        examined = manifest_rules.examine(
            data,
            media_type,
            digest=digest,
            repository=repository,
            store=self.store,
            has_manifest=lambda child: (repository, child) in self._manifests,
        )
        write_atomically(self.store.path(digest), data)  # also where it is already: it may be damaged there
        return manifest_rules.row_of(
            examined, repository, digest, media_type, size_bytes=len(data), pushed_at=self.now().timestamp()
        )

    def _find_certificates(self, digest: str) -> tuple[tuple[str, Certificate], ...]:
        try:
            artifact = self.artifact(digest)
            covered = self.check_signed(artifact)
        except PenstockError:
            return ()
        return referrers.certificates(artifact, self._referring(digest), self.store, covered)

    def _referring(self, digest: str) -> list[ManifestRow]:
        """Return referrers of an artifact in any repository, oldest first in each."""
        return [row for (_, subject), rows in self._referrers.items() if subject == digest for row in rows]

    def _digest_of(self, model: str, version: str) -> str:
        tagged = self._tags.get(model, {}).get(version)
        if tagged is not None:
            return tagged.digest
        prefix = _PREFIX.fullmatch(version)
        if prefix is None:
            return ""
        stem = f"sha256:{prefix[1]}"
        artifacts = (d for (repository, d), row in self._manifests.items() if repository == model and row.is_artifact)
        found = [d for d in artifacts if d.startswith(stem)]
        if len(found) > 1:
            raise NotFound(f"{version!r} is short for {len(found)} versions of {model!r}; give more digits")
        return found[0] if found else ""

    def _version(self, row: ManifestRow, tag: str) -> ModelVersion:
        return ModelVersion(
            model=row.repository,
            tag=tag,
            digest=row.digest,
            is_default=self._defaults.get(row.repository) == row.digest,
            pushed_at=datetime.fromtimestamp(self._tagged_at.get((row.repository, tag), row.pushed_at), UTC),
        )

    def _newest_tag(self, model: str, digest: str) -> str:
        tags = [tag for tag, row in self._tags.get(model, {}).items() if row.digest == digest]
        return max(tags, key=lambda tag: (self._tagged_at[model, tag], tag), default="")

    def _listing(self, model: str) -> str:
        names = [version.tag for version in self.versions(model)]
        more = f" and {len(names) - _MAX_NAMED} older" if len(names) > _MAX_NAMED else ""
        return (", ".join(reversed(names[-_MAX_NAMED:])) or "no tags") + more

    def _check_model(self, model: str) -> None:
        if model not in self._defaults:
            known = self.models()
            listed = ", ".join(known[:_MAX_NAMED]) or "none; push one with 'penstock artifact push'"
            raise NotFound(f"no model named {model[:140]!r}; models here: {listed}")

    def _check_known(self, repository: str) -> None:
        manifest_rules.check_repository(repository)
        if not any(name == repository for name, _ in self._manifests):
            raise Refused(oci_errors.NAME_UNKNOWN, f"no repository named {repository!r}")

    def _children(self, row: ManifestRow) -> list[str]:
        return manifest_rules.children_in(self.store.read(row.digest), row.media_type)

    def _check_no_parent(self, row: ManifestRow) -> None:
        for (repository, digest), other in self._manifests.items():
            is_index = repository == row.repository and other.media_type in manifest_rules.INDEX_TYPES
            if is_index and row.digest in self._children(other):
                raise Refused(oci_errors.DENIED, f"{row.digest} is part of {digest}; delete that first")


def _delete_unused(transaction: Transaction, row: ManifestRow) -> None:
    users = catalog.users_of(transaction, row.repository, row.digest)
    if users:
        raise Refused(
            oci_errors.DENIED, f"{row.digest} is in use by {', '.join(users)}; roll out another version first"
        )
    catalog.delete_manifest(transaction, row.repository, row.digest)
