"""Tensors on the wire and on disk: datatypes of the Open Inference Protocol, numpy <-> bytes, shape and dtype checks.

Bytes are little-endian and row-major; BYTES elements carry a 4-byte little-endian length each.
Source: Open Inference Protocol, "Tensor Data Types" and the binary tensor data extension.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput

Array = NDArray[np.generic]

_NUMPY_OF: Mapping[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_DATATYPE_OF: Mapping[np.dtype[np.generic], str] = {dtype: name for name, dtype in _NUMPY_OF.items()}
DATATYPES: tuple[str, ...] = (*_NUMPY_OF, "BYTES")


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name, OIP datatype and shape of one input or output. A dimension of -1 is free; dimension 0 is the batch.

    Attributes:
        sizes: by dimension, the only sizes that a free one may have; () for any. Left out where nothing is said, so
            that such a spec is read by releases that know of no sizes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...] | msgspec.UnsetType = msgspec.UNSET


def numpy_dtype(datatype: str, *, field: str = "datatype") -> np.dtype[np.generic]:
    """Return the little-endian numpy dtype of an OIP datatype; BYTES is ``object``.

    Raises:
        InvalidInput: no such datatype.
    """
    if datatype == "BYTES":
        return np.dtype(object)
    try:
        return _NUMPY_OF[datatype]
    except KeyError:
        raise InvalidInput(
            f"{field}: unknown datatype {datatype!r}; known: {', '.join(DATATYPES)}", field=field
        ) from None


def datatype_of(array: Array, *, field: str = "array") -> str:
    """Return the OIP datatype of a numpy array; object, bytes and str arrays are BYTES.

    Raises:
        InvalidInput: the dtype has no OIP datatype.
    """
    datatype = _DATATYPE_OF.get(array.dtype)
    if datatype is not None:
        return datatype
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPE_OF[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidInput(
            f"{field}: dtype {array.dtype} cannot travel; convert to one of {', '.join(DATATYPES)}", field=field
        ) from None


def to_bytes(array: Array, *, field: str = "tensor") -> bytes:
    """Write an array as row-major little-endian bytes, in the OIP raw form.

    Raises:
        InvalidInput: an element of a BYTES array is neither text nor bytes.
    """
    if array.dtype.kind in "OSU":
        return b"".join(struct.pack("<I", len(item)) + item for item in bytes_elements(array, field=field))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()


def bytes_elements(array: Array, *, field: str) -> list[bytes]:
    """List the elements of a BYTES array, text as UTF-8.

    Raises:
        InvalidInput: an element is neither text nor bytes (Python would make five zeros of the number 5), or text that
            has no UTF-8 form.
    """
    elements = []
    for at, item in enumerate(array.ravel().tolist()):
        try:
            if not isinstance(item, str | bytes | bytearray | memoryview):
                raise TypeError(f"a {type(item).__name__}")
            elements.append(item.encode() if isinstance(item, str) else bytes(item))
        except (TypeError, UnicodeEncodeError) as error:
            place = element_place(field, at, array.shape)
            raise InvalidInput(
                f"{place}: {str(item)[:40]!a} cannot be a BYTES element ({error}); expected text or bytes", field=place
            ) from None
    return elements


def element_place(field: str, at: int, shape: Sequence[int]) -> str:
    """Name an element by its place: ``field[row, column]`` for the ``at``-th one in row-major order."""
    return f"{field}[{', '.join(str(index) for index in np.unravel_index(at, tuple(shape)))}]"


def from_bytes(data: bytes | memoryview, datatype: str, shape: Sequence[int], *, field: str = "tensor") -> Array:
    """Read an array over raw bytes, without a copy where the datatype allows (the result is then read-only).

    Raises:
        InvalidInput: the byte count does not fit datatype and shape.
    """
    count = element_count(shape, field=field)
    if datatype == "BYTES":
        return reshape(_split_bytes(data, count, field), shape, field=field)
    dtype = numpy_dtype(datatype, field=field)
    expected = count * dtype.itemsize
    if len(data) != expected:
        raise InvalidInput(
            f"{field}: {len(data)} raw bytes, but datatype {datatype} with shape {list(shape)} needs {expected}",
            field=field,
        )
    array: Array = np.frombuffer(data, dtype=dtype)
    if datatype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput(f"{field}: a BOOL byte must be 0 or 1", field=field)  # numpy would compute nonsense with it
    return reshape(array, shape, field=field)


def reshape(array: Array, shape: Sequence[int], *, field: str = "tensor") -> Array:
    """Reshape like ``array.reshape(shape)``, with an error a client can act on.

    Raises:
        InvalidInput: another element count, too many dimensions, or a dimension that no machine can address.
    """
    try:
        return array.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{field}: cannot have shape {list(shape)[:8]}: {error}", field=field) from None


def element_count(shape: Sequence[int], *, field: str = "shape") -> int:
    """Return the number of elements of a concrete shape.

    Raises:
        InvalidInput: a dimension is negative.
    """
    count = 1
    for dim in shape:
        if dim < 0:
            raise InvalidInput(f"{field}: shape {list(shape)} has a negative dimension", field=field)
        count *= dim
    return count


def check_inputs(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> int:
    """Check names, datatypes and shapes of a request against a model's inputs; return the number of rows.

    Inputs with a free dimension 0 share it: the batch. Where there is none, all inputs have one number of rows that is
    fixed, or none: then a request is one call.

    Raises:
        InvalidInput: which input is wrong, and what was expected.
    """
    if len(inputs) != len(specs):
        raise _misnamed(inputs, specs)
    rows = -1
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:  # as many as there should be, so that another one is unknown
            raise _misnamed(inputs, specs)
        field = f"inputs.{spec.name}"
        check_tensor(array, spec, field=field)
        if spec.shape and spec.shape[0] == -1:
            if rows not in (-1, array.shape[0]):
                raise InvalidInput(f"{field}: {array.shape[0]} rows, but another input has {rows}", field=field)
            rows = array.shape[0]
    if rows == 0:
        raise InvalidInput("inputs: the batch has no rows; send at least one", field="inputs")
    if rows == -1:
        fixed = {spec.shape[0] if spec.shape else 1 for spec in specs}
        rows = fixed.pop() if len(fixed) == 1 else 1
    return rows


def check_tensor(array: Array, spec: TensorSpec, *, field: str) -> None:
    """Check one array against its spec.

    Raises:
        InvalidInput: datatype or shape differ.
    """
    datatype = datatype_of(array, field=field)
    if datatype != spec.datatype:
        raise InvalidInput(f"{field}: datatype is {datatype}, expected {spec.datatype}", field=field)
    shape = array.shape
    fits = len(shape) == len(spec.shape)
    for want, have in zip(spec.shape, shape, strict=False):
        fits = fits and want in (have, -1)
    if not fits:
        raise InvalidInput(
            f"{field}: shape is {list(array.shape)}, expected {list(spec.shape)} (-1 is any size)", field=field
        )
    if spec.sizes is not msgspec.UNSET:
        for axis, (have, allowed) in enumerate(zip(shape, spec.sizes, strict=False)):
            if allowed and have not in allowed:
                raise InvalidInput(
                    f"{field}: dimension {axis} is {have}, but the model was made for {listed(allowed)}; resize or "
                    "pad the input to one of them",
                    field=field,
                )


def with_sizes_of(specs: Sequence[TensorSpec], described: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return specs with the sizes that others of the same names say: a loaded model does not know them itself."""
    known = {spec.name: spec.sizes for spec in described}
    return tuple(msgspec.structs.replace(spec, sizes=known.get(spec.name, msgspec.UNSET)) for spec in specs)


def listed(sizes: Sequence[int]) -> str:
    """Write sizes as a choice for people: ``160, 320 or 640``."""
    *most, last = (str(size) for size in sizes)
    return f"{', '.join(most)} or {last}" if most else last


def listing(specs: Sequence[TensorSpec]) -> str:
    """Write inputs or outputs in a line, for messages."""
    return ", ".join(f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs) or "none"


def is_compatible(ones: Sequence[TensorSpec], others: Sequence[TensorSpec]) -> bool:
    """Say whether two lists describe the same tensors: names, datatypes and ranks are equal, and so is every dimension
    that is known on both sides. Exporters and optimizers differ in which they infer.
    """
    by_name = {spec.name: spec for spec in others}
    return set(by_name) == {spec.name for spec in ones} and all(
        spec.datatype == by_name[spec.name].datatype
        and len(spec.shape) == len(by_name[spec.name].shape)
        and all(-1 in dims or dims[0] == dims[1] for dims in zip(spec.shape, by_name[spec.name].shape, strict=True))
        for spec in ones
    )


class _Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


def pack(tensors: Mapping[str, Array]) -> bytes:
    """Write named tensors as one msgpack document; same tensors, same bytes. Used for golden vectors and evidence."""
    frames = [
        _Frame(name=name, datatype=datatype_of(array), shape=array.shape, data=to_bytes(array))
        for name, array in tensors.items()
    ]
    return msgspec.msgpack.encode(frames)


def unpack(data: bytes | memoryview) -> dict[str, Array]:
    """Undo :func:`pack`.

    Raises:
        InvalidInput: not such a document, or a tensor whose bytes do not fit its shape.
    """
    try:
        frames = msgspec.msgpack.decode(data, type=list[_Frame])
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"tensors: not a packed tensor document: {error}", field="tensors") from error
    return {f.name: from_bytes(f.data, f.datatype, f.shape, field=f.name) for f in frames}


def _misnamed(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> InvalidInput:
    """Say which name is unknown, or else which is missing."""
    known = {spec.name: spec for spec in specs}
    for name in inputs:
        if name not in known:
            text = f"no input named {name!r}"
            break
    else:
        name = next(name for name in known if name not in inputs)
        text = f"{name!r} is missing"
    return InvalidInput(f"inputs: {text}; the model takes {listing(specs)}", field=f"inputs.{name}")


def _split_bytes(data: bytes | memoryview, count: int, field: str) -> Array:
    if count * 4 > len(data):
        # refused before the array is allocated: a shape of 2**40 elements must not cost memory
        raise InvalidInput(f"{field}: {len(data)} raw bytes cannot hold {count} BYTES elements", field=field)
    items = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        if at + 4 > len(data):
            raise InvalidInput(f"{field}: raw bytes end inside the length of element {index} of {count}", field=field)
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise InvalidInput(f"{field}: raw bytes end inside element {index} of {count}", field=field)
        items[index] = bytes(data[at : at + size])
        at += size
    if at != len(data):
        raise InvalidInput(f"{field}: {len(data) - at} raw bytes left over after {count} elements", field=field)
    return items
