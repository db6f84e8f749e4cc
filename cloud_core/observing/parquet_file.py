"""Writes captured requests as one Parquet file, a row for each row that was asked. The only module here that imports
pyarrow (extra ``data``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cloud_core.observing.finished import Finished
from penstock.artifact.blobs import disk_errors
from penstock.errors import missing_extra
from penstock.wire.tensors import Array

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise missing_extra("pyarrow", "data", "capturing requests") from error

_TEXTS = ("model", "version", "variant", "arm", "tenant", "transport", "request_id", "traceparent", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One request that is to be kept. Tensors are copies of what may be; dimension 0 is the row."""

    at: datetime
    request: Finished
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def write_rows(path: Path, captured: Sequence[Captured]) -> None:
    """Write a file as a whole, or not at all.

    Raises:
        StorageError: the disk said no.
    """
    rows = [row for one in captured for row in _rows(one)]
    names = dict.fromkeys(name for row in rows for name in row)  # what failed has no outputs
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    partial = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(f"writing {path}"):
            pq.write_table(table, partial, compression="zstd")
            os.chmod(partial, 0o600)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _rows(one: Captured) -> Sequence[dict[str, Any]]:
    request = one.request
    common = {"at": one.at, "duration_s": request.duration_s}
    common |= {name: getattr(request, name) for name in _TEXTS}
    tensors = {f"input.{name}": array for name, array in one.inputs.items()}
    tensors |= {f"output.{name}": array for name, array in one.outputs.items()}
    return [
        {**common, "row": row, **{name: _values(array, row) for name, array in tensors.items()}}
        for row in range(max(1, request.rows))
    ]


def _values(array: Array, row: int) -> Any:
    """Return a row's values, flat; of a tensor without rows, all of them with each row."""
    if not array.ndim:
        return [array.item()]
    return array[row].ravel().tolist() if array.ndim > 1 and row < len(array) else array[row : row + 1].tolist()
