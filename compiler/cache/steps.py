"""Results of a compilation's steps, kept by content: the same step on the same inputs is done once.

Owns the directory of results and that an entry is whole or absent: a step works in a directory of its own, which is
renamed into place when it is done, and every entry lists its files with their digests, so that a damaged one is noticed
and made again. Compilations that run at the same time share the directory: what one is making the other waits for, and
what one uses the other neither evicts nor replaces. What a step depends on is the caller's to say, completely, in its
key.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compiler.cache.sharing import Users, is_free, locked
from penstock.artifact.blobs import digest_of, digest_of_file, disk_errors, write_atomically
from penstock.artifact.manifests import canonical_json
from penstock.process.directories import cache_directory

ENTRY_FILE = "step.json"
DEFAULT_MAX_BYTES = 20 * 1024**3
_SCRATCH = "making-"
_LEFT_S = 24 * 3600.0  # older scratch and locks are what a killed process left
_RECENT_S = 600.0
_LOOK_AGAIN_S = (
    60.0  # others write as well; looking at everything after each step took a quarter of a small compilation
)
"""An entry used this recently is never evicted: another compilation may be reading it."""


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a result."""

    digest: str
    size: int


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished step as its directory records it.

    Attributes:
        key: everything that the result depends on.
        facts: whatever the step returned, as plain JSON.
        files: of the result, by their paths in its directory.
    """

    schema: int = 1
    step: str
    key: dict[str, Any]
    facts: Any
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step's result.

    Attributes:
        id: digest of its key.
        directory: holds its files, to be read only.
        facts: whatever the step returned, as plain JSON.
        was_cached: whether it was found rather than made.
        note: why it was not found, where something was wrong with what was there.
    """

    id: str
    directory: Path
    facts: Any
    was_cached: bool
    note: str = ""

    @property
    def content(self) -> str:
        """Compute the digest of every file of the result: what the next step's key depends on."""
        entry = _read(self.directory)
        assert entry is not None, "the directory was just written or verified"
        return digest_of(canonical_json(entry.files))


Produce = Callable[[Path, Path], Any]
"""(out, work) -> facts. ``out`` is empty; ``work`` outlives an interruption of this very step."""

Waiting = Callable[[str], None]
"""Told, in words, what is waited for."""


def unheard(words: str) -> None:
    """Take words that nobody listens to; a :data:`Waiting`."""


class StepCache:
    """Results below ``root``, at most ``max_bytes`` of them; the least recently used go first."""

    def __init__(self, root: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, reuse: bool = True) -> None:
        """Name the directory; it is made on the first step.

        Args:
            reuse: False makes every step again (once per process), and keeps the new results.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._reuse = reuse
        self._made: dict[str, Path] = {}
        self._room_bytes, self._looked_at = 0, -math.inf  # below the limit, and when that was seen
        self._users = Users(root / "users")  # of what is used nothing is evicted: a later step may still read it

    def run(self, step: str, key: Mapping[str, Any], produce: Produce, *, waiting: Waiting = unheard) -> Step:
        """Return the result of a step: found, or made by ``produce`` and kept.

        Args:
            key: everything that the result depends on, as plain JSON.
            waiting: told that another process is making the same step, where that has to be waited for.

        Raises:
            StorageError: the disk is full or not writable; nothing half-written stays behind.
            Whatever ``produce`` raises; then nothing is kept but its ``work`` directory.
        """
        plain = msgspec.to_builtins(dict(key))
        identity = digest_of(canonical_json({"step": step, "key": plain}))
        directory = self._made.get(identity, self._root / "steps" / identity.removeprefix("sha256:")[:40])
        note = ""
        self._users.note(directory.name)
        if self._reuse or identity in self._made:
            found, note = self._look(directory)
            if found is not None:
                return Step(id=identity, directory=directory, facts=found.facts, was_cached=True)
        with self._making(directory.name, waiting) as has_waited:
            if has_waited:  # somebody made it since this compilation began
                found, _ = self._look(directory)
                if found is not None:
                    self._made[identity] = directory
                    return Step(id=identity, directory=directory, facts=found.facts, was_cached=True)
            facts, self._made[identity] = self._make(step, plain, directory, produce)
        self._make_room(_size_bytes(self._made[identity]))
        return Step(id=identity, directory=self._made[identity], facts=facts, was_cached=False, note=note)

    @contextmanager
    def _making(self, name: str, waiting: Waiting) -> Iterator[bool]:
        """Hold the right to make a step, and its work directory; yields whether it had to be waited for."""
        locks = self._root / "locks"
        with disk_errors(f"writing below {self._root}"):
            locks.mkdir(parents=True, exist_ok=True)
        with locked(locks / name, wait=lambda who: waiting(f"{who} is making it; waiting")) as has_waited:
            yield has_waited

    def _quiet(self, *, shared: bool) -> AbstractContextManager[bool]:
        """Hold off everybody who would look at entries or move them."""
        return locked(self._root / "lock", shared=shared)

    def _look(self, directory: Path) -> tuple[Entry | None, str]:
        if not directory.exists():
            return None, ""
        with self._quiet(shared=True):
            entry = _read(directory)
            problem = "its record cannot be read" if entry is None else _damage(entry, directory)
            if not problem:
                os.utime(directory / ENTRY_FILE)
                return entry, ""
        with self._quiet(shared=False), disk_errors(f"removing the damaged {directory}"):
            shutil.rmtree(directory, ignore_errors=True)  # another process may be at it as well
        return None, f"kept result was damaged ({problem}) and is made again"

    def _make(self, step: str, key: dict[str, Any], directory: Path, produce: Produce) -> tuple[Any, Path]:
        work = self._root / "work" / directory.name
        with disk_errors(f"writing below {self._root}"):
            for parent in (directory.parent, work):
                parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=self._root, prefix=_SCRATCH))
        self._users.note(scratch.name)
        try:
            with disk_errors(f"step {step}: writing below {self._root}"):
                facts = msgspec.to_builtins(produce(scratch, work))
                files = {
                    str(path.relative_to(scratch)): FileEntry(digest=digest_of_file(path), size=path.stat().st_size)
                    for path in sorted(scratch.rglob("*"))
                    if path.is_file()
                }
                entry = Entry(step=step, key=key, facts=facts, files=files)
                write_atomically(scratch / ENTRY_FILE, msgspec.json.encode(entry, order="sorted"))
                place = self._put(scratch, directory, entry)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        return facts, place

    def _put(self, made: Path, directory: Path, entry: Entry) -> Path:
        """Put a finished result in its place; return where it is.

        What another process reads stays as it is: an equal result is not replaced, and beside one that differs (what
        a clock measured does) this one gets a place of its own, which nobody finds again.
        """
        with self._quiet(shared=False):
            there = _read(directory) if directory.exists() else None
            is_whole = there is not None and not _damage(there, directory)
            if is_whole and there is not None and (there.files, there.facts) == (entry.files, entry.facts):
                return directory
            if is_whole and directory.name in self._users.of_others():
                directory = directory.with_name(f"{directory.name}.{made.name.removeprefix(_SCRATCH)}")
                self._users.note(directory.name)
            _replace(directory, made)
        return directory

    def _make_room(self, added_bytes: int) -> None:
        """Evict when what was added may have come above the limit, and now and then for what others added."""
        now = time.monotonic()
        self._room_bytes -= added_bytes
        if self._room_bytes < 0 or now - self._looked_at > _LOOK_AGAIN_S:
            self._room_bytes, self._looked_at = self._max_bytes - self._evict(), now

    def _evict(self) -> int:
        """Remove the least recently used entries above the limit, and scratch that a killed process left; return the
        bytes of all that stay.
        """
        now = time.time()
        with self._quiet(shared=False):
            in_use = self._users.in_use()
            for left in self._root.glob(f"{_SCRATCH}*"):
                if left.name not in in_use and now - _used_at(left) > _LEFT_S:
                    shutil.rmtree(left, ignore_errors=True)
            for lock in (self._root / "locks").iterdir():
                if now - _used_at(lock) > _LEFT_S and is_free(lock):
                    lock.unlink(missing_ok=True)
            entries = [(_used_at(path / ENTRY_FILE), path) for path in (self._root / "steps").iterdir()]
            kept = {path for _, path in entries if path.name in in_use}
            return evict(entries, self._max_bytes, kept=kept, used_before=now - _RECENT_S)


def evict(
    entries: list[tuple[float, Path]], max_bytes: int, *, kept: Collection[Path], used_before: float = math.inf
) -> int:
    """Remove the least recently used directories until the others have at most ``max_bytes``; return what they have.

    Args:
        entries: each with the time at which it was used last.
        kept: those that stay, however old.
        used_before: what was used since then stays, too.
    """
    total = sum(_size_bytes(path) for _, path in entries)
    for used_at, path in sorted(entries):
        if total <= max_bytes or used_at > used_before:
            break
        if path not in kept:
            total -= _size_bytes(path)
            shutil.rmtree(path, ignore_errors=True)
    return total


def default_root(environment: Mapping[str, str] | None = None) -> Path:
    """Return ``PENSTOCK_CACHE``, else ``XDG_CACHE_HOME/penstock``, else ``~/.cache/penstock``; ``compile`` below it."""
    environment = os.environ if environment is None else environment
    named = environment.get("PENSTOCK_CACHE")
    return (Path(named) if named else cache_directory(environment)) / "compile"


def _read(directory: Path) -> Entry | None:
    try:
        return msgspec.json.decode((directory / ENTRY_FILE).read_bytes(), type=Entry)
    except (OSError, msgspec.MsgspecError):
        return None


def _damage(entry: Entry, directory: Path) -> str:
    """Say what is wrong with an entry's files; "" if nothing."""
    for name, file in entry.files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != file.size:
            return f"{name} is missing or of another size"
        if digest_of_file(path) != file.digest:
            return f"{name} has another digest"
    return ""


def _replace(directory: Path, made: Path) -> None:
    """Put ``made`` in place of ``directory``, which another compilation may have made meanwhile, or an earlier one.

    What was there is moved away first and removed afterwards: no reader ever finds half of a directory.
    """
    if directory.exists():
        old = made.with_name(f"{made.name}-old")
        os.rename(directory, old)
        os.rename(made, directory)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(made, directory)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size_bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # another process tidies up as well
            continue
    return total
