"""The classification extension: an output of scores as its most likely classes. Pure.

Each class is the text ``score:index``, or ``score:index:name`` where the model names its classes; scores have six
places, as Triton writes them. Where the first dimension is the batch there is one list for each row, otherwise one for
all.
Source: Triton, "Classification Extension".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from penstock.errors import InvalidInput
from penstock.wire.inference import InferResponse, ModelMetadata
from penstock.wire.tensors import Array


def classified(response: InferResponse, wanted: Mapping[str, int], metadata: ModelMetadata) -> InferResponse:
    """Replace outputs by their most likely classes.

    Args:
        wanted: how many classes, by output.

    Raises:
        InvalidInput: an output holds no scores.
    """
    rows = {spec.name: spec.shape[:1] == (-1,) for spec in metadata.outputs}
    outputs = {
        name: most_likely(
            array, wanted[name], names=metadata.labels.get(name, ()), has_rows=rows.get(name, True), field=name
        )
        if name in wanted
        else array
        for name, array in response.outputs.items()
    }
    return msgspec.structs.replace(response, outputs=outputs)


def most_likely(array: Array, count: int, *, names: Sequence[str], has_rows: bool, field: str) -> Array:
    """Return the classes with the highest scores, the highest first; of equal ones that with the lower index. NaN is no
    score, and comes last.

    Raises:
        InvalidInput: the array holds no numbers.
    """
    if array.dtype.kind not in "iuf":
        raise InvalidInput(
            f"outputs.{field}: classification needs numbers, and this output has none; leave the parameter out",
            field=f"outputs.{field}",
        )
    rows = array.reshape(array.shape[0], -1) if has_rows and array.ndim else array.reshape(1, -1)
    keep = min(count, rows.shape[1])
    is_integer = array.dtype.kind in "iu"
    told = np.empty((rows.shape[0], keep), dtype=object)
    for at, row in enumerate(rows):
        descending = row if is_integer else np.where(np.isnan(row), -np.inf, row)
        for place, index in enumerate(_largest(descending, keep).tolist()):
            score = str(row[index]) if is_integer else f"{float(row[index]):f}"
            told[at, place] = f"{score}:{index}:{names[index]}" if index < len(names) else f"{score}:{index}"
    return told if has_rows and array.ndim else told[0]


def _largest(row: Array, count: int) -> Array:
    """Return the indices of the largest entries, in order; a stable sort of the negated ones fails for unsigned."""
    order: Array = np.lexsort((np.arange(len(row)), -row.astype(np.float64)))[:count]
    if row.dtype.kind in "iu" and row.dtype.itemsize == 8:  # a float64 does not tell all of them apart
        order = np.array(sorted(range(len(row)), key=lambda at: (-int(row[at]), at))[:count], dtype=np.int64)
    return order
