"""A teacher's answers on disk, so that each row is asked once: kept by content, in chunks, whole or absent.

Owns the directory of answers. An entry is named by the teacher's fingerprint and the rows' digest; a chunk carries its
own digest and is renamed into place when it is complete, so that an interruption costs one chunk and damage is noticed
and repaired. The least recently used entries go first when there are too many bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.cache.steps import evict
from compiler.distill.teacher import Teacher
from compiler.progress import Progress, unwatched
from penstock.artifact.blobs import digest_of, disk_errors, write_atomically
from penstock.artifact.manifests import canonical_json
from penstock.errors import CompileError, DeadlineExceeded, InvalidInput, PenstockError, Unavailable
from penstock.policy import confidence
from penstock.wire import tensors
from penstock.wire.tensors import Array

DEFAULT_MAX_BYTES = 4 * 1024**3
PROBED_ROWS = 8
PROBE_TOLERANCE = 1e-3
"""A model whose name stayed and whose answers moved by more than this, relative and absolute, is another model."""
_DIGEST_BYTES = 32
_HASHED_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A teacher's answers to some rows.

    Attributes:
        file: a .npy of float32 [rows, classes].
        classes: of the teacher.
        digest: of the answers.
        asked: rows that the teacher was asked for now; the others were kept from before.
        notes: what a person should know: damage that was repaired, a teacher that changed or could not be reached.
    """

    file: Path
    classes: int
    digest: str
    asked: int
    notes: tuple[str, ...]


class AnswerCache:
    """Answers below ``root``, at most ``max_bytes`` of them besides those in use."""

    def __init__(self, root: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def answers(self, teacher: Teacher, inputs: Mapping[str, Array], out: Path, report: Progress) -> Answered:
        """Write the teacher's answers to all rows to ``out``, asking only for those that are not kept.

        Raises:
            CompileError: answers that are not finite floats [rows, classes]. StorageError: the disk is full.
            Whatever the teacher raises; what it answered before that is kept.
        """
        key = digest_of(canonical_json([teacher.fingerprint, teacher.chunk_rows, inputs_digest(inputs)]))
        entry = self._root / key.removeprefix("sha256:")[:40]
        with disk_errors(f"creating {entry}"):
            entry.mkdir(parents=True, exist_ok=True)
        chunks = _Chunks(entry, inputs, teacher)
        self._check_same(teacher, chunks)
        self._ask(chunks, report)
        os.utime(entry)
        evict([(path.stat().st_mtime, path) for path in self._root.iterdir()], self._max_bytes, kept={entry})
        return chunks.assemble(out)

    def _check_same(self, teacher: Teacher, chunks: _Chunks) -> None:
        """Drop what is kept of a teacher that has changed behind its name."""
        kept = chunks.read(0)
        if kept is None or teacher.is_pinned:
            return
        few = {name: array[:PROBED_ROWS] for name, array in chunks.inputs.items()}
        try:
            now = _checked(teacher.answer(few, unwatched), _rows(few))
        except (Unavailable, DeadlineExceeded):
            if not chunks.all_there():
                raise
            chunks.notes.append("the teacher cannot be reached; its kept answers are used as they are")
            return
        before = kept[: len(now)]
        if now.shape != before.shape or not np.allclose(now, before, rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
            chunks.notes.append("the teacher answers otherwise than before under the same name; it is asked again")
            chunks.clear()

    def _ask(self, chunks: _Chunks, report: Progress) -> None:
        for index in range(chunks.count):
            if chunks.read(index) is not None:
                continue
            start, stop = chunks.span(index)

            def within(share: float, note: str, start: int = start, stop: int = stop) -> None:
                report((start + share * (stop - start)) / chunks.rows, note)

            try:
                chunks.put(index, within)
            except (Unavailable, DeadlineExceeded) as error:
                raise _went_away(error, start, chunks.rows) from error


class _Chunks:
    """The chunks of one entry."""

    def __init__(self, directory: Path, inputs: Mapping[str, Array], teacher: Teacher) -> None:
        self.inputs = inputs
        self.rows = _rows(inputs)
        self.count = -(-self.rows // teacher.chunk_rows)
        self.notes: list[str] = []
        self.asked = 0
        self._directory, self._teacher = directory, teacher

    def span(self, index: int) -> tuple[int, int]:
        start = index * self._teacher.chunk_rows
        return start, min(start + self._teacher.chunk_rows, self.rows)

    def read(self, index: int) -> NDArray[np.float32] | None:
        """Read a chunk; None when it is not there. A damaged one is removed."""
        path = self._path(index)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        start, stop = self.span(index)
        try:
            if _digest(index, data[_DIGEST_BYTES:]) != data[:_DIGEST_BYTES]:
                raise CompileError("another digest")
            return _checked(tensors.unpack(data[_DIGEST_BYTES:])["answers"], stop - start)
        except (PenstockError, KeyError):
            self.notes.append(f"kept answers to rows {start} to {stop - 1} were damaged; they are asked for again")
            path.unlink(missing_ok=True)
            return None

    def put(self, index: int, report: Progress) -> None:
        start, stop = self.span(index)
        asked = {name: array[start:stop] for name, array in self.inputs.items()}
        answers = _checked(self._teacher.answer(asked, report), stop - start)
        data = tensors.pack({"answers": answers})
        write_atomically(self._path(index), _digest(index, data) + data)
        self.asked += stop - start

    def all_there(self) -> bool:
        return all(self.read(index) is not None for index in range(self.count))

    def clear(self) -> None:
        for index in range(self.count):
            self._path(index).unlink(missing_ok=True)

    def assemble(self, out: Path) -> Answered:
        """Write every chunk into one memory-mapped file; one chunk at a time is in memory."""
        hasher = hashlib.sha256()
        target: NDArray[np.float32] | None = None
        for index in range(self.count):
            start, stop = self.span(index)
            part = self.read(index)
            if part is None or (target is not None and part.shape[1] != target.shape[1]):
                raise CompileError("the teacher's answers changed their number of classes, or were removed meanwhile")
            with disk_errors(f"writing {out}"):
                if target is None:
                    shape = (self.rows, part.shape[1])
                    target = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
                target[start:stop] = part
            hasher.update(part.tobytes())
        assert target is not None, "there is at least one row"
        target.flush()  # type: ignore[attr-defined]  # a memmap
        return Answered(
            file=out,
            classes=target.shape[1],
            digest="sha256:" + hasher.hexdigest(),
            asked=self.asked,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _path(self, index: int) -> Path:
        return self._directory / f"chunk-{index:06d}"


def inputs_digest(inputs: Mapping[str, Array]) -> str:
    """Return ``sha256:<hex>`` of named arrays: names, dtypes, shapes and values."""
    hasher = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        hasher.update(canonical_json([name, str(array.dtype), array.shape]))
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, len(flat), _HASHED_BYTES):
            hasher.update(flat[start : start + _HASHED_BYTES].data)
    return "sha256:" + hasher.hexdigest()


def _digest(index: int, data: bytes) -> bytes:
    """Return the digest of a chunk and its place: whole chunks in each other's places are damage too."""
    return hashlib.sha256(index.to_bytes(8, "little") + data).digest()


def _checked(answers: Array, rows: int) -> NDArray[np.float32]:
    """Check that answers are those of a classifier.

    Raises:
        CompileError: they are no answers of a classifier.
    """
    if answers.ndim != 2 or len(answers) != rows or answers.shape[1] < 2 or answers.dtype.kind != "f":
        raise CompileError(
            f"the teacher answers {rows} rows with {answers.dtype} {list(answers.shape)}, expected floats [{rows}, "
            "classes] with two classes or more"
        )
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(answers, dtype=np.float32)
    bad = np.flatnonzero(~confidence.finite_rows(plain))
    if len(bad):
        raise CompileError(
            f"the teacher answers {len(bad)} of {rows} rows with NaN or infinite values, first row {bad[0]}; a student "
            "cannot learn from those"
        )
    return plain


def _went_away(error: PenstockError, done: int, rows: int) -> PenstockError:
    message = (
        f"{error.message.rstrip('.')}. {done} of {rows} rows are answered and kept: run the same again to continue"
    )
    return type(error)(message, retry_after_s=error.retry_after_s)


def _rows(inputs: Mapping[str, Array]) -> int:
    rows = len(next(iter(inputs.values()))) if inputs else 0
    if rows == 0:
        raise InvalidInput("distill: no rows to ask the teacher for", field="distill.split")
    return rows
