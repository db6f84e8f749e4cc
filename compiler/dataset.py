"""The examples a recipe names: read from one npz file, checked against the model, and split by use.

Owns what is refused: wrong names, datatypes and shapes, NaN and infinities, values out of range, labels that are no
classes, a certifying split that was used for something else. Never drops or repairs a row.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.recipe import DataSection, Recipe
from penstock import tensors
from penstock.blobs import digest_of
from penstock.config import nearest
from penstock.errors import InvalidInput
from penstock.tensors import Array, TensorSpec

MAX_NPZ_BYTES = 4 * 1024**3
"""Calibration and certification need thousands of examples, not millions; a larger file is a mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Examples of one use: ``inputs`` by model input name, ``labels`` int64 [N] or None."""

    name: str
    inputs: Mapping[str, Array]
    labels: NDArray[np.int64] | None

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def digest(self) -> str:
        """Of inputs and labels, order included."""
        named = dict(self.inputs)
        return digest_of(tensors.pack(named if self.labels is None else {**named, "<labels>": self.labels}))

    def take(self, rows: NDArray[np.intp] | slice, *, name: str) -> Split:
        """Some of the rows, as a split of another name."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(name=name, inputs={key: array[rows] for key, array in self.inputs.items()}, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One split a use: ``ranges`` (integer ranges), ``temperature``, ``certify`` (looked at once), ``test``."""

    ranges: Split
    temperature: Split
    certify: Split
    test: Split

    def by_use(self) -> dict[str, Split]:
        """Every split under the name of its use."""
        return {"ranges": self.ranges, "temperature": self.temperature, "certify": self.certify, "test": self.test}


def load(recipe: Recipe, inputs: Sequence[TensorSpec], *, classes: int) -> Dataset:
    """Read and check every split that the recipe names.

    Raises:
        InvalidInput: which array of which file is wrong, and what was expected.
    """
    section = recipe.data
    arrays = _read(recipe.npz)

    def split(suffix: str) -> Split:
        return _split(arrays, suffix, recipe, inputs, classes)

    names = section.splits
    fit, certify, test = split(names.fit), split(names.certify), split(names.test)
    ranges, temperature = (fit, split(names.temperature)) if names.temperature else _halves(fit, section)
    for other in (fit, temperature, test):
        if other.digest == certify.digest:
            raise InvalidInput(
                f"{recipe.npz}: splits {certify.name!r} and {other.name!r} hold the same examples; a promise certified "
                "on data that was used for something else would not hold. Set some examples apart",
                field="data.splits",
            )
    return Dataset(ranges=ranges, temperature=temperature, certify=certify, test=test)


def _halves(fit: Split, section: DataSection) -> tuple[Split, Split]:
    if fit.rows < 2:
        raise InvalidInput(
            f"data: split {fit.name!r} has {fit.rows} row; it needs two or more, for ranges and for the temperature",
            field=f"data.{fit.name}",
        )
    order = np.random.default_rng(section.seed).permutation(fit.rows)
    middle = fit.rows // 2
    return fit.take(order[:middle], name="ranges"), fit.take(order[middle:], name="temperature")


def _read(path: Path) -> dict[str, Array]:
    """All arrays of an npz file; object arrays are refused, since reading one would run code."""
    field = "data.npz"
    try:
        with path.open("rb") as raw:
            if raw.read(4) != b"PK\x03\x04":
                raise InvalidInput(f"{path}: not a readable npz file: expected what numpy.savez writes", field=field)
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                unpacked = sum(member.file_size for member in file.zip.infolist())
                if unpacked > MAX_NPZ_BYTES:
                    raise InvalidInput(
                        f"{path}: {unpacked} bytes of arrays, at most {MAX_NPZ_BYTES}; a sample is enough", field=field
                    )
                return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file", field=field) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path}: not a readable npz file of plain arrays: {error}", field=field) from error


def _split(
    arrays: Mapping[str, Array], suffix: str, recipe: Recipe, specs: Sequence[TensorSpec], classes: int
) -> Split:
    section, path = recipe.data, recipe.npz
    for name in section.inputs:
        if name not in {spec.name for spec in specs}:
            raise InvalidInput(
                f"data.inputs: the model has no input {name!r}; {nearest(name, (s.name for s in specs))}",
                field=f"data.inputs.{name}",
            )
    inputs = {}
    for spec in specs:
        key = f"{section.inputs.get(spec.name, spec.name)}_{suffix}"
        array = _array(arrays, key, path)
        field = f"{path.name}:{key}"
        tensors.check_tensor(array, spec, field=field)
        _check_values(array, recipe.model.input_range, field)
        inputs[spec.name] = array
    rows = tensors.check_inputs(inputs, specs)
    labels = None
    if section.labels:
        key = f"{section.labels}_{suffix}"
        labels = _labels(_array(arrays, key, path), rows, classes, f"{path.name}:{key}")
    return Split(name=suffix, inputs=inputs, labels=labels)


def _array(arrays: Mapping[str, Array], key: str, path: Path) -> Array:
    if key not in arrays:
        raise InvalidInput(f"{path}: no array {key!r}; {nearest(key, arrays)}", field=key)
    return arrays[key]


def _check_values(array: Array, allowed: tuple[float, float] | None, field: str) -> None:
    if len(array) == 0:
        raise InvalidInput(f"{field}: no rows", field=field)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise InvalidInput(f"{field}: NaN or infinite values in {len(bad)} rows, first row {bad[0]}", field=field)
    if allowed is None or array.dtype.kind not in "fiu":
        return
    low, high = float(array.min()), float(array.max())
    if low < allowed[0] or high > allowed[1]:
        raise InvalidInput(
            f"{field}: values from {low:g} to {high:g}, but model.input_range is {allowed[0]:g} to {allowed[1]:g}; "
            "were these examples preprocessed differently?",
            field=field,
        )


def _labels(array: Array, rows: int, classes: int, field: str) -> NDArray[np.int64]:
    if array.dtype.kind not in "iu" or array.shape != (rows,):
        raise InvalidInput(
            f"{field}: {array.dtype} {list(array.shape)}, expected one integer class for each of {rows} rows",
            field=field,
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= classes:
        raise InvalidInput(
            f"{field}: labels from {low} to {high}, but the model has classes 0 to {classes - 1}", field=field
        )
    return array.astype(np.int64)
