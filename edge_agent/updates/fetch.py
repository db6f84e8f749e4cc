"""Pulls one release from an OCI registry into the blob store: what this device needs of it, and nothing else.

Needed are the artifact's documents (index, variant manifests and specs, certificate), and weights and golden vectors
of the one variant of this device's rung that suits the machine best; with a trust root, signatures too, which decide
before anything heavy is fetched. Verifying and resuming are done by ``penstock.registry.client``; when to try again is
decided by ``edge_agent.policy.update``.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from edge_agent.policy.model_state import Release, Slot
from edge_agent.settings import FetchSettings
from edge_agent.updates.store import Store, to_its_end
from penstock.artifact import certificates, manifests
from penstock.artifact.manifests import Artifact, Descriptor, Variant
from penstock.errors import ArtifactError, DigestMismatch, NotFound, SignatureError, StorageError, TooLarge
from penstock.process.telemetry import log
from penstock.registry import referrers
from penstock.registry.client import RegistryClient
from penstock.registry.connection import Limits
from penstock.runtime import not_served
from penstock.wire.tls import Tls

_log = logging.getLogger(__name__)
_MAX_PULLS = 8


@dataclass(frozen=True, slots=True)
class Transferred:
    """How far a pull is, in bytes of the layers that it needs."""

    done_bytes: int = 0
    total_bytes: int = 0


class FixedByDigest(ArtifactError):
    """What follows from bytes that hash to the digest asked for: no other try changes it."""


@contextmanager
def _read_from_digests() -> Iterator[None]:
    """Mark what goes wrong with verified bytes; a disk that lost some of them is another matter."""
    try:
        yield
    except (DigestMismatch, SignatureError, FixedByDigest):
        raise
    except (ArtifactError, TooLarge) as error:
        raise FixedByDigest(error.message) from error


OnProgress = Callable[[Transferred], None]
"""Called from the thread of the pull."""


class Fetcher:
    """Makes releases complete in the store. One pull per model at a time; several models may pull side by side."""

    def __init__(
        self,
        connect: Callable[[], RegistryClient],
        store: Store,
        settings: FetchSettings,
        targets: Sequence[str],
        *,
        rung: manifests.Role = "edge",
        needs_signatures: bool = False,
    ) -> None:
        """
        Args:
            connect: makes a client for each pull, as :func:`connector` does.
            targets: what this machine runs, best first.
            rung: the role whose variants it runs.
            needs_signatures: whether the store's trust root asks for them.
        """
        self._connect, self._store, self._settings, self._targets = connect, store, settings, tuple(targets)
        self._rung, self._needs_signatures = rung, needs_signatures
        # threads of its own: a pull takes minutes, and short disk work must not wait behind it for a shared thread
        self._threads = ThreadPoolExecutor(_MAX_PULLS, thread_name_prefix="pull")

    def close(self) -> None:
        """End the threads. Pulls must be over, or cancelled."""
        self._threads.shutdown()

    async def pull(self, model: str, release: Release, on_progress: OnProgress) -> Slot:
        """Bring everything of ``release`` that this device needs; what is already here is not asked for again.

        When cancelled, it is over within a chunk: what waits for the registry is interrupted.

        Raises:
            NotFound: the registry has no such artifact or blob.
            Unavailable: the registry is out of reach, or says to come back.
            ArtifactError: malformed, or no variant for this machine.
            DigestMismatch: corrupt or tampered with.
            SignatureError: no key that this device trusts signed it; nothing heavy was fetched.
            StorageError: the disk is, or would be, full.
            TooLarge: over a limit.
        """
        client = self._connect()
        job = self._threads.submit(self._pull, client, model, release, on_progress)

        def stop() -> None:
            job.cancel()  # in case that it waits for a thread
            client.cancel()

        return await to_its_end(asyncio.wrap_future(job), stop)

    def _pull(self, client: RegistryClient, model: str, release: Release, on_progress: OnProgress) -> Slot:
        with client:
            pull = _Pull(client, model, self._store, self._settings)
            artifact = pull.documents(release)
            signatures = pull.signatures(artifact) if self._needs_signatures else ()
            covered = self._store.check_signed(artifact, signatures)
            with _read_from_digests():
                variant = choose_variant(artifact, self._targets, self._rung)
                pull.check_sizes(variant)
            note = pull.certificate(release, artifact, variant, covered)
            pull.layers(variant, on_progress)
        return Slot(
            release=release,
            variant_digest=variant.digest,
            certificate_digest="" if note else release.certificate_digest,
            note=note,
            signature_digests=signatures,
        )


class _Pull:
    """The steps of one pull of one model, in a thread of its own."""

    def __init__(self, client: RegistryClient, model: str, store: Store, settings: FetchSettings) -> None:
        self._client, self._model, self._store, self._settings = client, model, store, settings

    def documents(self, release: Release) -> Artifact:
        data = self._manifest(release.artifact_digest)
        with _read_from_digests():
            index = manifests.decode_index(data)
        if len(index.manifests) > self._settings.max_variants:
            raise FixedByDigest(
                f"artifact {release.artifact_digest} has {len(index.manifests)} variants, "
                f"more than the {self._settings.max_variants} allowed"
            )
        for entry in index.manifests:
            data = self._manifest(entry.digest)
            with _read_from_digests():
                manifest = manifests.decode_manifest(data)
            for layer in manifest.layers:
                if layer.media_type == manifests.VARIANT_SPEC:
                    self._small_layer(layer)
        with _read_from_digests():
            artifact = manifests.load(release.artifact_digest, self._store.document)
        if artifact.model != self._model:
            raise FixedByDigest(
                f"artifact {artifact.digest} is of model {artifact.model!r}, asked for as {self._model!r}"
            )
        return artifact

    def _manifest(self, digest: str) -> bytes:
        if self._store.blobs.has(digest):
            try:
                return self._store.document(digest)
            except DigestMismatch:
                self._store.blobs.delete(digest)  # it rotted on this disk; the registry's copy replaces it
        data = self._client.manifest(self._model, digest).data
        self._store.blobs.put(data)
        return data

    def _small_layer(self, layer: Descriptor) -> None:
        if self._store.blobs.has(layer.digest):
            try:
                self._store.document(layer.digest)
                return
            except DigestMismatch:
                self._store.blobs.delete(layer.digest)  # as with a manifest
        self._store.blobs.put(self._client.small_blob(self._model, layer.digest))

    def signatures(self, artifact: Artifact) -> tuple[str, ...]:
        """Bring the artifact's signatures and return their manifests' digests.

        They are asked for at every pull: what was not signed yesterday may be today.
        """
        found = []
        for digest in self._referrers(artifact, manifests.SIGNATURE):
            try:
                for layer in manifests.decode_manifest(self._manifest(digest)).layers[:1]:
                    if layer.media_type == manifests.SIGNATURE:
                        self._small_layer(layer)
            except DigestMismatch:
                raise
            except (ArtifactError, NotFound, TooLarge) as error:
                # anybody may push rubbish; it must not keep a good signature from counting
                log(_log, logging.WARNING, "not a signature", model=self._model, referrer=digest, error=error.message)
                continue
            found.append(digest)
        return tuple(found)

    def certificate(
        self, release: Release, artifact: Artifact, variant: Variant, covered: frozenset[str] | None
    ) -> str:
        """Bring the assigned certificate, and no other; return why there is none to use, "" when there is."""
        if not release.certificate_digest:
            return "no certificate: every answer is escalated"
        return self._why_unfit(release.certificate_digest, artifact, variant, covered)

    def _referrers(self, artifact: Artifact, kind: str) -> list[str]:
        """List referrers; of too many the last, as registries that keep an order list the oldest first."""
        found = referrers.find(self._client, self._model, artifact.digest, kind)
        return [entry.digest for entry in found[-self._settings.max_certificates :]]

    def _why_unfit(self, digest: str, artifact: Artifact, variant: Variant, covered: frozenset[str] | None) -> str:
        """Bring a certificate and say why it does not fit, "" when it does.

        A malformed one is one that does not fit; one that is out of reach is an error.
        """
        if covered is not None and digest not in covered:
            return f"certificate {digest} was added after the artifact was signed, so it is not used; sign it again"
        try:
            manifest = manifests.decode_manifest(self._manifest(digest))
            for layer in manifest.layers[:1]:
                if layer.media_type == manifests.CERTIFICATE:
                    self._small_layer(layer)
            found = manifests.load_certificate(digest, self._store.document)
            certificates.check(found, manifests.subject_of(artifact, variant))
        except DigestMismatch:
            raise
        except ArtifactError as error:
            return error.message
        return ""

    def check_sizes(self, variant: Variant) -> None:
        for layer in _layers(variant):
            if layer.size > self._settings.max_blob_bytes:
                limit = self._settings.max_blob_bytes
                raise TooLarge(
                    f"blob {layer.digest} has {layer.size} bytes, more than the {limit} allowed", limit_bytes=limit
                )

    def layers(self, variant: Variant, on_progress: OnProgress) -> None:
        layers = _layers(variant)
        missing = [layer for layer in layers if not self._store.blobs.has(layer.digest)]
        total = sum(layer.size for layer in layers)
        done = total - sum(layer.size for layer in missing)

        def moved(count: int) -> None:
            nonlocal done
            done += count
            on_progress(Transferred(done, total))

        held = [min(self._store.blobs.partial_bytes(layer.digest), layer.size) for layer in missing]
        _check_space(self._store, sum(layer.size for layer in missing) - sum(held), self._settings.reserve_bytes)
        moved(0)
        for layer in missing:
            self._client.fetch_blob(self._model, layer, self._store.blobs, moved)


def _layers(variant: Variant) -> list[Descriptor]:
    return [layer for layer in (variant.golden, variant.weights, *variant.files) if layer is not None]


def connector(
    url: str, settings: FetchSettings, *, user: str = "", token: str = "", tls: Tls | None = None
) -> Callable[[], RegistryClient]:
    """Make what makes clients of one registry, which try everything once: trying again is the updater's decision.

    Args:
        user: whose password ``token`` is; "" where it is a bearer token.

    Raises:
        InvalidInput: ``url`` is none.
    """
    limits = Limits(
        connect_timeout_s=settings.connect_timeout_s,
        read_timeout_s=settings.read_timeout_s,
        attempts=1,
        max_document_bytes=settings.max_document_bytes,
        chunk_bytes=settings.chunk_bytes,
    )
    RegistryClient(url, tls=tls)  # refused now rather than by the first pull
    return lambda: RegistryClient(url, user=user, token=token, tls=tls, limits=limits)


def choose_variant(artifact: Artifact, targets: Sequence[str], rung: manifests.Role = "edge") -> Variant:
    """Choose the variant of a rung for the first of ``targets`` (best first) that there is one for.

    Raises:
        ArtifactError: there is none, or none of an engine that is served; the message lists what there is.
    """
    problem = ""
    for target in targets:
        for variant in artifact.variants:
            if variant.spec.role == rung and variant.spec.target == target:
                found = not_served(variant.spec.engine)
                if not found:
                    return variant
                problem = problem or f"{rung} variant for {target}: {found}"  # nothing is fetched for nothing
    if problem:
        raise ArtifactError(f"artifact {artifact.digest} of {artifact.model!r}: {problem}")
    have = ", ".join(v.spec.target for v in artifact.variants if v.spec.role == rung) or "none"
    raise ArtifactError(
        f"artifact {artifact.digest} of {artifact.model!r} has no {rung} variant that this machine can run: "
        f"it has {have}; this machine runs {', '.join(targets)}"
    )


def _check_space(store: Store, needed_bytes: int, reserve_bytes: int) -> None:
    """Refuse before the first byte is fetched, rather than when the disk is full and everything else suffers.

    Raises:
        StorageError: there is not enough space.
    """
    free = shutil.disk_usage(store.data_dir).free
    if needed_bytes and needed_bytes + reserve_bytes > free:
        raise StorageError(
            f"the disk is too full: {needed_bytes} bytes to fetch and {reserve_bytes} to keep free, {free} available; "
            "free some space"
        )
