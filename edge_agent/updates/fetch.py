"""Pulls one release from an OCI registry into the blob store: what this device needs of it, and nothing else.

Needed are the artifact's documents (index, variant manifests and specs, certificate), and weights and golden vectors
of the one variant of this device's rung that suits the machine best; with a trust root, signatures too, which decide
before anything heavy is fetched. Nothing is visible before its digest was checked; transfers
resume. When to try again is decided by ``edge_agent.policy.update``.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from edge_agent.policy.model_state import Release, Slot
from edge_agent.settings import FetchSettings
from edge_agent.updates.store import Store, in_thread
from penstock.artifact import certificates, manifests
from penstock.artifact.blobs import BlobWriter, digest_of
from penstock.artifact.manifests import Artifact, Descriptor, Variant
from penstock.errors import (
    ArtifactError,
    DigestMismatch,
    NotFound,
    PenstockError,
    StorageError,
    TooLarge,
    Unavailable,
)
from penstock.process.telemetry import log
from penstock.rest.status import error_from_http

_log = logging.getLogger(__name__)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_ACCEPT = f"{manifests.INDEX}, {manifests.MANIFEST}"
_MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Transferred:
    """How far a pull is, in bytes of the layers that it needs."""

    done_bytes: int = 0
    total_bytes: int = 0


OnProgress = Callable[[Transferred], None]


class Registry:
    """Verified reads from one OCI registry over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, settings: FetchSettings) -> None:
        self._session = session
        self._base = base_url.rstrip("/") + "/v2"
        self._settings = settings

    def __repr__(self) -> str:
        return f"Registry({self._base!r})"

    async def manifest(self, model: str, digest: str) -> bytes:
        """
        Raises:
            NotFound, Unavailable, TooLarge, DigestMismatch: and whatever else the registry's answer stands for.
        """
        return _checked(digest, await self._document(f"{model}/manifests/{digest}"))

    async def document(self, model: str, described: Descriptor) -> bytes:
        """A small blob. Raises as :meth:`manifest` does."""
        return _checked(described.digest, await self._document(f"{model}/blobs/{described.digest}"))

    async def referrers(self, model: str, artifact_digest: str, kind: str) -> tuple[str, ...]:
        """Manifest digests of what is attached to an artifact (certificates, signatures), in the registry's order.

        Raises likewise. Of more than ``max_certificates`` the last are taken: registries that keep an order list the
        oldest first.
        """
        path = f"{model}/referrers/{artifact_digest}"
        try:
            index = manifests.decode_index(await self._document(path, params={"artifactType": kind}))
        except NotFound:  # a registry older than OCI 1.1 has no referrers
            return ()
        found = [entry.digest for entry in index.manifests if entry.artifact_type == kind]
        return tuple(found[-self._settings.max_certificates :])

    async def copy(self, model: str, described: Descriptor, writer: BlobWriter, moved: Callable[[int], None]) -> None:
        """Bring the rest of a blob into ``writer``, which may hold the first part already; ``moved`` hears of bytes.

        Raises:
            Unavailable: the connection broke or the body was short; what arrived is kept for the next time.
            TooLarge: more bytes than described.
        """
        headers = {"Accept-Encoding": "identity"}
        if writer.offset:
            headers["Range"] = f"bytes={writer.offset}-"
        try:
            async with self._session.get(f"{self._base}/{model}/blobs/{described.digest}", headers=headers) as response:
                if response.status == 416:  # it has fewer bytes than we hold: ours cannot be a prefix of the blob
                    held = writer.offset
                    writer.restart()
                    raise Unavailable(f"{described.digest}: the registry cannot continue at byte {held}; starting over")
                if response.status not in (200, 206):
                    raise await _refusal(response)
                if writer.offset and not _continues(response, writer.offset):
                    writer.restart()
                    if response.status == 206:
                        raise Unavailable(f"{described.digest}: the registry sent another range than was asked for")
                async for chunk in response.content.iter_chunked(self._settings.chunk_bytes):
                    await in_thread(writer.write, chunk)
                    moved(len(chunk))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _out_of_reach(self._base, error) from error
        if writer.offset < described.size:
            raise Unavailable(f"{described.digest}: got {writer.offset} of {described.size} bytes")

    async def _document(self, path: str, params: dict[str, str] | None = None) -> bytes:
        limit = self._settings.max_document_bytes
        try:
            async with self._session.get(
                f"{self._base}/{path}", params=params, headers={"Accept": _ACCEPT, "Accept-Encoding": "identity"}
            ) as response:
                if response.status != 200:
                    raise await _refusal(response)
                data = await _read(response, limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _out_of_reach(self._base, error) from error
        if len(data) > limit:
            raise TooLarge(f"{path} has more than the {limit} bytes that a document may have", limit_bytes=limit)
        return data


class Fetcher:
    """Makes releases complete in the store. One pull per model at a time; several models may pull side by side."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        settings: FetchSettings,
        targets: Sequence[str],
        *,
        rung: manifests.Role = "edge",
        needs_signatures: bool = False,
    ) -> None:
        """
        Args:
            targets: what this machine runs, best first. ``rung``: the role whose variants it runs.
            needs_signatures: the store's trust root asks for them.
        """
        self._registry, self._store, self._settings, self._targets = registry, store, settings, tuple(targets)
        self._rung, self._needs_signatures = rung, needs_signatures

    async def pull(self, model: str, release: Release, on_progress: OnProgress) -> Slot:
        """Bring everything of ``release`` that this device needs; what is already here is not asked for again.

        Raises:
            NotFound: the registry has no such artifact or blob. Unavailable: out of reach, or it says to come back.
            ArtifactError: malformed, or no variant for this machine. DigestMismatch: corrupt or tampered with.
            SignatureError: nobody whom this device trusts signed it; nothing heavy was fetched.
            StorageError: the disk is, or would be, full. TooLarge: over a limit.
        """
        artifact = await self._documents(model, release)
        signatures = await self._signatures(model, artifact)
        covered = self._store.check_signed(artifact, signatures)
        variant = choose_variant(artifact, self._targets, self._rung)
        certificate_digest, note = await self._certificate(model, release, artifact, variant, covered)
        await self._layers(model, variant, on_progress)
        return Slot(
            release=release,
            variant_digest=variant.digest,
            certificate_digest=certificate_digest,
            note=note,
            signature_digests=signatures,
        )

    async def _documents(self, model: str, release: Release) -> Artifact:
        index = manifests.decode_index(await self._manifest(model, release.artifact_digest))
        if len(index.manifests) > self._settings.max_variants:
            raise ArtifactError(
                f"artifact {release.artifact_digest} has {len(index.manifests)} variants, "
                f"more than the {self._settings.max_variants} allowed"
            )
        for entry in index.manifests:
            manifest = manifests.decode_manifest(await self._manifest(model, entry.digest))
            for layer in manifest.layers:
                if layer.media_type == manifests.VARIANT_SPEC:
                    await self._small_layer(model, layer)
        artifact = manifests.load(release.artifact_digest, self._store.document)
        if artifact.model != model:
            raise ArtifactError(f"artifact {artifact.digest} is of model {artifact.model!r}, asked for as {model!r}")
        return artifact

    async def _manifest(self, model: str, digest: str) -> bytes:
        if self._store.blobs.has(digest):
            try:
                return self._store.document(digest)
            except DigestMismatch:
                self._store.blobs.delete(digest)  # it rotted on this disk; the registry's copy replaces it
        data = await self._registry.manifest(model, digest)
        await in_thread(self._store.blobs.put, data)
        return data

    async def _small_layer(self, model: str, layer: Descriptor) -> None:
        if not self._store.blobs.has(layer.digest):
            await in_thread(self._store.blobs.put, await self._registry.document(model, layer))

    async def _signatures(self, model: str, artifact: Artifact) -> tuple[str, ...]:
        """Manifest digests of the artifact's signatures, all of them here now; () where nobody asks for them.

        Asked for at every pull: what was not signed yesterday may be today.
        """
        if not self._needs_signatures:
            return ()
        found = []
        for digest in await self._registry.referrers(model, artifact.digest, manifests.SIGNATURE):
            try:
                for layer in manifests.decode_manifest(await self._manifest(model, digest)).layers[:1]:
                    if layer.media_type == manifests.SIGNATURE:
                        await self._small_layer(model, layer)
            except DigestMismatch:
                raise
            except (ArtifactError, NotFound, TooLarge) as error:
                # anybody may push rubbish; it must not keep a good signature from counting
                log(_log, logging.WARNING, "not a signature", model=model, referrer=digest, error=error.message)
                continue
            found.append(digest)
        return tuple(found)

    async def _certificate(
        self, model: str, release: Release, artifact: Artifact, variant: Variant, covered: frozenset[str] | None
    ) -> tuple[str, str]:
        """(digest of a certificate issued for exactly this variant or "", why there is none).

        An artifact with several edge variants has a certificate for each, and the fleet service names only one. The one
        that it names is used where it fits; else the newest (highest serial) that does.
        """
        if not release.certificate_digest:
            return "", "no certificate: every answer is escalated"
        problem = await self._why_unfit(model, release.certificate_digest, artifact, variant, covered)
        if not problem:
            return release.certificate_digest, ""
        newest, serial = "", 0
        for digest in await self._registry.referrers(model, artifact.digest, manifests.CERTIFICATE):
            is_other = digest != release.certificate_digest
            if is_other and not await self._why_unfit(model, digest, artifact, variant, covered):
                found = manifests.load_certificate(digest, self._store.document).serial
                if found >= serial:
                    newest, serial = digest, found
        return newest, "" if newest else problem

    async def _why_unfit(
        self, model: str, digest: str, artifact: Artifact, variant: Variant, covered: frozenset[str] | None
    ) -> str:
        """ "" when the certificate fits. A malformed one is one that does not fit; an unreachable one is an error."""
        if covered is not None and digest not in covered:
            return f"certificate {digest} was added after the artifact was signed, so it is not used; sign it again"
        try:
            manifest = manifests.decode_manifest(await self._manifest(model, digest))
            for layer in manifest.layers[:1]:
                if layer.media_type == manifests.CERTIFICATE:
                    await self._small_layer(model, layer)
            found = manifests.load_certificate(digest, self._store.document)
            certificates.check(found, manifests.subject_of(artifact, variant))
        except DigestMismatch:
            raise
        except ArtifactError as error:
            return error.message
        return ""

    async def _layers(self, model: str, variant: Variant, on_progress: OnProgress) -> None:
        layers = [layer for layer in (variant.golden, variant.weights, *variant.files) if layer is not None]
        for layer in layers:
            if layer.size > self._settings.max_blob_bytes:
                limit = self._settings.max_blob_bytes
                raise TooLarge(
                    f"blob {layer.digest} has {layer.size} bytes, more than the {limit} allowed", limit_bytes=limit
                )
        missing = [layer for layer in layers if not self._store.blobs.has(layer.digest)]
        total = sum(layer.size for layer in layers)
        done = total - sum(layer.size for layer in missing)

        def moved(count: int) -> None:
            nonlocal done
            done += count
            on_progress(Transferred(done, total))

        held = [min(self._store.blobs.partial_bytes(layer.digest), layer.size) for layer in missing]
        self._check_space(sum(layer.size for layer in missing) - sum(held))
        moved(sum(held))
        for layer in missing:
            await self._layer(model, layer, moved)

    async def _layer(self, model: str, layer: Descriptor, moved: Callable[[int], None]) -> None:
        writer = await in_thread(self._store.blobs.writer, layer.digest, limit_bytes=layer.size)
        with writer:
            if writer.offset > layer.size:  # cannot be a part of it: written by a bug, or by somebody else
                writer.restart()
            if writer.offset < layer.size:
                await self._registry.copy(model, layer, writer, moved)
            await in_thread(writer.commit)

    def _check_space(self, needed_bytes: int) -> None:
        """Said before the first byte is fetched, rather than when the disk is full and everything else suffers."""
        free = shutil.disk_usage(self._store.data_dir).free
        reserve = self._settings.reserve_bytes
        if needed_bytes and needed_bytes + reserve > free:
            raise StorageError(
                f"the disk is too full: {needed_bytes} bytes to fetch and {reserve} to keep free, {free} available; "
                "free some space"
            )


def open_session(settings: FetchSettings, *, token: str = "") -> aiohttp.ClientSession:
    """A session with the settings' patience: silence is limited, the length of a transfer is not."""
    headers = {"Authorization": f"Bearer {token}"} if token else None
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.read_timeout_s
    )
    return aiohttp.ClientSession(headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=8))


def choose_variant(artifact: Artifact, targets: Sequence[str], rung: manifests.Role = "edge") -> Variant:
    """The variant of a rung for the first of ``targets`` (best first) that there is one for.

    Raises:
        ArtifactError: there is none; the message lists what there is.
    """
    for target in targets:
        for variant in artifact.variants:
            if variant.spec.role == rung and variant.spec.target == target:
                return variant
    have = ", ".join(v.spec.target for v in artifact.variants if v.spec.role == rung) or "none"
    raise ArtifactError(
        f"artifact {artifact.digest} of {artifact.model!r} has no {rung} variant that this machine can run: "
        f"it has {have}; this machine runs {', '.join(targets)}"
    )


def _checked(digest: str, data: bytes) -> bytes:
    found = digest_of(data)
    if found != digest:
        raise DigestMismatch(f"the registry sent bytes that hash to {found} as {digest}: corrupt or tampered with")
    return data


def _continues(response: aiohttp.ClientResponse, offset: int) -> bool:
    """Whether a response goes on where we stopped; a plain 200 begins at byte 0 again."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return response.status == 206 and found is not None and int(found.group(1)) == offset


async def _refusal(response: aiohttp.ClientResponse) -> PenstockError:
    return error_from_http(response.status, response.headers, await _read(response, _MAX_ERROR_BYTES))


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body, or its first ``limit_bytes`` + 1 bytes."""
    parts: list[bytes] = []
    missing = limit_bytes + 1
    while missing > 0 and (chunk := await response.content.read(missing)):
        parts.append(chunk)
        missing -= len(chunk)
    return b"".join(parts)


def _out_of_reach(base: str, error: BaseException) -> Unavailable:
    return Unavailable(f"registry {base} is out of reach: {error or type(error).__name__}")
