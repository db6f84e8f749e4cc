"""Values to the datatype that a model takes: one rule for lists, columns of tables, and arrays of Python's own dtypes.

A value is cast where the datatype can hold it: whole numbers exactly, others rounded as floats are, a missing number as
NaN where the model takes floats. Anything else is refused with the row that is to blame. An array whose dtype somebody
chose (float32, uint8) is not touched: it goes as it is, and a server that takes another refuses it.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, numpy_dtype

_UNCERTAIN = 2.0**53  # from here on a float64 stands for several whole numbers

_BY_ITSELF = frozenset(map(np.dtype, (np.float64, np.int64, np.bool_)))


def is_unchosen(array: Array) -> bool:
    """Say whether an array has a dtype that numpy gives numbers and objects of Python by itself, and holds no text."""
    if array.dtype.kind == "O":
        return array.size > 0 and not isinstance(array.flat[0], str | bytes)
    return array.dtype in _BY_ITSELF


def listed(value: Any, datatype: str, field: str) -> Array:
    """Make an array [...] of nested lists, with a datatype; "" for the one that they have.

    Raises:
        InvalidInput: they are of different lengths, or a value does not fit.
    """
    try:
        array: Array = np.asarray(value, dtype=object if datatype == "BYTES" else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{field}: does not convert to an array: {error}", field=field) from None
    if array.dtype.kind == "f" and datatype and numpy_dtype(datatype, field=field).kind in "iu":
        array = np.asarray(value, dtype=object)  # numbers as they were: numpy may have rounded whole ones
    return cast(array, datatype, field) if datatype else array


def cast(array: Array, datatype: str, field: str) -> Array:
    """Cast an array to a datatype that can hold its values; one that has it already is returned as it is.

    Raises:
        InvalidInput: text where numbers are expected or numbers where text is, or a value that does not fit; it names
            the row.
    """
    if datatype == "BYTES":
        if array.dtype.kind in "OSU":
            return array.astype(object, copy=False)
        raise InvalidInput(f"{field}: holds {array.dtype}, but the model takes text (BYTES)", field=field)
    dtype = numpy_dtype(datatype, field=field)
    if array.dtype == dtype:
        return array
    values = _numbers(array, datatype, field)
    with np.errstate(over="ignore", invalid="ignore"):
        done: Any = values.astype(dtype)
        fits = np.isfinite(done) | ~np.isfinite(values) if dtype.kind == "f" else done.astype(values.dtype) == values
    if dtype.kind in "iu" and values.dtype.kind in "iuf":
        limits = np.iinfo(done.dtype)  # a wrap-around there and back would look equal
        fits = fits & (values >= limits.min) & (values <= limits.max)
        if values.dtype.kind == "f":  # what was rounded to a float before looks like the whole number that it became
            fits = fits & (np.abs(values) < _UNCERTAIN)
    elif dtype.kind == "b" and values.dtype.kind != "b":
        fits = (values == 0) | (values == 1)
    if not np.all(fits):
        place = tuple(int(index) for index in np.argwhere(~fits)[0])
        where = f"row {place[0]} holds " if place else ""
        raise InvalidInput(f"{field}: {where}{values[place]}, which {datatype} cannot hold", field=field)
    result: Array = done
    return result


def _numbers(array: Array, datatype: str, field: str) -> Any:
    """Return an array of a dtype of numbers.

    Raises:
        InvalidInput: it holds something else.
    """
    if array.dtype.kind in "biuf":
        return array
    cells = array.ravel().tolist() if array.dtype.kind == "O" else []
    if array.dtype.kind in "SU" or any(isinstance(cell, str | bytes) for cell in cells):
        raise InvalidInput(f"{field}: holds text, but the model takes {datatype}", field=field)
    if array.dtype.kind != "O":
        raise InvalidInput(f"{field}: holds {array.dtype}, but the model takes {datatype}", field=field)
    try:
        if all(isinstance(cell, int | np.integer) for cell in cells):  # exactly, where 64 bits hold them
            with contextlib.suppress(OverflowError):  # floats hold more, and less exactly
                return array.astype(np.int64 if max(cells, default=0) < 2**63 else np.uint64)
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        words = "it is an array of objects, and one of them is missing or no number"
        raise InvalidInput(f"{field}: {words}: {error}", field=field) from None
