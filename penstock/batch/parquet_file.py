"""Reads and writes parquet for batches. The only module here that imports pyarrow (extra ``data``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from penstock.batch.tables import Chunk, Column
from penstock.errors import InvalidInput, missing_extra
from penstock.wire.tensors import numpy_dtype

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:  # the library is behind an extra
    raise missing_extra("pyarrow", "data", "parquet files") from error


class ParquetSource:
    """A parquet file; a missing number is NaN, another missing value None."""

    is_text = False

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(), pq.ParquetFile(path) as file:
            self.names: Sequence[str] = tuple(map(str, file.schema_arrow.names))
            self.rows: int = file.metadata.num_rows

    def chunks(self, size: int) -> Iterator[Chunk]:
        start = 0
        with self._errors(), pq.ParquetFile(self._path) as file:
            waiting: list[Any] = []
            count = 0
            for batch in file.iter_batches(batch_size=size):
                waiting.append(batch)
                count += batch.num_rows
                while count >= size:  # a group of rows in the file may end anywhere
                    table = pa.Table.from_batches(waiting)
                    yield self._chunk(table.slice(0, size), start)
                    start, count = start + size, count - size
                    waiting = table.slice(size).to_batches() if count else []
            if count:
                yield self._chunk(pa.Table.from_batches(waiting), start)

    def _chunk(self, table: Any, start: int) -> Chunk:
        columns = {name: np.asarray(table.column(at).to_numpy()) for at, name in enumerate(self.names)}
        return Chunk(start=start, rows=table.num_rows, columns=columns)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise InvalidInput(f"{self._path}: not a readable parquet file: {reason}", field="input") from error


class ParquetSink:
    """A parquet file that is written in groups of rows. What a kept column holds is seen in its first rows."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._path, self._columns = path, columns
        self._writer: Any = None

    def __enter__(self) -> ParquetSink:
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is None and error[0] is None:
            self.write({column.name: [] for column in self._columns})
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        if self._writer is None:
            schema = pa.schema([(one.name, _type(one, columns[one.name])) for one in self._columns])
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        schema = self._writer.schema
        try:
            table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)
        except pa.ArrowException as error:
            raise InvalidInput(f"a kept column changes its type within the input: {error}", field="keep") from error
        self._writer.write_table(table)


def _type(column: Column, values: Sequence[Any]) -> Any:
    if column.kind == "any":
        found = pa.array(values).type
        return pa.string() if pa.types.is_null(found) else found
    one = pa.string() if column.datatype in ("", "BYTES") else pa.from_numpy_dtype(numpy_dtype(column.datatype))
    return pa.list_(one) if column.kind == "list" else one
