"""A content-addressed blob store on one file system, laid out as ``blobs/sha256/<hex>`` (OCI image layout).

Owns atomicity: a blob is visible under its digest only when all of its bytes are on disk and hash to it.
Partial downloads live under ``partial/`` and can be resumed; they are never read as blobs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from penstock.errors import ArtifactError, DigestMismatch, NotFound, StorageError, TooLarge

# the OCI distribution specification asks registries to accept manifests this large
MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
PRIVATE, SHARED = 0o600, 0o666  # modes of new files: for one user alone; for all, less what the umask takes away
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024
_BLOCK_BYTES = 4096
_TEMPORARY = ".tmp-"


def digest_of(data: bytes) -> str:
    """Return ``sha256:<hex>`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file, read in bounded chunks."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(digest: str) -> str:
    """Return ``digest`` if it is a well-formed sha256 digest.

    Raises:
        ArtifactError: it is not; nothing with a path separator ever gets past here.
    """
    if not _DIGEST.fullmatch(digest):
        raise ArtifactError(f"{digest[:80]!r} is not a digest; expected 'sha256:' and 64 hex digits")
    return digest


class BlobStore:
    """Blobs by digest under ``root/blobs/sha256``. Safe for several writers of the same digest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._partial = root / "partial"
        with disk_errors(f"creating {root}"):
            self._blobs.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"BlobStore({str(self.root)!r})"

    def path(self, digest: str) -> Path:
        """Return where the blob is, or would be."""
        return self._blobs / check_digest(digest).removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size_bytes(self, digest: str) -> int:
        """Return the size of a stored blob.

        Raises:
            NotFound: no such blob.
        """
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _absent(digest, self.root) from None

    def read(self, digest: str, *, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Read a small blob, verified against its digest on every read.

        Raises:
            NotFound: no such blob.
            TooLarge: more than ``limit_bytes``.
            DigestMismatch: the file was changed or truncated.
        """
        size = self.size_bytes(digest)
        if size > limit_bytes:
            raise TooLarge(
                f"blob {digest} has {size} bytes, more than the {limit_bytes} allowed here", limit_bytes=limit_bytes
            )
        with disk_errors(f"reading {digest}"):
            data = self.path(digest).read_bytes()
        if digest_of(data) != digest:
            raise _mismatch(digest, digest_of(data))
        return data

    def verify(self, digest: str) -> Path:
        """Hash the whole blob and return its path.

        Raises:
            NotFound: no such blob.
            DigestMismatch: the file was changed or truncated.
        """
        self.size_bytes(digest)
        with disk_errors(f"reading {digest}"):
            found = digest_of_file(self.path(digest))
        if found != digest:
            raise _mismatch(digest, found)
        return self.path(digest)

    def put(self, data: bytes) -> str:
        """Store bytes durably; return their digest.

        Raises:
            StorageError: the disk is full or not writable.
        """
        digest = digest_of(data)
        if not self.has(digest):
            write_atomically(self.path(digest), data, mode=SHARED)
        return digest

    def put_file(self, source: Path) -> str:
        """Store a copy of a file durably; return its digest.

        Raises:
            StorageError: the disk is full or not writable.
        """
        hasher = hashlib.sha256()
        doing = f"copying {source} into {self.root}"
        with disk_errors(doing), _temporary(self._blobs, SHARED) as target, source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
                target.write(chunk)
            digest = "sha256:" + hasher.hexdigest()
            _publish(target, self.path(digest))
        return digest

    def writer(self, digest: str, *, limit_bytes: int) -> BlobWriter:
        """Continue or begin a verified download of ``digest``; see :class:`BlobWriter`."""
        with disk_errors(f"creating {self._partial}"):
            self._partial.mkdir(parents=True, exist_ok=True)
        return BlobWriter(
            self._partial / check_digest(digest).removeprefix("sha256:"), self.path(digest), digest, limit_bytes
        )

    def delete(self, digest: str) -> None:
        """Remove a blob; absent is fine."""
        self.path(digest).unlink(missing_ok=True)

    def touch(self, digest: str, at: float, *, every_s: float) -> bool:
        """Say whether a blob is here, and mark it as wanted ``at`` a time; not again within ``every_s``.

        Whoever finds it will not send it: it must not be removed as something that nobody wanted for long.
        """
        path = self.path(digest)
        try:
            if at - path.stat().st_mtime > every_s:
                os.utime(path, (at, at))
        except FileNotFoundError:
            return False
        except OSError:  # not ours to write: nobody removes it either
            return True
        return True

    def remove_untouched(self, digest: str, *, since: float) -> bool:
        """Remove a blob, unless it was written or touched after ``since``; say whether it is gone.

        It is looked at where nobody finds it any more: what is touched while this goes on was touched before, and is
        brought back; whoever looks for it in between does not find it, and sends it again.

        Raises:
            StorageError: it cannot be removed.
        """
        aside = self._blobs / f"{_TEMPORARY}removed-{digest.removeprefix('sha256:')}"
        with disk_errors(f"removing {digest}"):
            try:
                os.replace(self.path(digest), aside)
            except FileNotFoundError:
                return True
            if aside.stat().st_mtime > since:
                os.replace(aside, self.path(digest))
                return False
            aside.unlink()
        return True

    def temporary_files(self) -> tuple[Path, ...]:
        """List files that are being written, or were when a process was killed."""
        return tuple(path for path in self._blobs.iterdir() if path.name.startswith(_TEMPORARY))

    def digests(self) -> Iterator[str]:
        """Return all stored digests, in no order."""
        for path in self._blobs.iterdir():
            if len(path.name) == 64:
                yield f"sha256:{path.name}"

    def partials(self) -> tuple[str, ...]:
        """Return digests of unfinished downloads."""
        names = (path.name for path in self._partial.iterdir()) if self._partial.is_dir() else ()
        return tuple(f"sha256:{name}" for name in names if len(name) == 64)

    def partial_bytes(self, digest: str) -> int:
        """Return how much of an unfinished download is on disk."""
        path = self._partial / check_digest(digest).removeprefix("sha256:")
        return path.stat().st_size if path.exists() else 0

    def discard_partial(self, digest: str) -> None:
        """Drop an unfinished download; absent is fine."""
        (self._partial / check_digest(digest).removeprefix("sha256:")).unlink(missing_ok=True)


class BlobWriter:
    """A resumable write of one blob. ``offset`` bytes are already on disk; ``commit`` verifies and publishes.

    Closing without commit keeps the partial file, so that a later writer continues from ``offset``.
    """

    def __init__(self, partial: Path, target: Path, digest: str, limit_bytes: int) -> None:
        self._partial, self._target, self._digest, self._limit_bytes = partial, target, digest, limit_bytes
        self._hasher = hashlib.sha256()
        self.offset = 0
        with disk_errors(f"opening {partial}"):
            if partial.exists():
                self._rehash()
            self._file = partial.open("ab")

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, chunk: bytes) -> None:
        """Append bytes to the partial.

        Raises:
            TooLarge: more bytes than the blob may have; the partial is dropped.
            StorageError: the disk is full; what is already written stays for a resume.
        """
        if self.offset + len(chunk) > self._limit_bytes:
            self.discard()
            raise TooLarge(
                f"blob {self._digest} sends more than {self._limit_bytes} bytes", limit_bytes=self._limit_bytes
            )
        with disk_errors(f"writing {self._partial}"):
            self._file.write(chunk)
            self._file.flush()
        self._hasher.update(chunk)
        self.offset += len(chunk)

    def commit(self) -> Path:
        """Verify the digest, fsync, and publish under it.

        Raises:
            DigestMismatch: the bytes are not the ones named; the partial is dropped, so a retry starts clean.
        """
        found = "sha256:" + self._hasher.hexdigest()
        if found != self._digest:
            self.discard()
            raise _mismatch(self._digest, found)
        with disk_errors(f"publishing {self._digest}"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._partial, self._target)
            fsync_directory(self._target.parent)
        return self._target

    def restart(self) -> None:
        """Forget what is on disk and begin at byte 0."""
        with disk_errors(f"restarting {self._partial}"):
            self._file.truncate(0)
        self._hasher = hashlib.sha256()
        self.offset = 0

    def discard(self) -> None:
        """Drop the partial."""
        self.close()
        self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        # closing flushes; on a full disk that fails again, and the bytes on disk are all a resume needs
        with disk_errors(f"closing {self._partial}"):
            self._file.close()

    def _rehash(self) -> None:
        with self._partial.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._hasher.update(chunk)
                self.offset += len(chunk)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the operating system says of a disk into :class:`StorageError` with advice.

    Raises:
        StorageError: on any OSError in the body.
    """
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full; free some space and try again",
            errno.EDQUOT: "the disk quota is used up; free some space and try again",
            errno.EACCES: "permission denied; make the directory writable for this user, or choose another",
            errno.EROFS: "the file system is read-only; choose another directory",
            errno.ENOTDIR: "a part of the path is a file, not a directory",
            errno.EEXIST: "a file is where a directory should be",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(f"{doing}: {advice}") from error


def write_atomically(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Write, fsync, rename, fsync the directory: readers see the old file or the new one, also after a power cut.

    Raises:
        StorageError: the disk is full or not writable; the old file is untouched.
    """
    with disk_errors(f"writing {path}"), _temporary(path.parent, mode) as file:
        file.write(data)
        _publish(file, path)


@contextmanager
def _temporary(directory: Path, mode: int) -> Iterator[BinaryIO]:
    """Make a file of a name that nobody else has, and remove it on an error. ``tempfile`` knows no mode but 0600."""
    path = directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _publish(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    fsync_directory(path.parent)


def as_the_umask_says(path: Path) -> None:
    """Give what was made in a scratch place, for nobody else to read, the modes that a user's umask gives.

    Raises:
        StorageError: the disk said no.
    """
    with disk_errors(f"setting modes of {path}"):
        probe = path.parent / f".{path.name}-{os.getpid()}"
        probe.mkdir()  # asks the kernel: reading the mask means setting it, for all threads
        mask = probe.stat().st_mode & 0o777
        probe.rmdir()
        for one in (path, *path.rglob("*")):
            if not one.is_symlink():
                wanted = 0o777 if one.is_dir() else 0o666 | (one.stat().st_mode & 0o111)
                one.chmod(wanted & mask)


def write_over(path: Path, data: bytes) -> None:
    """Write over the copy of a document, padded with spaces to whole blocks. Cut short, it is neither old nor new.

    For what is kept twice and has a checksum: while its blocks stay, the file system writes no journal, which is ten
    times the bytes of a small document.

    Raises:
        StorageError: the disk is full or not writable.
    """
    padded = data + b" " * (-len(data) % _BLOCK_BYTES)
    if not path.exists():
        write_atomically(path, padded)
        return
    with disk_errors(f"writing {path}"), path.open("r+b") as file:
        file.write(padded)
        file.truncate()
        file.flush()
        getattr(os, "fdatasync", os.fsync)(file.fileno())  # macOS has none


def fsync_directory(path: Path) -> None:
    """Make a rename in ``path`` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _absent(digest: str, root: Path) -> NotFound:
    return NotFound(f"no blob {digest} in {root}")


def _mismatch(expected: str, found: str) -> DigestMismatch:
    return DigestMismatch(f"bytes hash to {found}, expected {expected}: corrupt, truncated or tampered with")
