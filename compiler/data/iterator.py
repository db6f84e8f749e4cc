"""Examples from a Python iterator of the user's: ``module:function`` or ``path/file.py:function``.

The function gives rows: ``(inputs, label)`` or ``inputs``, where inputs is a dict of arrays (or numbers, or text) by
name. A function with a parameter is called once for each split with its name; one without gives everything. What goes
wrong in it is shown with its own file and line, not as a traceback.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.data import belonging, text, untrusted
from compiler.data.parts import ALL, CLUSTERS, GROUPS, LABELS, Part, Progress, Request, bad_source
from compiler.recipe.data_section import DataSection
from penstock.errors import InvalidInput
from penstock.process.config import nearest
from penstock.process.python_code import function_in, telling
from penstock.wire.tensors import Array

_SAY_EVERY = 500
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One example as the function gave it, its values made arrays; ``label`` None when it gave none."""

    inputs: Mapping[str, Array]
    label: Array | None


def read(request: Request) -> list[Part]:
    """Read the rows: one part for each split when the function takes the name of one, else one for everything.

    Raises:
        InvalidInput: no such function, it failed, gave something else than rows, or more than the limits.
    """
    splits = splits_of(request.section, request.base)
    return [_part(split, request) for split in splits]


def splits_of(section: DataSection, base: Path) -> tuple[str, ...]:
    """Return the splits to ask the function for; ``(ALL,)`` when it gives everything at once.

    Raises:
        InvalidInput: no such function.
    """
    function = function_in(section.source, base, setting="data.source")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature takes nothing
        parameters = []
    takes_one = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return tuple(section.splits.names().values()) if takes_one else (ALL,)


def rows(section: DataSection, base: Path, split: str, progress: Progress) -> Iterator[Row]:
    """Yield the rows of one split, one at a time.

    Raises:
        InvalidInput: as :func:`read`.
    """
    function, limits = function_in(section.source, base, setting="data.source"), section.limits
    began, size = time.monotonic(), 0
    with telling(section.source, setting="data.source"):
        given = iter(function(split) if split else function())
    for at in range(limits.max_rows + 1):
        with telling(section.source, setting="data.source"):
            item = next(given, _END)
        if item is _END:
            return
        row = _row(item, at, section)
        size += sum(_size_bytes(array) for array in row.inputs.values())
        taken = time.monotonic() - began
        for name, value, limit in (
            ("max_rows", at + 1, limits.max_rows),
            ("max_bytes", size, limits.max_bytes),
            ("max_seconds", taken, limits.max_seconds),
        ):
            if value > limit:
                raise bad_source(
                    f"{section.source}: not done after {at} rows: over data.limits.{name} = {limit:g}; give fewer, or "
                    "raise the limit"
                )
        if (at + 1) % _SAY_EVERY == 0:
            progress(f"{at + 1} rows in {taken:.0f} s")
        yield row


_END = object()


def _part(split: str, request: Request) -> Part:
    section = request.section
    given = list(rows(section, request.base, split, request.progress))
    where = f"{section.source}({split!r})" if split else f"{section.source}()"
    if not given:
        raise bad_source(f"{where}: gave no rows")

    def stacked(name: str) -> Array:
        return _stacked([_value(row, name, at, where) for at, row in enumerate(given)], f"{where}: {name!r}")

    cluster_by = _cluster_by(given, request)
    inputs: dict[str, Array] = {}
    for spec in request.inputs:
        if not (section.text and spec.name in text.MADE):
            stem = section.inputs.get(spec.name, spec.name)
            inputs[spec.name] = untrusted.fitted(stacked(stem), spec, field=f"{where}: {stem!r}")
    if section.text:
        words = [untrusted.text(stacked(name), field=f"{where}: {name!r}") for name in section.text_columns]
        inputs |= text.encode(words, request)
    return Part(
        split=split,
        inputs={spec.name: inputs[spec.name] for spec in request.inputs},
        labels=_labels(given, section, where) if request.wants_labels else None,
        groups=stacked(section.group_by) if section.group_by else None,
        fields={spec.name: f"{where}: {spec.name!r}" for spec in request.inputs}
        | {LABELS: f"{where}: labels", GROUPS: f"{where}: {section.group_by!r}", CLUSTERS: f"{where}: {cluster_by!r}"},
        clusters=stacked(cluster_by) if cluster_by else None,
        cluster_by=cluster_by,
    )


def _cluster_by(given: list[Row], request: Request) -> str:
    """Return the entry that says what belongs together, "" for none; one that nobody named has to be in every row."""
    section = request.section
    inputs = (section.inputs.get(spec.name, spec.name) for spec in request.inputs)
    found = belonging.column(
        section, list(given[0].inputs), [*inputs, *section.text_columns, section.labels, section.group_by]
    )
    return found if section.cluster_by or all(found in row.inputs for row in given) else ""


def _labels(given: list[Row], section: DataSection, where: str) -> Array:
    """Return the second of each pair, or the entry named ``data.labels``."""
    labels = []
    for at, row in enumerate(given):
        label = row.label if row.label is not None else row.inputs.get(section.labels)
        if label is None:
            raise InvalidInput(
                f"{where}: row {at} has no label; yield (inputs, label), or put it among the inputs as "
                f'{section.labels!r}, or set data.labels = ""',
                field="data.labels",
            )
        labels.append(label)
    return _stacked(labels, f"{where}: labels")


def _value(row: Row, name: str, at: int, where: str) -> Array:
    if name not in row.inputs:
        raise bad_source(f"{where}: row {at} has no {name!r}; {nearest(name, row.inputs)} (data.inputs renames)")
    return row.inputs[name]


def _stacked(values: list[Array], field: str) -> Array:
    first = values[0]
    for at, value in enumerate(values):
        if value.shape != first.shape:
            raise bad_source(
                f"{field}: row {at} has shape {list(value.shape)}, but row 0 has {list(first.shape)}; rows must have "
                "one size, so pad them"
            )
        if (value.dtype.kind in "OUS") != (first.dtype.kind in "OUS"):
            raise bad_source(f"{field}: row {at} holds {_shown(value)}, but row 0 {_shown(first)}")
    return np.stack(values)


def _shown(array: Array) -> str:
    kind = "text" if array.dtype.kind in "OUS" else str(array.dtype)
    return f"{' '.join(str(array).split())[:_SHOWN]} ({kind})"


def _row(item: object, at: int, section: DataSection) -> Row:
    inputs, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
    if not isinstance(inputs, Mapping):
        raise bad_source(
            f"{section.source}: row {at} is {type(item).__name__}; expected a dict of inputs, or (dict, label)"
        )
    arrays = {str(name): _array(value, f"{section.source}: row {at}, {name!r}") for name, value in inputs.items()}
    return Row(arrays, None if label is None else _array(label, f"{section.source}: row {at}, label"))


def _array(value: Any, field: str) -> Array:
    try:
        array: Array = np.asarray(value)
        if array.dtype.kind in "US" and isinstance(value, list | tuple):
            array = np.asarray(value, dtype=object)  # what is no text in it would have become text
    except Exception as error:  # anything may be in a row, with an __array__ of its own
        raise bad_source(f"{field}: no array can be made of it: {error}") from error
    if array.dtype.kind == "O" and array.size and array.ndim:
        return _words(array, field)
    if array.dtype.kind not in "biufUS":
        raise bad_source(f"{field}: {type(value).__name__} of {array.dtype}; expected numbers or text")
    return array.astype(object) if array.dtype.kind == "U" else array


def _words(array: Array, field: str) -> Array:
    """Return an array of words of one row, or say which is none."""
    items = array.ravel().tolist()
    is_text = [isinstance(item, str | bytes) for item in items]
    if all(is_text):
        return array
    odd = [isinstance(item, int | float) for item in items] if not any(is_text) else is_text
    at = next((at for at, is_plain in enumerate(odd) if not is_plain), 0)
    place = ", ".join(str(index) for index in np.unravel_index(at, array.shape))
    raise bad_source(
        f"{field}, column {place}: {str(items[at])[:_SHOWN]} ({type(items[at]).__name__}); expected numbers alone or "
        "text alone"
    )


def _size_bytes(array: Array) -> int:
    return sum(map(len, array.ravel().tolist())) if array.dtype.kind == "O" else array.nbytes
