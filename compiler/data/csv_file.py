"""Columns of a csv file, typed by what they are for; a cell that is not what its column needs is named by line and
column.

Python's own csv module reads: no library gives both strict cells and their lines. Numbers are converted a few thousand
rows at a time, so that the text of a large file is never all in memory.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compiler.data.parts import bad_source, too_large
from compiler.recipe.data_section import LimitsSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import Array

Use = Literal["float", "integer", "flag", "text", "word", "label"]
"""What a column is read as; a label is a whole number, a number, or a word, whichever fits all of its cells. A text may
be empty, a word not: in csv an empty cell looks like a missing value."""

_CHUNK_ROWS = 4096
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvFile:
    """A csv file with a header line, UTF-8 with or without a byte order mark."""

    path: Path
    delimiter: str
    limits: LimitsSection

    def names(self) -> list[str]:
        """Read the column names, in the order of the file.

        Raises:
            InvalidInput: no such file, not text, no header, or a name that is there twice.
        """
        with self._rows() as rows:
            return self._header(rows)

    def columns(self, uses: Mapping[str, Use], progress: Callable[[str], None]) -> dict[str, Array]:
        """Read the columns in ``uses``, each [N].

        Raises:
            InvalidInput: as :meth:`names`, a line of another length, an empty cell, or one that does not parse.
        """
        with self._rows() as rows:
            header = self._header(rows)
            at = {name: header.index(name) for name in uses}
            done: dict[str, list[Array]] = {name: [] for name in uses}
            total = 0
            for lines, chunk in self._chunks(rows, len(header)):
                total += len(chunk)
                if total > self.limits.max_rows:
                    raise too_large(f"{self.path}: more than {self.limits.max_rows} rows", "max_rows")
                for name, index in at.items():
                    done[name].append(self._convert([row[index] for row in chunk], lines, name, uses[name]))
                progress(f"{total} rows")
        if not total:
            raise bad_source(f"{self.path}: a header and no rows")
        return {
            name: _label(np.concatenate(parts)) if uses[name] == "label" else np.concatenate(parts)
            for name, parts in done.items()
        }

    @contextmanager
    def _rows(self) -> Iterator[Any]:
        try:
            size = self.path.stat().st_size
            if size > self.limits.max_bytes:
                raise too_large(f"{self.path}: {size} bytes, at most {self.limits.max_bytes}", "max_bytes")
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=self.delimiter, strict=True)
                try:
                    yield rows
                except csv.Error as error:
                    raise bad_source(f"{self.path}: line {rows.line_num}: not csv: {error}") from error
        except FileNotFoundError:
            raise bad_source(f"{self.path}: no such file") from None
        except UnicodeDecodeError as error:
            raise bad_source(f"{self.path}: not UTF-8 text: {error}; save it as UTF-8") from error
        except OSError as error:
            raise bad_source(f"{self.path}: {error.strerror}") from error

    def _header(self, rows: Any) -> list[str]:
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise bad_source(f"{self.path}: empty; expected a line with the columns' names first")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise bad_source(f"{self.path}: two columns are called {twice[0]!r}; rename one")
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        if other is not None:
            raise InvalidInput(
                f"{self.path}: one column, {header[0][:_SHOWN]!r}; is it separated by {other!r}? Set data.delimiter",
                field="data.delimiter",
            )
        return header

    def _chunks(self, rows: Any, width: int) -> Iterator[tuple[list[int], list[list[str]]]]:
        """Yield rows with their lines, some at a time; blank lines are skipped."""
        lines: list[int] = []
        chunk: list[list[str]] = []
        for row in rows:
            if not row:
                continue
            if len(row) != width:
                raise bad_source(f"{self.path}: line {rows.line_num} has {len(row)} values, but the header has {width}")
            lines.append(rows.line_num)
            chunk.append(row)
            if len(chunk) == _CHUNK_ROWS:
                yield lines, chunk
                lines, chunk = [], []
        if chunk:
            yield lines, chunk

    def _convert(self, cells: Sequence[str], lines: Sequence[int], name: str, use: Use) -> Array:
        if use == "text":
            return np.array(cells, dtype=object)
        try:
            return _PARSE[use](cells)
        except (ValueError, KeyError, OverflowError):
            pass
        row = next(row for row, cell in enumerate(cells) if not _parses(cell, use))
        cell = cells[row].strip()
        wrong = "is empty" + _EMPTY.get(use, "") if not cell else f"{cell[:_SHOWN]!r} is not {_WORDS[use]}"
        raise InvalidInput(
            f"{self.path}: line {lines[row]}, column {name!r}: {wrong}", field=f"{self.path.name}:{name}"
        )


def _numbers(kind: type[int | float], cells: Sequence[str]) -> Array:
    if any("_" in cell for cell in cells):
        raise ValueError("Python reads 1_000 as a number; in data it is a mistake")
    return np.array([kind(cell) for cell in cells], dtype=np.int64 if kind is int else np.float64)


def _values(kind: type[int | float], cells: Sequence[str]) -> Array:
    """Read numbers, or flags as the numbers 1 and 0, which is how models take them."""
    try:
        return _numbers(kind, cells)
    except ValueError:
        if not {cell.strip().lower() for cell in cells} <= {"true", "false"}:
            raise
        return _flags(cells).astype(np.int64 if kind is int else np.float64)


def _flags(cells: Sequence[str]) -> Array:
    return np.array([_FLAGS[cell.strip().lower()] for cell in cells], dtype=np.bool_)


def _filled(cells: Sequence[str]) -> Array:
    if not all(cell.strip() for cell in cells):
        raise ValueError("a label is missing")
    return np.array(cells, dtype=object)


def _words(cells: Sequence[str]) -> Array:
    if "" in cells:
        raise ValueError("a word is missing")
    return np.array(cells, dtype=object)


_PARSE: Mapping[Use, Callable[[Sequence[str]], Array]] = {
    "float": partial(_values, float),
    "integer": partial(_values, int),
    "flag": _flags,
    "word": _words,
    "label": _filled,
}
_WORDS: Mapping[Use, str] = {"float": "a number", "integer": "a whole number", "flag": "true, false, 1 or 0"}
_EMPTY: Mapping[Use, str] = {
    "word": '; write a word of your own for what is missing, or set data.empty_cells = "text" where it is an empty text'
}


_PARSE_ONE: Mapping[Use, Callable[[Sequence[str]], Array]] = {
    **_PARSE,
    "float": partial(_numbers, float),  # beside numbers, "true" is none
    "integer": partial(_numbers, int),
}


def _parses(cell: str, use: Use) -> bool:
    try:
        _PARSE_ONE[use]([cell])
    except (ValueError, KeyError, OverflowError):
        return False
    return True


def _label(words: Array) -> Array:
    """Return the whole numbers if all cells are, else numbers, else the words themselves."""
    cells = [str(word) for word in words]
    for kind in (int, float):
        try:
            return _numbers(kind, cells)
        except (ValueError, OverflowError):
            continue
    return words
