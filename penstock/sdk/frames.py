"""Inputs from a table with named columns: matched with the model's columns by name, never by place.

Any table will do that names its columns and gives each by its name, as those of pandas, polars and pyarrow do; none of
them is imported. Sends nothing; which columns make an input is what the server says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import InvalidInput
from penstock.sdk.casting import cast
from penstock.wire.tensors import Array, TensorSpec

_SHOWN = 20


def is_frame(value: Any) -> bool:
    """Say whether a value is a table with named columns. Arrays, lists and dicts are not."""
    return not isinstance(value, np.ndarray | Mapping | list | tuple | str | bytes) and _names(value) is not None


def is_by_column(value: Any, specs: Sequence[TensorSpec], columns: Mapping[str, Sequence[str]]) -> bool:
    """Say whether a value is a dict of columns, and not one of inputs: none of its names is an input's, and each has a
    flat list or array, or one of them is a column's, for a model whose inputs are all made of columns.
    """
    if not isinstance(value, Mapping) or not value or not all(columns.get(spec.name) for spec in specs):
        return False
    if any(spec.name in value for spec in specs):
        return False
    return all(_is_flat(one) for one in value.values()) or any(
        name in value for spec in specs for name in columns[spec.name]
    )


def inputs_of(
    frame: Any, specs: Sequence[TensorSpec], columns: Mapping[str, Sequence[str]], *, field: str = "inputs"
) -> dict[str, Array]:
    """Make the inputs that a table or a dict of columns holds, [N, ...] each, in the model's order and datatypes.

    Args:
        specs: the inputs to make.
        columns: for each input the columns that make it, in order.

    Raises:
        InvalidInput: the model names no columns, one is missing, one is there that the model does not take or twice,
            or a value does not fit.
    """
    unnamed = [spec.name for spec in specs if not columns.get(spec.name)]
    if unnamed:
        raise InvalidInput(
            f"{field}: the model does not say which columns make its input {', '.join(map(repr, unnamed))}, so a table "
            "cannot be matched by name; give an array with the columns in the order that the model was trained with",
            field=field,
        )
    wanted = list(dict.fromkeys(name for spec in specs for name in columns[spec.name]))
    _check_names(_names(frame) or [], wanted, field)
    read = {name: _column(frame, name) for name in wanted}
    _check_lengths(read, field)
    return {
        spec.name: _input([cast(read[name], spec.datatype, f"{field}[{name!r}]") for name in columns[spec.name]], spec)
        for spec in specs
    }


def _is_flat(value: Any) -> bool:
    """Say whether a value can be a column: one dimension, or the beginning of one."""
    if isinstance(value, str | bytes | Mapping):
        return False
    if isinstance(value, list | tuple):
        return not value or not isinstance(value[0], list | tuple | np.ndarray)
    return getattr(value, "ndim", 1) == 1 and hasattr(value, "__len__")


def _names(frame: Any) -> list[Any] | None:
    if isinstance(frame, Mapping):
        return list(frame)
    names = getattr(frame, "column_names", None)  # pyarrow; its ``columns`` are the columns themselves
    if names is None:
        names = getattr(frame, "columns", None)
    if names is None or callable(names) or not hasattr(frame, "__getitem__"):
        return None
    return list(names)


def _check_names(names: Sequence[Any], wanted: Sequence[str], field: str) -> None:
    missing = [name for name in wanted if name not in names]
    extra = [name for name in names if name not in wanted]
    twice = sorted({name for name in wanted if list(names).count(name) > 1})
    problems = [
        f"{words} {_listed(found)}"
        for words, found in (
            ("it has no", missing),
            ("the model does not take", extra),
            ("there is more than one", twice),
        )
        if found
    ]
    if problems:
        raise InvalidInput(
            f"{field}: the table's columns are not the model's: {'; '.join(problems)}. The model takes "
            f"{_listed(wanted)}, in any order",
            field=field,
        )


def _check_lengths(read: Mapping[str, Array], field: str) -> None:
    first = next(iter(read), "")
    for name, column in read.items():
        if len(column) != len(read[first]):
            raise InvalidInput(
                f"{field}: the columns are not equally long: {first!r} has {len(read[first])} rows, {name!r} has "
                f"{len(column)}",
                field=field,
            )


def _listed(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name)[:80] for name in names[:_SHOWN]) + more


def _column(frame: Any, name: str) -> Array:
    """Read one column [N]; [N, k] where it holds lists of one length."""
    try:
        array: Array = np.asarray(frame[name])
        if array.dtype.kind == "O" and len(array) and all(isinstance(cell, np.ndarray | list) for cell in array):
            array = np.stack([np.asarray(cell) for cell in array])
    except Exception as error:  # whatever the library of the table raises
        raise InvalidInput(f"inputs[{name!r}]: not a column of values: {error}", field="inputs") from error
    if array.ndim == 0:
        raise InvalidInput(f"inputs[{name!r}]: one value and not a column; one row's is [{array}]", field="inputs")
    return array


def _input(parts: list[Array], spec: TensorSpec) -> Array:
    joined = parts[0] if len(parts) == 1 else np.column_stack(parts)
    wanted = spec.shape[1:]
    if joined.shape[1:] != wanted and -1 not in wanted and joined[:1].size in (0, int(np.prod(wanted))):
        joined = joined.reshape(len(joined), *wanted)
    return np.ascontiguousarray(joined)
