"""What compilations that share a directory owe each other: a file lock, and a note of what each of them is using.

Owns that a note lasts as long as its process: it is held by a lock that the system takes back from a process that was
killed. Locks are of the kind that a process need not answer for (flock), so nothing here ever needs to be repaired.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.artifact.blobs import disk_errors

_MAX_NOTE_BYTES = 16 * 1024**2


@contextmanager
def locked(path: Path, *, shared: bool = False, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold the lock of a file (or of a directory), which is made where it is missing.

    Args:
        shared: together with others that share it.
        wait: told which process holds the lock, where it has to be waited for; None says nothing.

    Yields:
        whether it had to be waited for.

    Raises:
        StorageError: the file cannot be made.
    """
    how, waited = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, False
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    while True:
        with disk_errors(f"locking {path}"):
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            with disk_errors(f"locking {path}"):
                waited = not _taken(handle, how, wait) or waited
            if not _is_still(path, handle):
                continue  # somebody tidied up while we waited: it is no lock any more
            if flags & os.O_CREAT and not shared:
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
            yield waited
            return
        finally:
            os.close(handle)


def is_free(path: Path) -> bool:
    """Say whether nobody holds the lock of a file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


class Users:
    """Notes which entries of a directory this process uses, and reads the notes of others."""

    def __init__(self, directory: Path) -> None:
        """Name the directory of the notes; it is made with the first note."""
        self._directory = directory
        self._own: set[str] = set()
        self._handle = -1
        self._path: Path | None = None

    def note(self, name: str) -> None:
        """Note that an entry is in use, until this object or the process ends.

        Raises:
            StorageError: the note cannot be written.
        """
        if name in self._own:
            return
        with disk_errors(f"writing below {self._directory}"):
            if self._path is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._handle, made = tempfile.mkstemp(dir=self._directory)
                self._path = Path(made)
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a new file is nobody's
                weakref.finalize(self, _forget, self._handle, made, os.getpid())
            os.write(self._handle, f"{name}\n".encode())
        self._own.add(name)

    def in_use(self) -> frozenset[str]:
        """Return every entry that a living process uses, this one among them; notes of dead ones are removed."""
        return self.of_others() | self._own

    def of_others(self) -> frozenset[str]:
        """Return every entry that another living process uses, or another cache in this one."""
        found: set[str] = set()
        for path in self._directory.glob("*"):
            if path == self._path:
                continue
            if is_free(path):
                path.unlink(missing_ok=True)
                continue
            try:
                with path.open("rb") as file:
                    found |= set(file.read(_MAX_NOTE_BYTES).decode(errors="replace").split())
            except OSError:
                continue  # it ended meanwhile
        return frozenset(found)


def _forget(handle: int, path: str, pid: int) -> None:
    if pid == os.getpid():  # a child of a fork has the handle too, and the note is not its own
        Path(path).unlink(missing_ok=True)
    os.close(handle)


def _taken(handle: int, how: int, wait: Callable[[str], None] | None) -> bool:
    """Take a lock, waiting where that is needed; return whether it could be had at once."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if wait is not None:
            wait(os.pread(handle, 40, 0).decode(errors="replace").strip() or "another process")
        fcntl.flock(handle, how)
        return False


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False
