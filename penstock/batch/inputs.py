"""A model's inputs from the columns of a table, and the columns of a table from a model's outputs. Pure.

A column is matched by name: with an input of that name, or with the columns that the model's artifact names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from penstock.batch.tables import Column
from penstock.errors import InvalidInput
from penstock.sdk import frames
from penstock.wire.inference import ModelMetadata
from penstock.wire.tensors import Array, TensorSpec, check_inputs, numpy_dtype

ERROR = "error"
_CLASS = "class"
_TEXT_BYTES = 64  # what a text is taken for, where its length is not known
_BATCH_BYTES, _PART_BYTES = 4 * 2**20, 64 * 2**20
_PART_BATCHES = 32


def columns_of(metadata: ModelMetadata, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Choose for each input the columns that make it: the one of its own name, or those that the model names."""
    return {
        spec.name: (spec.name,) if spec.name in names else metadata.columns.get(spec.name) or (spec.name,)
        for spec in metadata.inputs
    }


def inputs_of(
    table: Mapping[str, Array], metadata: ModelMetadata, columns: Mapping[str, Sequence[str]], *, is_text: bool
) -> dict[str, Array]:
    """Make a model's inputs of rows.

    Args:
        columns: for each input the columns that make it, from :func:`columns_of`.
        is_text: cells are text, also where they mean numbers.

    Raises:
        InvalidInput: columns are missing or too many, or a value does not fit.
    """
    if is_text:
        numbers = {name for spec in metadata.inputs if spec.datatype != "BYTES" for name in columns[spec.name]}
        table = {name: _numbers(cells, name) if name in numbers else cells for name, cells in table.items()}
    inputs = frames.inputs_of(table, metadata.inputs, columns)
    if any(len(array) for array in inputs.values()):
        check_inputs(inputs, metadata.inputs)
    return inputs


def sizes_for(specs: Sequence[TensorSpec], batch_rows: int) -> tuple[int, int]:
    """Choose the rows of a request and of a part, so that neither has more bytes of inputs than a few megabytes."""
    row_bytes = max(1, sum(_row_bytes(spec) for spec in specs))
    batch = max(1, min(batch_rows, _BATCH_BYTES // row_bytes))
    return batch, max(batch, min(_PART_BATCHES * batch, _PART_BYTES // row_bytes))


def output_columns(metadata: ModelMetadata, keep: Sequence[str], *, has_errors: bool) -> list[Column]:
    """List the columns of the output: what is kept, what the model answers, its class by name, what was refused.

    Raises:
        InvalidInput: two of them have one name.
    """
    columns = [Column(name=name, kind="any") for name in keep]
    for spec in metadata.outputs:
        kind = "scalar" if all(size == 1 for size in spec.shape[1:]) else "list"
        columns.append(Column(name=spec.name, datatype=spec.datatype, kind="scalar" if kind == "scalar" else "list"))
    if metadata.labels:
        columns.append(Column(name=_CLASS, kind="text"))
    if has_errors:
        columns.append(Column(name=ERROR, kind="text"))
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInput(
            f"the output would have two columns {twice!r}: what is kept, outputs of the model, {_CLASS!r} and "
            f"{ERROR!r} need names of their own",
            field="keep",
        )
    return columns


def values_of(outputs: Mapping[str, Array], metadata: ModelMetadata) -> dict[str, list[Any]]:
    """Make cells of outputs, one for each row; a tensor's values are flat, in the order of its memory."""
    found: dict[str, list[Any]] = {}
    for spec in metadata.outputs:
        array = outputs[spec.name]
        is_scalar = all(size == 1 for size in spec.shape[1:])
        cells: list[Any] = array.reshape(len(array), *(() if is_scalar else (-1,))).tolist()
        found[spec.name] = _as_text(cells) if spec.datatype == "BYTES" else cells
    if metadata.labels:
        found[_CLASS] = _classes(outputs, metadata.labels)
    return found


def _classes(outputs: Mapping[str, Array], labels: Mapping[str, Sequence[str]]) -> list[Any]:
    for name, named in labels.items():
        scores = outputs.get(name)
        if scores is not None and scores.ndim == 2 and scores.shape[1] == len(named):
            return [named[best] for best in scores.argmax(axis=1).tolist()]
    return [None] * len(next(iter(outputs.values())))


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _row_bytes(spec: TensorSpec) -> int:
    size = _TEXT_BYTES if spec.datatype == "BYTES" else numpy_dtype(spec.datatype).itemsize
    return size * prod(max(1, dim) for dim in spec.shape[1:])


def _numbers(cells: Array, name: str) -> Array:
    array = np.empty(len(cells), object)
    for row, text in enumerate(cells.tolist()):
        array[row] = _number(text, name, row)
    return array


def _number(text: str, name: str, row: int) -> int | float:
    """Read a number; an empty cell is a missing one."""
    stripped = text.strip()
    if not stripped:
        return float("nan")
    if stripped.lower() in ("true", "false"):
        return int(stripped.lower() == "true")
    for kind in (int, float):
        try:
            return kind(stripped)
        except ValueError:
            continue
    raise InvalidInput(f"inputs[{name!r}]: row {row} holds {text[:40]!r}, which is no number", field="inputs")
