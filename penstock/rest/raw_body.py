"""A request whose body is nothing but the bytes of the model's only input: what its shape is. Pure.

The one free dimension is what the bytes give; where there are two, the first is the batch, and 1. Of BYTES the body is
the one element, without a length before it.
Source: Triton, "Binary Tensor Data Extension", raw binary request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from penstock.errors import InvalidInput
from penstock.wire.tensors import Array, TensorSpec, element_count, from_bytes, listing, numpy_dtype, reshape


def only_input(body: bytes | memoryview, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Read the only input of a model, by its name.

    Args:
        specs: the model's inputs.

    Raises:
        InvalidInput: there are several, or the shape does not follow from the bytes.
    """
    if len(specs) != 1:
        raise InvalidInput(
            f"body: without a JSON part it is for models with one input, and this one takes {listing(specs)}; send "
            "them by name",
            field="body",
        )
    spec = specs[0]
    return {spec.name: _array(memoryview(body), spec, f"inputs.{spec.name}")}


def _array(raw: memoryview, spec: TensorSpec, field: str) -> Array:
    shape = list(spec.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if spec.datatype == "BYTES":
        shape = [1 if size == -1 else size for size in shape]
        if element_count(shape, field=field) != 1:
            raise InvalidInput(f"{field}: a raw body is one element, and its shape is {list(spec.shape)}", field=field)
        return reshape(np.array([bytes(raw)], dtype=object), shape, field=field)
    if shape.count(-1) > 1:
        raise InvalidInput(
            f"{field}: shape {list(spec.shape)} does not follow from a number of bytes; send it by name", field=field
        )
    if -1 in shape:
        one = numpy_dtype(spec.datatype, field=field).itemsize * math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(raw) // one if one else 0
    array = from_bytes(raw, spec.datatype, shape, field=field)
    return array if array.flags.aligned else array.copy()
