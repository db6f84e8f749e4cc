"""What an agent keeps on disk: blobs by digest, one state file per model, and the lock on all of it.

Owns durability and garbage collection. Which slot is active, and when that changes, is ``edge_agent.policy``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

from edge_agent.identity import LOCK_FILE
from edge_agent.policy.model_state import ModelState, Slot
from edge_agent.serving.load_plan import LoadPlan
from edge_agent.updates import state_format
from edge_agent.updates.documents import Documents
from penstock.artifact import manifests, variant_files
from penstock.artifact.blobs import (
    MAX_DOCUMENT_BYTES,
    BlobStore,
    digest_of,
    disk_errors,
    fsync_directory,
    write_atomically,
    write_over,
)
from penstock.artifact.certificates import Certificate
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import (
    ArtifactError,
    DigestMismatch,
    NotFound,
    PenstockError,
    SignatureError,
    StorageError,
    TooLarge,
)
from penstock.generation import tokenizer
from penstock.process.telemetry import log
from penstock.signing.trust import TrustRoot

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_WORN_OUT = frozenset({errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT})
_MAX_STATE_BYTES = 1024 * 1024
_HEAVY = (
    manifests.MODEL_WEIGHT,
    manifests.MODEL_FILE,
    manifests.GOLDEN,
)  # what a device has only of the variant that it runs


class DataDirLock:
    """Holds a data directory for one agent; the operating system lets go when the process dies, however it dies."""

    def __init__(self, data_dir: Path) -> None:
        """Lock the directory; create it where there is none.

        Raises:
            StorageError: another agent holds it, or the directory is not writable.
        """
        with disk_errors(f"using data directory {data_dir}"):
            data_dir.mkdir(parents=True, exist_ok=True)
            try:
                self._file = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in _WORN_OUT:
                    raise
                log(_log, logging.WARNING, "the data directory takes no writes", directory=data_dir, error=error)
                self._file = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise StorageError(
                f"another agent uses {data_dir}; stop it, or give this one a directory of its own with --data-dir"
            ) from None

    def __enter__(self) -> DataDirLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let another agent have the directory."""
        os.close(self._file)


class Store:
    """Keeps blobs and model states under ``data_dir``. State files are replaced whole: old or new, never a mixture.

    Hold the :class:`DataDirLock` first: opening deletes what unfinished writes left behind.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        max_document_bytes: int = MAX_DOCUMENT_BYTES,
        rung: manifests.Role = "edge",
        trust: TrustRoot | None = None,
    ) -> None:
        """Create the directories, and delete what unfinished writes left behind.

        Args:
            max_document_bytes: limit of a manifest, spec or certificate.
            rung: the role whose variants this device runs.
            trust: keys, one of which has to have signed what is loaded; None asks for no signature.

        Raises:
            StorageError: the directory is not writable.
        """
        self.data_dir = data_dir
        self.blobs = BlobStore(data_dir)
        self._models = data_dir / "models"
        self._copies = self._models / "copies"
        self._unpacked = data_dir / "unpacked"
        self._rung, self._trust = rung, trust
        with disk_errors(f"creating {self._models}"):
            self._models.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # read-only, and of a release that made no copies
                self._copies.mkdir(exist_ok=True)
            documents = self._copies / "documents"
            self._documents = Documents(self.blobs, documents, limit_bytes=max_document_bytes)
            for directory in (data_dir, self._models, self._copies, documents, self.blobs.path(digest_of(b"")).parent):
                for leftover in directory.glob(".tmp-*"):  # of writes that a kill -9 cut short
                    with contextlib.suppress(OSError):  # read-only: what is committed is served all the same
                        leftover.unlink(missing_ok=True)
        variant_files.discard(self._unpacked)  # made again by whatever is loaded

    def __repr__(self) -> str:
        return f"Store({str(self.data_dir)!r})"

    def states(self) -> dict[str, ModelState]:
        """Read the states of all models. A damaged file is set aside: the fleet service will ask again.

        Raises:
            NewerState: a newer Penstock wrote one of them; it stays as it is.
        """
        found: dict[str, ModelState] = {}
        names = {path.name for directory in (self._models, self._copies) for path in directory.glob("*.json")}
        for path in sorted(self._models / name for name in names):
            try:
                state = self._either_copy(path)
            except (ArtifactError, OSError) as error:
                log(_log, logging.ERROR, "state file unreadable, set aside as .bad", file=path, error=error)
                with contextlib.suppress(OSError):  # read-only or worn out
                    os.replace(path, path.with_suffix(".bad"))
                continue
            found[state.model] = state
        return found

    def _either_copy(self, path: Path) -> ModelState:
        """Read a state from its file, else from the copy of it."""
        try:
            return _decode_state(path)
        except (ArtifactError, OSError) as error:
            try:
                state = _decode_state(self._copies / path.name)
            except (ArtifactError, OSError):
                raise error from None
            log(_log, logging.WARNING, "state file damaged, its copy is used", file=path, error=error)
            return state

    def save(self, state: ModelState) -> None:
        """Make a state durable.

        Raises:
            StorageError: the disk is full or not writable; the old state stands.
        """
        name, data = f"{manifests.check_model_name(state.model)}.json", state_format.encode(state)
        write_atomically(self._models / name, data)
        write_over(self._copies / name, data)

    def forget(self, model: str) -> None:
        """Delete the state of a model. Its blobs go with the next :meth:`collect`.

        Raises:
            StorageError: the disk said no; the state stands.
        """
        name = f"{manifests.check_model_name(model)}.json"
        with disk_errors(f"deleting the state of {model}"):
            for directory in (self._copies, self._models):  # in this order: a copy that is left would bring it back
                (directory / name).unlink(missing_ok=True)
                if directory.is_dir():
                    fsync_directory(directory)

    def document(self, digest: str) -> bytes:
        """Read a small blob and verify it; for ``penstock.artifact.manifests.load``."""
        return self._documents.read(digest)

    def load_plan(self, model: str, slot: Slot, *, has_run: bool = False) -> LoadPlan:
        """Collect everything that hosting needs to run a slot; every byte is verified against its digest (invariant 3).

        What vouches for a slot may be damaged once it has run: without golden vectors it is not replayed again, without
        its certificate nothing is promised. The plan then says what is damaged.

        Args:
            has_run: it was committed on this device: it has shown here that it computes what was compiled.

        Raises:
            NotFound: a blob is gone, or the slot is of another rung.
            DigestMismatch: a blob was changed.
            ArtifactError: a document is malformed, or there is no such variant.
            SignatureError: no key that this device trusts signed it.
        """
        artifact = manifests.load(slot.release.artifact_digest, self.document)
        variant = next((v for v in artifact.variants if v.digest == slot.variant_digest), None)
        if artifact.model != model or variant is None:
            raise ArtifactError(f"artifact {artifact.digest} of {artifact.model!r} is not what slot {slot} describes")
        if variant.spec.role != self._rung:  # the setting changed: the other rung is fetched
            raise NotFound(f"rung {self._rung!r} of {model!r} is not here yet; rung {variant.spec.role!r} is")
        covered = self.check_signed(artifact, slot.signature_digests)
        if covered is not None and slot.certificate_digest and slot.certificate_digest not in covered:
            raise SignatureError(f"certificate {slot.certificate_digest} is not among what was signed")
        certificate = self._certificate(slot, may_lack=has_run)
        files = variant_files.verified_files(variant, self.blobs, self._unpacked, may_lack_golden=has_run)
        self._documents.keep(self._documents_of(slot))
        return LoadPlan(
            model=model,
            version=slot.release.version,
            artifact_digest=artifact.digest,
            variant=variant,
            files=files,
            certificate_digest=slot.certificate_digest,
            certificate=certificate,
            subject=manifests.subject_of(artifact, variant),
            damaged=_damaged(slot, certificate, files),
            shares_tokenizer=manifests.shares_file(artifact, variant, tokenizer.FILE),
        )

    def _certificate(self, slot: Slot, *, may_lack: bool) -> Certificate | None:
        if not slot.certificate_digest:
            return None
        try:
            return manifests.load_certificate(slot.certificate_digest, self.document)
        except (NotFound, ArtifactError, TooLarge, StorageError):  # damaged, or of a release that says more
            if not may_lack:
                raise
            return None

    def check_signed(self, artifact: manifests.Artifact, signature_digests: Iterable[str]) -> frozenset[str] | None:
        """Return manifest digests of the referrers that were signed; None where this device has no trust root.

        Raises:
            SignatureError: no key that this device trusts signed the artifact.
            NotFound, DigestMismatch: a signature is gone or was changed.
        """
        if self._trust is None:
            return None
        documents = [
            self.document(layer.digest)
            for digest in signature_digests
            for layer in manifests.decode_manifest(self.document(digest)).layers
            if layer.media_type == manifests.SIGNATURE
        ]
        return self._trust.check(artifact, documents)

    def discard_damaged(self, slot: Slot) -> None:
        """Delete the blobs of a slot that do not hash to their digests, so that the next fetch brings them again."""
        for digest in self._of_slot(slot):
            try:
                self.blobs.verify(digest)
            except NotFound:
                continue
            except (DigestMismatch, StorageError) as error:  # changed, or on a part of the disk that cannot be read
                log(_log, logging.WARNING, "damaged blob deleted", digest=digest, error=error.message)
                self.blobs.delete(digest)

    def collect(self, states: Iterable[ModelState], also: Iterable[Slot] = ()) -> int:
        """Delete every blob and partial download that no slot and no desired release needs; return bytes freed.

        Args:
            also: slots that are complete and not in a state yet.

        Must not run while something is being fetched: a manifest that is not there yet cannot protect its layers.
        """
        states = list(states)
        for state in states:
            if state.active is not None and not self._is_readable(state.active):
                log(_log, logging.WARNING, "nothing is collected: what the active version needs cannot be read",
                    model=state.model, version=state.active.release.version)  # fmt: skip
                return 0
        needed = {digest for state in states for digest in self._needed(state)}
        needed |= {digest for slot in also for digest in self._of_slot(slot)}
        freed = 0
        variant_files.discard(self._unpacked, frozenset(needed))
        self._documents.collect(needed)
        for digest in list(self.blobs.digests()):
            if digest not in needed:
                freed += self.blobs.size_bytes(digest)
                self.blobs.delete(digest)
        for digest in self.blobs.partials():
            if digest not in needed:
                self.blobs.discard_partial(digest)
        return freed

    def _is_readable(self, slot: Slot) -> bool:
        """Tell whether the documents are here that say which blobs a slot needs."""
        try:
            manifests.decode_index(self.document(slot.release.artifact_digest))
            manifests.decode_manifest(self.document(slot.variant_digest))
        except PenstockError:
            return False
        return True

    def _documents_of(self, slot: Slot) -> set[str]:
        """Return the digests of what a slot is found by and vouched for with, weights and golden vectors aside."""
        heavy = {layer.digest for layer in self._layers(slot.variant_digest) if layer.media_type in _HEAVY}
        return {digest for digest in self._of_slot(slot) - heavy if self.blobs.has(digest)}

    def _needed(self, state: ModelState) -> set[str]:
        slots = [slot for slot in (state.active, state.previous) if slot is not None]
        needed = {digest for slot in slots for digest in self._of_slot(slot)}
        if state.desired is not None:
            needed |= self._of_artifact(state.desired.artifact_digest, only=None)
            needed |= self._of_referrer(state.desired.certificate_digest)
        return needed

    def _of_slot(self, slot: Slot) -> set[str]:
        found = self._of_artifact(slot.release.artifact_digest, only=slot.variant_digest)
        for referrer in (slot.certificate_digest, *slot.signature_digests):
            found |= self._of_referrer(referrer)
        return found

    def _of_artifact(self, digest: str, *, only: str | None) -> set[str]:
        """Return the digests of an artifact, as far as its documents are here.

        Args:
            only: the variant whose weights are needed; None for all of them.
        """
        found = {digest}
        try:
            entries = manifests.decode_index(self.document(digest)).manifests
        except PenstockError:
            return found
        for entry in entries:
            found.add(entry.digest)
            is_wanted = only in (None, entry.digest)
            layers = self._layers(entry.digest)
            found |= {layer.digest for layer in layers if is_wanted or layer.media_type not in _HEAVY}
        return found

    def _of_referrer(self, digest: str) -> set[str]:
        return {digest, *(layer.digest for layer in self._layers(digest))} if digest else set()

    def _layers(self, manifest_digest: str) -> list[manifests.Descriptor]:
        try:
            return manifests.decode_manifest(self.document(manifest_digest)).layers
        except PenstockError:
            return []


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do disk work off the event loop. When cancelled, wait until the thread is done with the files that it holds."""
    return await to_its_end(asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs)))


async def to_its_end(work: asyncio.Future[T], on_cancel: Callable[[], object] = lambda: None) -> T:
    """Wait for what a thread does. When cancelled, call ``on_cancel``, and raise that when the thread is done."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen; what it was does not matter any more
        raise


def _damaged(slot: Slot, certificate: Certificate | None, files: VariantFiles) -> str:
    """Say what of a slot cannot be read, and what that means; "" when all of it can."""
    found = []
    if files.is_golden_damaged:
        found.append("golden vectors (not replayed at this start)")
    if slot.certificate_digest and certificate is None:
        found.append("certificate (every answer is escalated)")
    return f"damaged on this disk: {', '.join(found)}; fetched again when the registry answers" if found else ""


def _decode_state(path: Path) -> ModelState:
    with path.open("rb") as file:
        data = file.read(_MAX_STATE_BYTES + 1)
    if len(data) > _MAX_STATE_BYTES:
        raise ArtifactError(f"{path.name}: larger than {_MAX_STATE_BYTES} bytes")
    state = state_format.decode(data, f"state file {path}")
    if path.stem != state.model:
        raise ArtifactError(f"{path.name}: describes {state.model!r}")
    return state
