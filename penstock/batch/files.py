"""Which module reads and writes a file of rows, by the end of its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penstock.batch.tables import Column, Sink, Source
from penstock.errors import InvalidInput

READS = (".parquet", ".csv", ".npz")
WRITES = (".parquet", ".csv")


def open_source(path: Path) -> Source:
    """Open a file to be read, by the end of its name.

    Raises:
        InvalidInput: no such file, not of its kind, or of a kind that is not read. MissingExtra: pyarrow.
    """
    # imported here, so that csv needs no pyarrow
    kind = _kind(path, READS, "input")
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file", field="input")
    if kind == ".parquet":
        from penstock.batch.parquet_file import ParquetSource

        return ParquetSource(path)
    if kind == ".csv":
        from penstock.batch.csv_file import CsvSource

        return CsvSource(path)
    from penstock.batch.npz_file import NpzSource

    return NpzSource(path)


def open_sink(path: Path, columns: Sequence[Column]) -> Sink:
    """Open a file to be written, by the end of its name.

    Raises:
        MissingExtra: pyarrow. StorageError: the disk said no.
    """
    if path.suffix.lower() == ".parquet":
        from penstock.batch.parquet_file import ParquetSink

        return ParquetSink(path, columns)
    from penstock.batch.csv_file import CsvSink

    return CsvSink(path, columns)


def check_output(path: Path) -> None:
    """Look whether a file can be written, which is better known before the work than after.

    Raises:
        InvalidInput: it is of no kind that is written. MissingExtra: pyarrow.
    """
    if _kind(path, WRITES, "output") == ".parquet":
        import penstock.batch.parquet_file  # noqa: F401  # says what is missing


def _kind(path: Path, known: Sequence[str], what: str) -> str:
    if path.suffix.lower() not in known:
        raise InvalidInput(f"--{what} {path}: expected a name that ends in {', '.join(known)}", field=what)
    return path.suffix.lower()
