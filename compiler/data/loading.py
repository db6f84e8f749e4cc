"""From the recipe's table [data] to a checked dataset: read by kind, checked array by array, divided by use.

Owns which checks come in which order, and that no row serves two uses. What each kind of source looks like is in a
module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.data import belonging, iterator, npz, splitting, table, untrusted
from compiler.data.belonging import Arranged
from compiler.data.dataset import Dataset, Repeats, Split
from compiler.data.parts import ALL, CLUSTERS, GROUPS, LABELS, Part, Progress, Request, silent, too_large
from compiler.recipe.choices import LabelForm
from compiler.recipe.data_section import DataSection, Kind, check, kind_of
from penstock.errors import InvalidInput
from penstock.process.config import nearest
from penstock.wire.tensors import TensorSpec

_SHOWN = 60


def load(
    section: DataSection,
    base: Path,
    inputs: Sequence[TensorSpec],
    *,
    classes: int | None,
    input_range: tuple[float, float] | None = None,
    labels_as: LabelForm = "classes",
    labels: Sequence[str] = (),
    progress: Progress = silent,
) -> Dataset:
    """Read, check and divide the examples.

    Args:
        base: what relative paths of the section are relative to: the recipe's directory.
        inputs: the model's. One of datatype BYTES takes text as it is.
        classes: how many the model has; None when it is no classifier or its outputs are of a free size.
        input_range: smallest and largest value of an input; None for any.
        labels_as: what the labels look like.
        labels: names of the classes in the order of the outputs (``model.labels``); words are mapped by them.
        progress: told now and then how many rows have been read.

    Raises:
        ConfigError: settings that do not go together. MissingExtra: the library of this kind of source.
        InvalidInput: what is wrong with the source, by file, array or column, and row; and what was expected.
    """
    check(section)
    _check_names(section, inputs)
    wants_labels = bool(section.labels) and labels_as != "none"
    request = Request(section=section, base=base, inputs=inputs, wants_labels=wants_labels, progress=progress)
    parts = _reader(kind_of(section.source))(request)
    names = _class_names(parts, labels)
    splits = [_checked(part, request, classes, input_range, labels_as, names) for part in parts]
    found, repeats = _arranged(splits, parts, section)
    divided = _divide(found[0], repeats, section) if parts[0].split == ALL else _assign(found, repeats, section)
    return replace(divided, class_names=names)


def look(section: DataSection, base: Path, inputs: Sequence[TensorSpec]) -> Repeats:
    """Say what repeats or belongs together in a source, whatever its splits are and without looking at labels.

    Raises:
        ConfigError, InvalidInput, MissingExtra: as :func:`load`.
    """
    check(section)
    _check_names(section, inputs)
    request = Request(section=section, base=base, inputs=inputs, wants_labels=False, progress=silent)
    parts = _reader(kind_of(section.source))(request)
    splits = [_checked(part, request, None, None, "none", ()) for part in parts]
    return _arranged(splits, parts, section)[1]


def has_splits(section: DataSection, base: Path, inputs: Sequence[TensorSpec]) -> bool:
    """Say whether the source says itself which rows are for what; otherwise :func:`load` divides all of it by the
    shares.

    Raises:
        ConfigError, InvalidInput, MissingExtra: as :func:`load`, as far as it has to look.
    """
    match kind_of(section.source):
        case "npz":
            return npz.splits_of(section, base, inputs) != (ALL,)
        case "csv" | "parquet":
            return bool(section.splits.column)
        case "iterator":
            return iterator.splits_of(section, base) != (ALL,)
        case "images":
            from compiler.data import images  # needs Pillow

            return images.splits_of(section, base) != (ALL,)


def _reader(kind: Kind) -> Callable[[Request], list[Part]]:
    match kind:
        case "npz":
            return npz.read
        case "csv" | "parquet":
            return table.read
        case "iterator":
            return iterator.read
        case "images":
            from compiler.data import images  # needs Pillow

            return images.read


def _check_names(section: DataSection, inputs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in inputs]
    for setting in ("inputs", "columns"):
        for name in getattr(section, setting):
            if name not in known:
                raise InvalidInput(
                    f"data.{setting}: the model has no input {name!r}; {nearest(name, known)}",
                    field=f"data.{setting}.{name}",
                )


def _arranged(splits: Sequence[Split], parts: Sequence[Part], section: DataSection) -> tuple[list[Arranged], Repeats]:
    cluster_by = parts[0].cluster_by
    try:
        names = _cluster_names(parts)
    except InvalidInput as error:
        raise belonging.told(error, section, cluster_by) from error
    return belonging.arranged(splits, names, section, cluster_by=cluster_by)


def _cluster_names(parts: Sequence[Part]) -> list[NDArray[np.str_]] | None:
    """Return what every row belongs to, by part; None where the source does not say it of all."""
    columns = [part.clusters for part in parts if part.clusters is not None]
    if len(columns) < len(parts):
        return None
    rows = (len(next(iter(part.inputs.values()))) for part in parts)
    return [
        untrusted.cluster_names(column, count, field=part.fields[CLUSTERS])
        for part, column, count in zip(parts, columns, rows, strict=True)
    ]


def _class_names(parts: Sequence[Part], labels: Sequence[str]) -> tuple[str, ...]:
    if not any(part.class_names for part in parts):
        return tuple(labels)
    from compiler.data import images

    return images.class_names(parts, labels)


def _checked(
    part: Part,
    request: Request,
    classes: int | None,
    allowed: tuple[float, float] | None,
    labels_as: LabelForm,
    names: Sequence[str],
) -> Split:
    rows = -1
    for spec in request.inputs:
        array, field = part.inputs[spec.name], part.fields[spec.name]
        untrusted.check_input(array, spec, allowed, field=field)
        if rows not in (-1, len(array)):
            raise InvalidInput(f"{field}: {len(array)} rows, but another input has {rows}", field=field)
        rows = len(array)
    limit = request.section.limits.max_rows
    if rows > limit:
        raise too_large(f"{part.fields[request.inputs[0].name]}: {rows} rows, at most {limit}", "max_rows")
    labels: NDArray[Any] | None = None
    if part.labels is not None and labels_as == "numbers":
        labels = untrusted.numeric_labels(part.labels, rows, field=part.fields[LABELS])
    elif part.labels is not None and labels_as == "array":
        labels = untrusted.array_labels(part.labels, rows, field=part.fields[LABELS])
    elif part.labels is not None:
        labels = untrusted.class_labels(part.labels, rows, classes=classes, names=names, field=part.fields[LABELS])
    groups = None if part.groups is None else untrusted.group_names(part.groups, rows, field=part.fields[GROUPS])
    return Split(name=part.split, inputs=dict(part.inputs), labels=labels, groups=groups)


def _divide(whole: Arranged, repeats: Repeats, section: DataSection) -> Dataset:
    """Divide a source without splits of its own by the shares."""
    dealt = splitting.deal(whole.together, section.shares.by_use(), seed=section.seed)
    for use, rows in dealt.items():
        if not len(rows):
            found = repeats.words or f"{repeats.rows:,} rows"
            raise InvalidInput(
                f"data.source: {found}: they leave none for {use!r} ({section.shares.by_use()[use]:.0%}); give more",
                field=f"data.shares.{use}",
            )
    by_use = {use: whole.split.take(rows, name=use) for use, rows in dealt.items()}
    return Dataset(
        ranges=by_use["fit"], tune=by_use["tune"], certify=by_use["certify"], test=by_use["test"], repeats=repeats
    )


def _assign(splits: Sequence[Arranged], repeats: Repeats, section: DataSection) -> Dataset:
    """Assign the splits of a source that has them; without one to tune on, ``fit`` is divided in two."""
    by_name = {one.split.name: one for one in splits}
    by_use = {use: by_name[name] for use, name in section.splits.names_in(by_name.__contains__).items()}
    _check_apart(by_use, repeats, section)
    fit, tune = (
        (by_use["fit"].split, by_use["tune"].split) if "tune" in by_use else _halves(by_use["fit"], repeats, section)
    )
    return Dataset(ranges=fit, tune=tune, certify=by_use["certify"].split, test=by_use["test"].split, repeats=repeats)


def _halves(fit: Arranged, repeats: Repeats, section: DataSection) -> tuple[Split, Split]:
    halves = splitting.deal(fit.together, {"ranges": 0.5, "tune": 0.5}, seed=section.seed)
    if not len(halves["ranges"]) or not len(halves["tune"]):
        rows, apart = len(fit.rows), len(set(fit.together))
        what = f"in {apart} cluster{'s' * (apart > 1)}" if repeats.cluster_by else f"{apart} different"
        raise InvalidInput(
            f"data: split {fit.split.name!r} has {rows} row{'s' * (rows > 1)}, {what}; it needs two or more, for "
            "ranges and for the temperature",
            field=f"data.{fit.split.name}",
        )
    return fit.split.take(halves["ranges"], name="ranges"), fit.split.take(halves["tune"], name="tune")


def _check_apart(by_use: Mapping[str, Arranged], repeats: Repeats, section: DataSection) -> None:
    """Check that no example has two uses, nor any cluster.

    Raises:
        InvalidInput: examples or clusters with two uses; a whole split of examples even where rows may repeat.
    """
    for use, other_use in combinations(("certify", "test", "tune", "fit"), 2):
        if use not in by_use or other_use not in by_use:
            continue
        one, other = by_use[use], by_use[other_use]
        names = f"{section.source}: splits {one.split.name!r} and {other.split.name!r}"
        if sorted(one.rows) == sorted(other.rows):
            raise InvalidInput(
                f"{names} hold the same examples; a promise certified or a figure measured on data that was used for "
                "something else would not hold. Set some examples apart",
                field="data.splits",
            )
        if repeats.cluster_by:
            _check_clusters_apart(one, other, names, repeats)
        shared = splitting.shared_rows(one.rows, other.rows)
        if shared and repeats.taken_for == "copies":
            raise InvalidInput(
                f"{names} share {len(shared)} of {len(one.rows)} rows (first: row {shared[0][0]} is row "
                f'{shared[0][1]} of {other.split.name!r}); remove them from one, or set data.repeats = "natural" '
                "if rows repeat by nature",
                field="data.splits",
            )


def _check_clusters_apart(one: Arranged, other: Arranged, names: str, repeats: Repeats) -> None:
    shared = sorted({one.together[row] for row, _ in splitting.shared_rows(one.together, other.together)})
    if not shared:
        return
    guessed = ', or set data.repeats = "natural" if every row is a draw by itself' if repeats.is_guess else ""
    raise InvalidInput(
        f"{names} share {len(shared)} of {len(set(one.together))} clusters by {repeats.cluster_by!r} (first: "
        f"{shared[0].decode()[:_SHOWN]!r}): what is known of one half of a cluster says too much of the other. Leave "
        f"each to one split{guessed}",
        field="data.splits",
    )
