"""Tensor contents as JSON: a flat or nested list of numbers, booleans or strings, to an array and back.

Types are checked, not coerced: "1" is no number, 300 is no INT8, and null is no element. What JSON cannot say is
decided here once: NaN and infinities are written as null (and read back as NaN by :func:`decode` with ``gaps``), and
BYTES elements are UTF-8 text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, bytes_elements, numpy_dtype, reshape

_MAX_DEPTH = 32  # of nested lists; numpy allows 64 dimensions, no model has 32


def _integers(low: int, high: int) -> Any:
    return list[Annotated[int, msgspec.Meta(ge=low, le=high)]]


_ELEMENTS: Mapping[str, Any] = {
    "BOOL": list[bool | Literal[0, 1]],
    "UINT8": _integers(0, 2**8 - 1),
    "UINT16": _integers(0, 2**16 - 1),
    "UINT32": _integers(0, 2**32 - 1),
    "UINT64": list[Annotated[int, msgspec.Meta(ge=0)]],  # msgspec's bounds are int64; numpy refuses above 2**64
    "INT8": _integers(-(2**7), 2**7 - 1),
    "INT16": _integers(-(2**15), 2**15 - 1),
    "INT32": _integers(-(2**31), 2**31 - 1),
    "INT64": _integers(-(2**63), 2**63 - 1),
    "FP16": list[float],
    "FP32": list[float],
    "FP64": list[float],
    "BYTES": list[str],
}
_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {
    datatype: msgspec.json.Decoder(kind) for datatype, kind in _ELEMENTS.items()
}
_GAPPY = msgspec.json.Decoder(list[float | None])
_FLOATS = frozenset({"FP16", "FP32", "FP64"})


def decode(data: msgspec.Raw, datatype: str, shape: Sequence[int], *, field: str, gaps: bool = False) -> Array:
    """Read an array from the JSON text of a tensor's ``data``.

    Args:
        gaps: read null as NaN in a float tensor (what servers write for NaN and infinities).

    Raises:
        InvalidInput: unknown datatype, wrong element type, out of range, or a count that does not fit ``shape``.
    """
    dtype = numpy_dtype(datatype, field=field)
    decoder = _GAPPY if gaps and datatype in _FLOATS else _DECODERS[datatype]
    values = _elements(data, decoder, datatype, field)
    if datatype == "BYTES":
        values = [value.encode() for value in values]
    try:
        with np.errstate(over="raise"):
            array: Array = np.array(values, dtype=dtype)
    except (OverflowError, FloatingPointError):
        raise InvalidInput(f"{field}.data: a value is out of range for {datatype}", field=field) from None
    return reshape(array, shape, field=field)


def of_nested(values: object, datatype: str, *, field: str) -> Array:
    """Read an array from nested lists, whose lengths are its shape. Bytes may stand where text may.

    Raises:
        InvalidInput: unknown datatype, ragged or too deep lists, wrong element type, or out of range.
    """
    dtype = numpy_dtype(datatype, field=field)
    shape, flat = _unnested(values, field)
    try:
        if datatype == "BYTES":
            flat = [value.encode() if isinstance(value, str) else value for value in flat]
            if not all(isinstance(value, bytes) for value in flat):
                raise InvalidInput(f"{field}: not all values are text", field=field)
        else:
            flat = msgspec.convert(flat, _ELEMENTS[datatype])
        with np.errstate(over="raise"):
            array: Array = np.array(flat, dtype=dtype)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{field}: not all values are {datatype}: {error}", field=field) from None
    except (OverflowError, FloatingPointError):
        raise InvalidInput(f"{field}: a value is out of range for {datatype}", field=field) from None
    except UnicodeEncodeError:
        raise InvalidInput(f"{field}: a text has no UTF-8 form", field=field) from None
    return reshape(array, shape, field=field)


def encode(array: Array, datatype: str, *, field: str) -> list[Any]:
    """Return the flat list to write as a tensor's ``data``.

    Raises:
        InvalidInput: a BYTES element is not UTF-8, so that only the binary form can carry it.
    """
    if datatype != "BYTES":
        return array.ravel().tolist()
    try:
        return [element.decode() for element in bytes_elements(array, field=field)]
    except UnicodeDecodeError:
        raise InvalidInput(f"{field}: not UTF-8, so JSON cannot carry it; ask for binary data", field=field) from None


def _elements(data: msgspec.Raw, decoder: msgspec.json.Decoder[Any], datatype: str, field: str) -> list[Any]:
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        flat = _flattened(data)
        if flat is None:
            raise InvalidInput(f"{field}.data: not a list of {datatype} values: {error}", field=field) from None
    try:
        return msgspec.convert(flat, decoder.type)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{field}.data: not all values are {datatype}: {error}", field=field) from None


def _flattened(data: msgspec.Raw) -> list[Any] | None:
    """Return the elements of nested lists in row-major order; None for anything else, ragged lists included."""
    try:
        values = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if not isinstance(values, list):
        return None
    for _ in range(_MAX_DEPTH):
        if not values or not isinstance(values[0], list):
            return None if any(isinstance(value, list) for value in values) else values
        width = len(values[0])
        if not all(isinstance(value, list) and len(value) == width for value in values):
            return None
        values = [item for value in values for item in value]
    return None


def _unnested(values: object, field: str) -> tuple[list[int], list[Any]]:
    """Return the shape of nested lists, and their elements in row-major order."""
    if not isinstance(values, list):
        return [], [values]
    shape = [len(values)]
    while values and isinstance(values[0], list) and len(shape) <= _MAX_DEPTH:
        width = len(values[0])
        if not all(isinstance(value, list) and len(value) == width for value in values):
            raise InvalidInput(f"{field}: lists of different lengths beside each other", field=field)
        shape.append(width)
        values = [item for value in values for item in value]
    if any(isinstance(value, list) for value in values):
        raise InvalidInput(f"{field}: lists beside values, or nested too deeply", field=field)
    return shape, values
