"""What is refused in examples, whatever they came from: wrong datatypes and shapes, NaN, values out of range, labels
that are no classes. Never drops or repairs a row; a cast happens only where it cannot change what a value means. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.policy import confidence
from penstock.process.config import nearest
from penstock.wire import tensors
from penstock.wire.tensors import Array, TensorSpec

_SHOWN = 60  # characters of a value in a message


def fitted(array: Array, spec: TensorSpec, *, field: str) -> Array:
    """Fit an array of plain numbers (or text) to the datatype and row shape of an input.

    Floats may lose precision (float64 to FP32) but not their range; whole numbers must stay the same.

    Args:
        array: [N, ...] with as many elements a row as the input takes.

    Raises:
        InvalidInput: a value that the datatype cannot hold, or rows of another size.
    """
    return _shaped(cast(array, spec.datatype, field=field), spec, field)


def cast(array: Array, datatype: str, *, field: str) -> Array:
    """Cast values to a datatype that can hold them.

    Raises:
        InvalidInput: a value that ``datatype`` cannot hold; the message names its row.
    """
    if datatype == "BYTES":
        return words(array, field=field)
    dtype = tensors.numpy_dtype(datatype, field=field)
    if array.dtype == dtype:
        return array
    plain: NDArray[Any] = array
    if array.dtype.kind not in "biuf":
        raise InvalidInput(
            f"{field}: holds {_kind(array)}, but the model takes {datatype}; give it numbers"
            + (", or set data.text and [data.tokenizer] for text" if array.dtype.kind in "OUS" else ""),
            field=field,
        )
    if dtype.kind == "f" and array.dtype.kind == "f":
        check_finite(array, field=field)
    with np.errstate(over="ignore", invalid="ignore"):
        done: NDArray[Any] = plain.astype(dtype)
        held = np.isfinite(done) if dtype.kind == "f" else done.astype(plain.dtype) == plain
    if dtype.kind in "iu" and plain.dtype.kind in "iuf":
        info = np.iinfo(done.dtype)  # a wrap-around there and back would look equal
        held = held & (plain >= info.min) & (plain <= info.max)
    elif dtype.kind == "b" and plain.dtype.kind != "b":
        held = (plain == 0) | (plain == 1)
    if not held.all():
        row = int(np.argwhere(~held)[0][0])
        value = array[row][~held[row]].ravel()[0] if array.ndim > 1 else array[row]
        raise InvalidInput(f"{field}: row {row} holds {value}, which {datatype} cannot hold", field=field)
    return done


def text(array: Array, *, field: str) -> NDArray[np.str_]:
    """Return words as a str array; numbers become their digits.

    Raises:
        InvalidInput: something else than words and whole numbers.
    """
    return words(array, field=field).astype(np.str_)


def words(array: Array, *, field: str) -> NDArray[np.object_]:
    """Return words as an array of str objects: those of a str array all take the room of the longest.

    Raises:
        InvalidInput: something else than words and whole numbers, with its row and column; bytes that are not UTF-8.
    """
    if array.dtype.kind in "iub":
        return array.astype(np.str_).astype(object)
    if array.dtype.kind not in "OSU":
        raise InvalidInput(f"{field}: holds {_kind(array)}, expected words or whole numbers", field=field)
    done = np.empty(array.size, dtype=object)
    for at, item in enumerate(array.ravel().tolist()):
        try:
            done[at] = _word(item)
        except (TypeError, UnicodeError) as error:
            place = ", column ".join(str(index) for index in np.unravel_index(at, array.shape)[:2])
            raise InvalidInput(f"{field}: row {place} holds {error}", field=field) from None
    return done.reshape(array.shape)


def _word(item: object) -> str:
    if isinstance(item, bytes):
        item = item.decode()
    if not isinstance(item, str):
        is_missing = item is None or item != item  # NaN, and what pandas calls missing times
        shown = f"{str(item)[:_SHOWN]}{'' if is_missing else f' ({type(item).__name__})'}"
        advice = "; write a word of your own for what is missing" if is_missing else ""
        raise TypeError(f"{shown}, expected text{advice}")
    item.encode()  # half of a surrogate pair has no UTF-8 form, and could not travel
    return item


def check_input(array: Array, spec: TensorSpec, allowed: tuple[float, float] | None, *, field: str) -> None:
    """Check the rows of an input.

    Args:
        allowed: the smallest and largest value, both included; None for any.

    Raises:
        InvalidInput: another datatype or shape than the model's, no rows, NaN or infinities, or out of range.
    """
    tensors.check_tensor(array, spec, field=field)
    if len(array) == 0:
        raise InvalidInput(f"{field}: no rows", field=field)
    check_finite(array, field=field)
    if allowed is None or array.dtype.kind not in "fiu":
        return
    low, high = float(array.min()), float(array.max())
    if low < allowed[0] or high > allowed[1]:
        raise InvalidInput(
            f"{field}: values from {low:g} to {high:g}, but model.input_range is {allowed[0]:g} to {allowed[1]:g}; "
            "were these examples preprocessed differently?",
            field=field,
        )


def check_finite(array: Array, *, field: str) -> None:
    """Check that every value is finite.

    Raises:
        InvalidInput: NaN or infinities, with their number of rows and the first one.
    """
    bad = np.flatnonzero(~confidence.finite_rows(array))
    if len(bad):
        raise InvalidInput(f"{field}: NaN or infinite values in {len(bad)} rows, first row {bad[0]}", field=field)


def class_labels(
    array: Array, rows: int, *, classes: int | None, names: Sequence[str], field: str
) -> NDArray[np.int64]:
    """Return the labels as class numbers: whole numbers as they are, words by their place in ``names``.

    Raises:
        InvalidInput: labels of another kind or number, no such class, or words without names.
    """
    if array.dtype.kind in "OUS" and array.shape == (rows,):
        return _by_name(text(array, field=field), classes, names, field)
    if array.dtype.kind not in "iub" or array.shape != (rows,):
        hint = _fraction(array) if array.dtype.kind == "f" and array.shape == (rows,) else ""
        raise InvalidInput(
            f"{field}: {array.dtype} {list(array.shape)}, expected one integer class for each of {rows} rows{hint}",
            field=field,
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or (classes is not None and high >= classes):
        have = "0 and up" if classes is None else f"0 to {classes - 1}"
        hint = "; count them from 0" if classes is not None and low == 1 and high == classes else ""
        raise InvalidInput(f"{field}: labels from {low} to {high}, but the model has classes {have}{hint}", field=field)
    return array.astype(np.int64)


def numeric_labels(array: Array, rows: int, *, field: str) -> NDArray[np.float64]:
    """Return the labels of a regression, [N] or [N, k].

    Raises:
        InvalidInput: not numbers, not finite, or not one (or k) for each row.
    """
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or len(array) != rows:
        raise InvalidInput(
            f"{field}: {_kind(array)} {list(array.shape)}, expected one number for each of {rows} rows", field=field
        )
    check_finite(array, field=field)
    return array.astype(np.float64)


def array_labels(array: Array, rows: int, *, field: str) -> Array:
    """Return labels of any form: finite numbers or words, with an entry for each row; whole numbers become int64.

    Raises:
        InvalidInput: something else, or not one entry for each row.
    """
    if array.shape[:1] != (rows,):
        raise InvalidInput(f"{field}: {list(array.shape)}, expected an entry for each of {rows} rows", field=field)
    if array.dtype.kind in "OUS":
        return words(array, field=field)
    if array.dtype.kind not in "iubf":
        raise InvalidInput(f"{field}: {_kind(array)}, expected numbers or words", field=field)
    check_finite(array, field=field)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def group_names(array: Array, rows: int, *, field: str) -> NDArray[np.str_]:
    """Return the name of each row's group.

    Raises:
        InvalidInput: not one word or whole number for each row.
    """
    if array.shape != (rows,):
        raise InvalidInput(f"{field}: {list(array.shape)}, expected one group for each of {rows} rows", field=field)
    return text(array, field=field)


def cluster_names(array: Array, rows: int, *, field: str) -> NDArray[np.str_]:
    """Return the name of what each row belongs to.

    Raises:
        InvalidInput: not one word or number for each row, or a missing one.
    """
    if array.shape != (rows,):
        raise InvalidInput(f"{field}: {list(array.shape)}, expected one cluster for each of {rows} rows", field=field)
    if array.dtype.kind == "f":
        check_finite(array, field=field)
        return array.astype(np.str_)
    names = text(array, field=field)
    missing = np.flatnonzero(names == "")
    if len(missing):
        raise InvalidInput(
            f"{field}: row {missing[0]} does not say what it belongs to; give it a name (data.cluster_by)",
            field=field,
        )
    return names


def _by_name(words: NDArray[np.str_], classes: int | None, names: Sequence[str], field: str) -> NDArray[np.int64]:
    if not names:
        have = sorted({str(word) for word in words})
        shown = ", ".join(repr(word[:_SHOWN]) for word in have[:10]) + (", ..." if len(have) > 10 else "")
        raise InvalidInput(
            f"{field}: labels are words ({shown}); set model.labels to the classes' names in the order of the model's "
            "outputs",
            field=field,
        )
    if classes is not None and len(names) != classes:
        raise InvalidInput(
            f"{field}: {len(names)} names of classes ({', '.join(names[:10])}), but the model has {classes} classes; "
            "set model.labels to the names in the order of the model's outputs",
            field=field,
        )
    number = {name: index for index, name in enumerate(names)}
    for row, word in enumerate(words):
        if str(word) not in number:
            raise InvalidInput(
                f"{field}: row {row} is {str(word)[:_SHOWN]!r}, which is no class; {nearest(str(word), names)}",
                field=field,
            )
    return np.array([number[str(word)] for word in words], dtype=np.int64)


def _fraction(labels: NDArray[Any]) -> str:
    """Return the first label that is no whole number, or that all are."""
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(np.mod(labels, 1) != 0)  # NaN and infinities too
    if len(rows):
        return f"; row {rows[0]} is {labels[rows[0]]:g}"
    return "; they are whole, so save them as integers"


def _shaped(array: Array, spec: TensorSpec, field: str) -> Array:
    """Return the same elements in the input's row shape, where that is fixed and has as many."""
    want = spec.shape[1:]
    if any(size < 0 for size in want) or array.shape[1:] == want:
        return array
    have = math.prod(array.shape[1:])
    if have != math.prod(want):
        raise InvalidInput(
            f"{field}: {have} values a row, but input {spec.name!r} takes {list(want)} ({math.prod(want)} values)",
            field=field,
        )
    return array.reshape(len(array), *want)


def _kind(array: NDArray[Any]) -> str:
    return {"O": "text or objects", "U": "text", "S": "bytes"}.get(array.dtype.kind, str(array.dtype))
