"""What a run keeps beside its output: answered parts while it works, and a note of what it made when it is done.

A part is written as a whole or not at all, with a checksum: one that is damaged is answered again. ``run.json`` says
which run the parts are of. The output takes its name in one step when every part is there; the note beside it lets the
same command, started again after a kill at that very moment, see that nothing is left to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from penstock.artifact.blobs import PRIVATE, SHARED, digest_of_file, disk_errors, fsync_directory, write_atomically
from penstock.errors import Conflict

_SCHEMA = 1
_SUM_BYTES = 32

Cells = Mapping[str, list[Any]]
"""The cells of a part by column, one for each row."""


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides about the rows of an output: parts of another run are never mixed in.

    Attributes:
        schema_version: of what is kept on disk.
        input_digest: of the file that is read.
        rows: of it.
        model: as it was asked for.
        version: the digest of the artifact, or what the server calls its version.
        keep: columns that are copied.
        part_rows: rows of a part; only the last one has fewer.
    """

    schema_version: int = _SCHEMA
    input_digest: str
    rows: int
    model: str
    version: str
    keep: tuple[str, ...] = ()
    part_rows: int

    def is_same(self, other: Run) -> bool:
        """Say whether parts of the one are parts of the other; how they are cut does not matter."""
        return msgspec.structs.replace(self, part_rows=other.part_rows) == other

    def difference(self, other: Run) -> str:
        """Say in words what is not the same."""
        words = {"input_digest": "input", "rows": "input", "keep": "--keep", "schema_version": "form on disk"}
        differing = (name for name in self.__struct_fields__ if getattr(self, name) != getattr(other, name))
        return next((f"another {words.get(name, name)}" for name in differing if name != "part_rows"), "nothing else")


class Made(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The note beside an output: what it was made by.

    Attributes:
        run: what decided about its rows.
        refused: how many rows were refused.
        output_digest: of the file.
    """

    run: Run
    refused: int
    output_digest: str


class Parts:
    """The parts of the run that makes one output. A lock keeps other processes out while they are in use."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.root = output.with_name(f"{output.name}.parts")
        self._note = output.with_name(f"{output.name}.run.json")
        self._run = self.root / "run.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out.

        Raises:
            Conflict: one is in.
        """
        with disk_errors(f"writing beside {self.output}"):
            lock = self.output.with_name(f".{self.output.name}.lock").open("ab")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_ino != os.stat(lock.name).st_ino:  # removed by who had it, and made again
                    raise BlockingIOError
            except OSError:
                raise Conflict(f"{self.output}: another process makes it; wait for it, or stop it") from None
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lock.name)

    def begun(self) -> Run | None:
        """Return the run that parts are there of."""
        found: Run | None = _read(self._run, Run)
        return found

    def made(self) -> Made | None:
        """Return the note on the output that is there; None where it is of another file, or there is none."""
        note: Made | None = _read(self._note, Made)
        if note is None or not self.output.is_file() or digest_of_file(self.output) != note.output_digest:
            return None
        return note

    def begin(self, run: Run) -> None:
        """Keep the parts of a run from now on; of none before.

        Raises:
            StorageError: the disk said no.
        """
        self.discard()
        with disk_errors(f"making {self.root}"):
            self.root.mkdir(parents=True)
            self._note.unlink(missing_ok=True)  # what is replaced is no reason to stop
        write_atomically(self._run, msgspec.json.format(msgspec.json.encode(run)))

    def read(self, index: int) -> Cells | None:
        """Return a part; None where it is not there as it was written."""
        try:
            data = self._part(index).read_bytes()
        except FileNotFoundError:
            return None
        found = data[_SUM_BYTES:]
        if hashlib.sha256(found).digest() != data[:_SUM_BYTES]:
            return None
        cells: Cells = msgspec.msgpack.decode(found)
        return cells

    def write(self, index: int, cells: Cells) -> None:
        """Keep a part.

        Raises:
            StorageError: the disk said no.
        """
        data = msgspec.msgpack.encode(cells)
        write_atomically(self._part(index), hashlib.sha256(data).digest() + data, mode=PRIVATE)

    @contextmanager
    def publishing(self, run: Run) -> Iterator[tuple[Path, dict[str, int]]]:
        """Give a file to write the output to, and a place for the number of refused rows; then let it take its name.

        Raises:
            StorageError: the disk said no.
        """
        partial = self.root / f"output{self.output.suffix}"
        counted = {"refused": 0}
        with disk_errors(f"writing {self.output}"):
            yield partial, counted
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            made = Made(run=run, refused=counted["refused"], output_digest=digest_of_file(partial))
            note = self.root / "made.json"  # written here, so that a kill leaves no scrap beside the output
            write_atomically(note, msgspec.json.format(msgspec.json.encode(made)), mode=SHARED)
            os.replace(partial, self.output)
            os.replace(note, self._note)
            fsync_directory(self.output.parent)
        self.discard()

    def discard(self) -> None:
        """Remove what is kept; the name of the run last, so that a kill leaves nothing that looks like another's."""
        if not self.root.exists():
            return
        with disk_errors(f"removing {self.root}"):
            for path in self.root.iterdir():
                if path != self._run:
                    path.unlink()
            shutil.rmtree(self.root)

    def _part(self, index: int) -> Path:
        return self.root / f"{index:08d}.part"


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.MsgspecError as error:
        raise Conflict(
            f"{path}: not what this Penstock writes ({error}); remove it, or choose another output"
        ) from None
