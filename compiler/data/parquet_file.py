"""Columns of a parquet file, read in batches of rows: numbers, flags, words, and lists of one length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.data.csv_file import Use
from compiler.data.parts import bad_source, too_large
from compiler.recipe.data_section import LimitsSection
from penstock.errors import InvalidInput, missing_extra
from penstock.wire.tensors import Array

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:  # the library is behind an extra
    raise missing_extra("pyarrow", "data", "reading parquet files") from error

_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetFile:
    """A parquet file. Types come from its schema, so that ``uses`` only names the columns."""

    path: Path
    limits: LimitsSection

    def names(self) -> list[str]:
        """Read the column names, in the order of the file.

        Raises:
            InvalidInput: no such file, or not parquet.
        """
        with self._open() as file:
            return [str(name) for name in file.schema_arrow.names]

    def columns(self, uses: Mapping[str, Use], progress: Callable[[str], None]) -> dict[str, Array]:
        """Read the columns in ``uses``, each [N], or [N, k] where a column holds lists.

        Raises:
            InvalidInput: as :meth:`names`, more than the limits, a missing value, or a type that is no number or word.
        """
        done: dict[str, list[Array]] = {name: [] for name in uses}
        total = size = 0
        with self._open() as file:
            rows, most = file.metadata.num_rows, self.limits.max_rows
            if rows > most:
                raise too_large(f"{self.path}: {rows} rows, at most {most}", "max_rows")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(uses)):
                for name in uses:
                    array = self._convert(batch.column(name), name, total)
                    size += max(array.nbytes, batch.column(name).nbytes)  # an array of words has pointers alone
                    done[name].append(array)
                if size > self.limits.max_bytes:
                    raise too_large(f"{self.path}: more than {self.limits.max_bytes} bytes of values", "max_bytes")
                total += batch.num_rows
                progress(f"{total} rows")
        if not total:
            raise bad_source(f"{self.path}: no rows")
        return {name: self._joined(parts, name) for name, parts in done.items()}

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except FileNotFoundError:
            raise bad_source(f"{self.path}: no such file") from None
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise bad_source(f"{self.path}: not a readable parquet file: {reason}") from error

    def _convert(self, column: Any, name: str, start: int) -> Array:
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.dictionary_decode()
            kind = column.type
        if column.null_count:
            row = start + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise self._wrong(name, f"row {row} is missing (null)")
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return self._lists(column, name, start)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return np.array(column.to_pylist(), dtype=object)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            array: Array = column.to_numpy(zero_copy_only=False)
            return array
        raise self._wrong(name, f"holds {kind}; expected numbers, text or lists of numbers")

    def _lists(self, column: Any, name: str, start: int) -> Array:
        lengths = np.array([len(item) for item in column])
        uneven = np.flatnonzero(lengths != lengths[0])
        if len(uneven):
            raise self._wrong(
                name,
                f"row {start} has {lengths[0]} values and row {start + uneven[0]} has {lengths[uneven[0]]}; rows must "
                "have one length, so pad them",
            )
        flat = column.flatten()
        if lengths[0] == 0:
            raise self._wrong(name, "holds empty lists")
        values = self._convert(flat, f"{name}[]", start * int(lengths[0]))
        return values.reshape(len(column), int(lengths[0]), *values.shape[1:])

    def _joined(self, parts: list[Array], name: str) -> Array:
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise self._wrong(name, f"rows of differing sizes ({sorted(shapes)}); pad them to one length")
        return np.concatenate(parts)

    def _wrong(self, name: str, what: str) -> InvalidInput:
        return InvalidInput(f"{self.path}: column {name!r}: {what}", field=f"{self.path.name}:{name}")
