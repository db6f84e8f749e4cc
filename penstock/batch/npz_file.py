"""Reads npz for batches: an array for each column or input, read row by row as the archive is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from penstock.batch.tables import Chunk
from penstock.errors import InvalidInput
from penstock.wire.tensors import Array


class NpzSource:
    """An archive of arrays that are equally long."""

    is_text = False

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(), zipfile.ZipFile(path) as archive:
            self._members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            lengths = {}
            for name, member in self._members.items():
                with archive.open(member) as file:
                    lengths[name] = _header(file)[0][:1]
        if not lengths or len(set(lengths.values())) > 1 or () in lengths.values():
            shown = ", ".join(f"{name!r} {list(length)}" for name, length in lengths.items()) or "none"
            raise InvalidInput(f"{path}: expected arrays with equally many rows; there are {shown}", field="input")
        self.names: Sequence[str] = tuple(lengths)
        self.rows: int = next(iter(lengths.values()))[0]

    def chunks(self, size: int) -> Iterator[Chunk]:
        with self._errors(), ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            files = {name: stack.enter_context(archive.open(member)) for name, member in self._members.items()}
            headers = {name: _header(file) for name, file in files.items()}
            for start in range(0, self.rows, size):
                rows = min(size, self.rows - start)
                columns = {name: _read(file, rows, *headers[name]) for name, file in files.items()}
                yield Chunk(start=start, rows=rows, columns=columns)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InvalidInput(f"{self._path}: not a readable npz file: {error}", field="input") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], Any]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if is_by_columns and len(shape) > 1:
        raise ValueError("an array is in Fortran order; save numpy.ascontiguousarray of it")
    return shape, dtype


def _read(file: IO[bytes], rows: int, shape: tuple[int, ...], dtype: Any) -> Array:
    wanted = rows * prod(shape[1:]) * dtype.itemsize
    data = file.read(wanted)
    if len(data) != wanted:
        raise EOFError("an array ends before its last row")
    array: Array = np.frombuffer(data, dtype).reshape(rows, *shape[1:])
    return array.astype(object) if dtype.kind in "SU" else array
