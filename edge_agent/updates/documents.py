"""The documents of artifacts on a device, each kept twice: indexes, manifests, specs, certificates, signatures.

The way to the weights of a slot leads through its documents, so one flipped bit in one of them would keep weights that
verify from answering while the device is offline. They are small; a second copy costs little. Wherever bytes are read
from, they are verified against their digest (invariant 3). Which documents are needed is known to
``edge_agent.updates.store``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from penstock.artifact.blobs import BlobStore, check_digest, digest_of, write_atomically
from penstock.errors import DigestMismatch, NotFound, PenstockError, StorageError, TooLarge
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class Documents:
    """Reads documents from a blob store, or from the copies in a directory of their own."""

    def __init__(self, blobs: BlobStore, directory: Path, *, limit_bytes: int) -> None:
        """
        Args:
            limit_bytes: of one document; a larger one is refused.
        """
        self._blobs, self._directory, self._limit_bytes = blobs, directory, limit_bytes
        with contextlib.suppress(OSError):  # read-only, and of a release that made no copies
            directory.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"Documents({str(self._directory)!r})"

    def read(self, digest: str) -> bytes:
        """Read a document and verify it; where the blob is damaged and its copy is not, the copy mends it.

        Raises:
            NotFound: neither is there. DigestMismatch: the blob was changed. TooLarge: it is over the limit.
            StorageError: the disk cannot read it.
        """
        try:
            return self._blobs.read(digest, limit_bytes=self._limit_bytes)
        except (NotFound, DigestMismatch, TooLarge, StorageError) as error:
            data = self._copy(digest)
            if data is None:
                raise
            log(_log, logging.WARNING, "document damaged, its copy is used", digest=digest, error=error.message)
            self._write(self._blobs.path(digest), data)
            return data

    def keep(self, digests: Iterable[str]) -> None:
        """Make a copy of each document that has none, or a damaged one. A disk that takes no writes is no error."""
        for digest in digests:
            if self._copy(digest) is None:
                with contextlib.suppress(PenstockError):  # it is read again before it is used
                    self._write(self._path(digest), self._blobs.read(digest, limit_bytes=self._limit_bytes))

    def collect(self, needed: Collection[str]) -> None:
        """Delete the copies of all documents but those that are needed."""
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            if f"sha256:{path.name}" not in needed:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / check_digest(digest).removeprefix("sha256:")

    def _copy(self, digest: str) -> bytes | None:
        try:
            with self._path(digest).open("rb") as file:
                data = file.read(self._limit_bytes + 1)
        except OSError:
            return None
        return data if digest_of(data) == digest else None

    def _write(self, path: Path, data: bytes) -> None:
        with contextlib.suppress(StorageError):  # read-only, full or worn out: what was read is used all the same
            write_atomically(path, data)
