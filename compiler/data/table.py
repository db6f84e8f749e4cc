"""Examples from a table: which columns make which input, and which rows belong to which split.

An input is the column of its name, or what ``data.columns`` says; text columns go through the tokenizer. Cells are cast
to the model's datatype where that loses no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

import msgspec
import numpy as np

from compiler.data import belonging, text, untrusted
from compiler.data.csv_file import CsvFile, Use
from compiler.data.parts import ALL, CLUSTERS, GROUPS, LABELS, Part, Progress, Request
from compiler.recipe.data_section import DataSection, kind_of
from penstock.errors import InvalidInput
from penstock.process.config import nearest
from penstock.wire.tensors import Array, TensorSpec

_SHOWN = 20


class TableFile(Protocol):
    """A file of named columns."""

    def names(self) -> list[str]: ...

    def columns(self, uses: Mapping[str, Use], progress: Progress) -> dict[str, Array]: ...


def open_table(request: Request) -> TableFile:
    """Open a csv or parquet file.

    Raises:
        MissingExtra: parquet without its library.
    """
    section = request.section
    if kind_of(section.source) == "csv":
        return CsvFile(path=request.path, delimiter=section.delimiter, limits=section.limits)
    from compiler.data.parquet_file import ParquetFile

    return ParquetFile(path=request.path, limits=section.limits)


def read(request: Request) -> list[Part]:
    """Read the table: one part for each split where ``splits.column`` is set, else one for everything.

    Raises:
        InvalidInput: a column that is not there, or a cell that is not what its column needs.
        MissingExtra: a library for parquet or text is not installed.
    """
    table = open_table(request)
    names = table.names()
    plan = columns_by_input(request, names)
    taken = [*_single(request), *(name for found in plan.values() for name in found)]
    cluster_by = belonging.column(request.section, names, taken)
    asked = request.section
    request = replace(request, section=msgspec.structs.replace(asked, cluster_by=cluster_by))
    uses = _uses(request, plan)
    for name, what in _single(request).items():
        _check_name(name, names, request, what)
    try:
        columns = table.columns(uses, request.progress)
    except InvalidInput as error:
        raise (belonging.told(error, asked, cluster_by) if cluster_by else error) from error
    splits = _split_rows(request, columns)
    if splits is not None:
        kept = np.sort(np.concatenate(list(splits.values())))  # rows of no split, such as "train", are left out
        columns = {name: array[kept] for name, array in columns.items()}
        splits = {split: np.searchsorted(kept, rows) for split, rows in splits.items()}
    whole = _whole(request, plan, columns)
    if splits is None:
        return [whole]
    return [_rows_of(whole, split, rows) for split, rows in splits.items()]


def columns_by_input(request: Request, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns that make each input which is not made of text, in order, patterns resolved.

    Raises:
        InvalidInput: one is not there.
    """
    return {spec.name: _columns_of(spec, request, names) for spec in _from_columns(request)}


def matched(request: Request, known: Mapping[str, Sequence[str]]) -> dict[str, str | tuple[str, ...]]:
    """Return ``data.columns`` for a model that was made with ``known`` columns: the same ones in its own order.

    A list of other names is what its author says they are called here. A pattern, or nothing, has to give the same
    names: in the order of the file they would be matched by place.

    Raises:
        InvalidInput: a pattern that gives other columns; the message names what is missing and what is new.
    """
    settled = dict(request.section.columns)
    names = open_table(request).names()
    for spec in _from_columns(request):
        if spec.name not in known:
            continue
        given = settled.get(spec.name)
        if given is None and spec.name not in names:
            settled[spec.name] = tuple(known[spec.name])
            continue
        found, wanted = _columns_of(spec, request, names), list(known[spec.name])
        patterns = [one for one in ((given,) if isinstance(given, str) else given or ()) if "*" in one]
        if sorted(found) == sorted(wanted):
            settled[spec.name] = tuple(wanted)
        elif patterns:
            missing = [name for name in wanted if name not in found]
            extra = [name for name in found if name not in wanted]
            raise InvalidInput(
                f"{request.path}: {patterns[0]!r} gives other columns than the model was made with: "
                f"{_listed('missing', missing)}{_listed('new', extra)}list those that it takes in "
                f"data.columns.{spec.name}",
                field=f"data.columns.{spec.name}",
            )
    return settled


def _listed(word: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")
    return f"{word} {shown}; " if names else ""


def _columns_of(spec: TensorSpec, request: Request, names: Sequence[str]) -> list[str]:
    given = request.section.columns.get(spec.name, spec.name)
    columns: list[str] = []
    _check_all([one for one in ((given,) if isinstance(given, str) else given) if "*" not in one], names, request, spec)
    for pattern in (given,) if isinstance(given, str) else given:
        if "*" in pattern and pattern not in names:
            others = _single(request)  # a label that lands in the input would be learnt by heart
            found = [name for name in names if fnmatchcase(name, pattern) and name not in others]
            if not found:
                taken = sorted({what for name, what in others.items() if fnmatchcase(name, pattern)})
                but = f"but {' and '.join(taken)} " if taken else ""
                raise InvalidInput(
                    f"data.columns.{spec.name}: no column {but}matches {pattern!r}; {nearest(pattern, names)}",
                    field=f"data.columns.{spec.name}",
                )
            columns += found
        else:
            columns.append(pattern)
    return columns


def _check_all(wanted: Sequence[str], names: Sequence[str], request: Request, spec: TensorSpec) -> None:
    missing = [name for name in wanted if name not in names]
    setting = f"data.columns.{spec.name}"
    if len(missing) > 1:
        raise InvalidInput(
            f"{request.path}: {_listed('no columns', missing)}they make input {spec.name} ({setting}); "
            f"{nearest(missing[0], names)}",
            field=setting,
        )
    for name in missing:
        _check_name(name, names, request, setting)


def _check_name(name: str, names: Sequence[str], request: Request, setting: str) -> None:
    if name not in names:
        advice = "; '' if there are no labels" if setting == "data.labels" else ""
        raise InvalidInput(
            f"{request.path}: no column {name!r} ({setting}{advice}); {nearest(name, names)}", field=setting
        )


def _from_columns(request: Request) -> list[TensorSpec]:
    """Return the inputs that are columns; the others are made of text."""
    return [spec for spec in request.inputs if not (request.section.text and spec.name in text.MADE)]


def _single(request: Request) -> dict[str, str]:
    """Return the columns that are not inputs, each with the setting that names it."""
    section = request.section
    named = dict.fromkeys(section.text_columns, "data.text")
    if request.wants_labels:
        named[section.labels] = "data.labels"
    if section.group_by:
        named[section.group_by] = "data.group_by"
    if section.cluster_by:
        named[section.cluster_by] = "data.cluster_by"
    if section.splits.column:
        named[section.splits.column] = "data.splits.column"
    return named


def _uses(request: Request, plan: Mapping[str, Sequence[str]]) -> dict[str, Use]:
    """Say how each column is read; one that is both an input and a label or group is read as the input."""
    section = request.section
    uses: dict[str, Use] = dict.fromkeys(_single(request), "text")
    if request.wants_labels:
        uses[section.labels] = "label"
    kinds: dict[str, Use] = {"FP": "float", "BO": "flag", "BY": "text" if section.empty_cells == "text" else "word"}
    for spec in _from_columns(request):
        uses |= dict.fromkeys(plan[spec.name], kinds.get(spec.datatype[:2], "integer"))
    return uses


def _whole(request: Request, plan: Mapping[str, Sequence[str]], columns: Mapping[str, Array]) -> Part:
    section, file = request.section, request.path.name
    inputs = {}
    fields = {name: f"{file}:{column}" for name, column in _beside_inputs(section).items()}
    for spec in request.inputs:
        if spec.name not in plan:
            continue
        parts = [untrusted.cast(columns[name], spec.datatype, field=f"{file}:{name}") for name in plan[spec.name]]
        for name, part in zip(plan[spec.name], parts, strict=True):
            untrusted.check_finite(part, field=f"{file}:{name}")
        fields[spec.name] = f"{file}:{plan[spec.name][0]}" + (f" and {len(parts) - 1} more" if parts[1:] else "")
        joined = parts[0] if len(parts) == 1 else np.column_stack(parts)
        inputs[spec.name] = untrusted.fitted(joined, spec, field=fields[spec.name])
    if section.text:
        texts = [untrusted.text(columns[name], field=f"{file}:{name}") for name in section.text_columns]
        made = text.encode(texts, request)
        inputs |= made
        fields |= dict.fromkeys(made, f"{file}:{' and '.join(section.text_columns)}")
    return Part(
        split=ALL,
        inputs={spec.name: inputs[spec.name] for spec in request.inputs},
        labels=columns[section.labels] if request.wants_labels else None,
        groups=columns[section.group_by] if section.group_by else None,
        fields=fields,
        clusters=columns[section.cluster_by] if section.cluster_by else None,
        cluster_by=section.cluster_by,
    )


def _beside_inputs(section: DataSection) -> dict[str, str]:
    return {LABELS: section.labels, GROUPS: section.group_by, CLUSTERS: section.cluster_by}


def _split_rows(request: Request, columns: Mapping[str, Array]) -> dict[str, Array] | None:
    """Return the row numbers of each split by the column that names it; None without one."""
    splits = request.section.splits
    if not splits.column:
        return None
    words = untrusted.text(columns[splits.column], field=f"{request.path.name}:{splits.column}")
    named = splits.names_in(lambda name: bool((words == name).any()))
    rows: dict[str, Array] = {name: np.flatnonzero(words == name) for name in named.values()}
    for name, found in rows.items():
        if not len(found):
            have = ", ".join(repr(str(word)) for word in np.unique(words)[:10])
            raise InvalidInput(
                f"{request.path}: column {splits.column!r} has no row with {name!r}; it has {have}", field="data.splits"
            )
    return rows


def _rows_of(whole: Part, split: str, rows: Array) -> Part:
    at = rows.astype(np.intp)
    return replace(
        whole,
        split=split,
        inputs={name: array[at] for name, array in whole.inputs.items()},
        labels=None if whole.labels is None else whole.labels[at],
        groups=None if whole.groups is None else whole.groups[at],
        clusters=None if whole.clusters is None else whole.clusters[at],
        fields={name: f"{field} (split {split})" for name, field in whole.fields.items()},
    )
