"""What the parts of a source are for, worked out from its names and shapes, for compiling without a recipe.

Decides only what has one reading: an input by its name, or as the only thing that fits; labels by a customary name.
Whatever has two readings, or none, is an error that lists what was seen and the settings that would say it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.data import belonging, iterator, npz, table, text
from compiler.data.parts import Request, bad_source, silent
from compiler.recipe.data_section import DataSection, ImagesSection, SplitsSection, TokenizerSection, kind_of
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec, datatype_of

LABELS = ("y", "label", "labels", "target", "targets", "class", "classes")
"""Names that mean labels, whatever their case."""

_TEXTS = (("text",), ("sentence",), ("sentence1", "sentence2"), ("question", "context"), ("premise", "hypothesis"))
_SPLIT_COLUMN = "split"
_TOKENIZER = "tokenizer.json"
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Seen:
    """The parts of a source by name, each with words for messages, and whether it fits an input (None: unknown)."""

    where: str
    parts: Mapping[str, str]

    def refusal(self, why: str, advice: str) -> InvalidInput:
        names = list(self.parts)
        shown = ", ".join(f"{name}{self.parts[name]}" for name in names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return bad_source(f"{self.where}: {why}; it has {shown or 'nothing'}{more}. {advice}")


def infer(
    source: Path | str,
    inputs: Sequence[TensorSpec],
    *,
    base: Path = Path(),
    columns: Mapping[str, Sequence[str]] | None = None,
) -> DataSection:
    """Work out the settings that read ``source`` for a model with these inputs.

    Text is tokenized by the ``tokenizer.json`` beside the source. Nothing is known of the mean and deviation that
    images were normalized with: they are scaled to 0..1, and a model that wants more needs a recipe.

    Args:
        columns: the columns of a table that make an input, in order, where they are known: a file in another order is
            then read by their names, and other columns are left alone.

    Raises:
        ConfigError: a file of another kind. MissingExtra: the library of this kind of source.
        InvalidInput: no such source, or its parts can be read in several ways or in none.
    """
    name = str(source)
    match kind_of(name):
        case "npz":
            return _of_npz(name, inputs, base)
        case "csv" | "parquet":
            return _of_table(name, inputs, base, columns or {})
        case "images":
            return _of_images(name, inputs, base)
        case "iterator":
            return _of_iterator(name, inputs, base)


def _of_npz(source: str, inputs: Sequence[TensorSpec], base: Path) -> DataSection:
    plain = DataSection(source=source)
    arrays = npz.arrays_of(base / source, plain.limits.max_bytes)
    seen = _Seen(source, {name: f" {array.dtype}{list(array.shape)}" for name, array in arrays.items()})
    stems, splits = _stems(list(arrays))
    first = {stem: arrays[f"{stem}_fit" if splits else stem] for stem in stems}
    labels = _labels(list(first), inputs, seen)
    chosen: dict[str, str] = {}
    for spec in inputs:
        fits = [
            stem
            for stem, array in first.items()
            if stem != labels and stem not in chosen.values() and _fits(array.shape, datatype_of(array), spec)
        ]
        if spec.name in first:
            chosen[spec.name] = spec.name
        elif len(fits) == 1:
            chosen[spec.name] = fits[0]
        else:
            advice = f'Name an array {spec.name!r}, or write a recipe: [data] inputs = {{{spec.name} = "..."}}'
            why = f"{'no array fits' if not fits else 'several arrays fit'} input {spec.name} {_of(spec)}"
            raise seen.refusal(why, advice)
    renamed = {name: stem for name, stem in chosen.items() if name != stem}
    return DataSection(source=source, inputs=renamed, labels=labels)


def _stems(names: Sequence[str]) -> tuple[list[str], bool]:
    """Return (what arrays are called without their split, whether they have splits)."""
    stems = [name.removesuffix("_fit") for name in names if name.endswith("_fit")]
    split = [stem for stem in stems if {f"{stem}_certify", f"{stem}_test"} <= set(names)]
    return (split, True) if split else (list(names), False)


def _fits(shape: tuple[int, ...], datatype: str, spec: TensorSpec) -> bool:
    return (
        datatype == spec.datatype
        and len(shape) == len(spec.shape)
        and all(want in (-1, have) for want, have in zip(spec.shape, shape, strict=True))
    )


def _labels(names: Sequence[str], inputs: Sequence[TensorSpec], seen: _Seen) -> str:
    """Return the one part with a customary name; "" when there is none."""
    taken = {spec.name for spec in inputs}
    found = [name for name in names if name.lower() in LABELS and name not in taken]
    if len(found) > 1:
        raise seen.refusal(f"{' and '.join(found)} may all be the labels", "Say which in a recipe: [data] labels")
    return found[0] if found else ""


def _of_table(source: str, inputs: Sequence[TensorSpec], base: Path, known: Mapping[str, Sequence[str]]) -> DataSection:
    plain = DataSection(source=source)
    request = Request(section=plain, base=base, inputs=inputs, wants_labels=False, progress=silent)
    names = table.open_table(request).names()
    seen = _Seen(source, dict.fromkeys(names, ""))
    taken = {column for columns in known.values() for column in columns}
    free = [name for name in names if name not in taken]
    labels = _labels(free, inputs, seen)
    splits = SplitsSection(column=_SPLIT_COLUMN if _SPLIT_COLUMN in free else "")
    rest = [name for name in free if name not in (labels, splits.column)]
    tokens = [spec for spec in inputs if spec.name in text.MADE and spec.name not in (*names, *known)]
    others = [spec for spec in inputs if spec not in tokens and spec.name not in (*names, *known)]
    texts = _texts(rest, seen, base / source) if tokens else ()
    tokenizer = str(Path(source).parent / _TOKENIZER) if tokens else ""
    columns: dict[str, str | tuple[str, ...]] = {name: tuple(settled) for name, settled in known.items()}
    columns |= _columns(others, inputs, [name for name in rest if name not in texts], seen)
    return DataSection(
        source=source,
        columns=columns,
        labels=labels,
        splits=splits,
        text=texts[0] if len(texts) == 1 else (texts[0], texts[1]) if texts else "",
        tokenizer=TokenizerSection(file=tokenizer),
    )


def _columns(
    unnamed: Sequence[TensorSpec], inputs: Sequence[TensorSpec], rest: Sequence[str], seen: _Seen
) -> dict[str, str | tuple[str, ...]]:
    """Return all columns that are left, in their order, for the only input without a column of its name."""
    if not unnamed:
        return {}
    spec, wanted = unnamed[0], math.prod(unnamed[0].shape[1:])
    free = [name for name in rest if name not in {spec.name for spec in inputs}]
    if wanted != len(free):  # a patient's number is no measurement of him
        owner = belonging.column(DataSection(source=""), free, [])
        free = [name for name in free if name != owner]
    if len(unnamed) > 1 or wanted != len(free):
        takes = "any number of" if wanted < 0 else str(wanted)
        names = ", ".join(spec.name for spec in unnamed)
        raise seen.refusal(
            f"no column is called {names}, and {len(free)} columns are left where {spec.name} takes {takes}",
            f'Write a recipe: [data] columns = {{{spec.name} = ["...", "..."]}}, labels = "..."',
        )
    return {spec.name: tuple(free)}


def _texts(names: Sequence[str], seen: _Seen, path: Path) -> tuple[str, ...]:
    found = [texts for texts in _TEXTS if set(texts) <= set(names)]
    customary = " or ".join(" and ".join(texts) for texts in _TEXTS)
    if len(found) != 1:
        why = "no column is customary for text" if not found else "several columns may be the text"
        raise seen.refusal(f"{why} ({customary})", 'Write a recipe: [data] text = "..." and [data.tokenizer] file')
    if not (path.parent / _TOKENIZER).is_file():
        raise seen.refusal(
            f"the model takes tokens, and there is no {_TOKENIZER} beside the file",
            "Put the model's there, or name it in a recipe: [data.tokenizer] file",
        )
    return found[0]


def _of_images(source: str, inputs: Sequence[TensorSpec], base: Path) -> DataSection:
    from compiler.data import images

    root = base / source
    below = [path for path in root.rglob("*") if path.suffix.lower() in images.SUFFIXES] if root.is_dir() else []
    seen = _Seen(source, {"images": f": {len(below)}"})
    if not below:
        raise bad_source(
            f"{source}: {'no images in this folder' if root.is_dir() else 'no such file or folder'}; expected .npz, "
            ".csv, .parquet, a folder of images, or 'module:function'"
        )
    settings = _image_settings(inputs)
    if settings is None:
        takes = ", ".join(f"{spec.name} {_of(spec)}" for spec in inputs)
        raise seen.refusal(f"images do not fit {takes}", "Write a recipe with [data.images]")
    loose = any(path.parent == root for path in below)
    return DataSection(source=source, labels="" if loose else "y", images=settings)


def _image_settings(inputs: Sequence[TensorSpec]) -> ImagesSection | None:
    """Return the channels and size by the shape of the only input; None if it takes no images."""
    if len(inputs) != 1:
        return None
    match inputs[0].shape[1:]:
        case (3 | 1 as channels, height, width):
            layout = "NCHW"
        case (height, width, 3 | 1 as channels):
            layout = "NHWC"
        case (height, width):
            layout, channels = "NCHW", 1
        case _:
            return None
    if height < 1 or width < 1:
        return None  # any size would do, which says nothing of the size that the model was trained with
    return ImagesSection(
        channels="RGB" if channels == 3 else "L",
        layout="NCHW" if layout == "NCHW" else "NHWC",
        resize=(height, width),
    )


def _of_iterator(source: str, inputs: Sequence[TensorSpec], base: Path) -> DataSection:
    plain = DataSection(source=source)
    split = iterator.splits_of(plain, base)[0]
    row = next(iterator.rows(plain, base, split, silent), None)
    if row is None:
        raise bad_source(f"{source}: gave no rows")
    seen = _Seen(source, {name: f" {np.asarray(value).dtype}{list(value.shape)}" for name, value in row.inputs.items()})
    missing = [spec for spec in inputs if spec.name not in row.inputs]
    if missing:
        raise seen.refusal(
            f"gives no {missing[0].name!r}",
            f'Call it so, or write a recipe: [data] inputs = {{{missing[0].name} = "..."}}',
        )
    labels = _labels(list(row.inputs), inputs, seen)
    return DataSection(source=source, labels="y" if row.label is not None else labels)


def _of(spec: TensorSpec) -> str:
    return f"{spec.datatype}{list(spec.shape)}"
