"""Reads and writes csv for batches: the first line names the columns, a list is JSON in its cell."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from penstock.batch.tables import Chunk, Column
from penstock.errors import InvalidInput


class CsvSource:
    """A csv file in UTF-8. Cells are text; what they mean is decided by the model's datatypes."""

    is_text = True

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reader() as lines:
            self.names: Sequence[str] = tuple(next(lines, ()))
            self.rows = sum(1 for _ in self._rows(lines))
        if not self.names:
            raise InvalidInput(f"{path}: it is empty; expected a first line with the names of columns", field="input")

    def chunks(self, size: int) -> Iterator[Chunk]:
        start = 0
        with self._reader() as lines:
            next(lines, None)
            rows = self._rows(lines)
            while part := list(islice(rows, size)):
                columns = {name: np.array([cells[at] for cells in part], object) for at, name in enumerate(self.names)}
                yield Chunk(start=start, rows=len(part), columns=columns)
                start += len(part)

    def _rows(self, lines: Iterator[list[str]]) -> Iterator[list[str]]:
        row = -1
        for cells in lines:
            if not cells:  # an empty line is no row
                continue
            row += 1
            if len(cells) != len(self.names):
                raise InvalidInput(
                    f"{self._path}: row {row} has {len(cells)} cells, expected {len(self.names)}", field="input"
                )
            yield cells

    @contextmanager
    def _reader(self) -> Iterator[Iterator[list[str]]]:
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                yield csv.reader(file)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InvalidInput(f"{self._path}: not a readable csv file: {error}", field="input") from error


class CsvSink:
    """A csv file that is written row by row; a missing value is an empty cell."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def __enter__(self) -> CsvSink:
        self._writer.writerow([column.name for column in self._columns])
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        cells = [[_cell(value) for value in columns[column.name]] for column in self._columns]
        self._writer.writerows(zip(*cells, strict=True))


def _cell(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, list) else value
