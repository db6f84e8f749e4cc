"""Examples from one npz file: arrays ``<input>_<split>``, or ``<input>`` alone for a file without splits of its own.

Owns that reading runs no code (no pickles) and that sizes are checked before arrays are made. Arrays must have the
model's own datatypes: whoever saved them chose one, and a cast would hide a mistake. Text is an array of str.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path

import numpy as np

from compiler.data import belonging, untrusted
from compiler.data.parts import ALL, CLUSTERS, GROUPS, LABELS, Part, Request, bad_source, too_large
from compiler.recipe.data_section import DataSection
from penstock.errors import InvalidInput
from penstock.process.config import nearest
from penstock.wire.tensors import Array, TensorSpec


def read(request: Request) -> list[Part]:
    """Read the arrays: one part for each split, or one for everything.

    Raises:
        InvalidInput: no such file, not an npz file of plain arrays, too large, or an array that is not there.
    """
    arrays = arrays_of(request.path, request.section.limits.max_bytes)
    splits = _splits(arrays, request.section, request.inputs)
    cluster_by = _cluster_by(arrays, splits, request)
    return [_part(arrays, split, request, cluster_by) for split in splits]


def splits_of(section: DataSection, base: Path, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the file's own splits that are read; ``(ALL,)`` when it has none.

    Raises:
        InvalidInput: as :func:`read`.
    """
    return _splits(arrays_of(base / section.source, section.limits.max_bytes), section, inputs)


def _splits(names: Container[str], section: DataSection, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Say which splits the arrays hold: those without a suffix hold everything, unless there are some with one too."""
    stems = [section.inputs.get(spec.name, spec.name) for spec in inputs]
    own = tuple(section.splits.names_in(lambda name: all(f"{stem}_{name}" in names for stem in stems)).values())
    is_whole = all(stem in names for stem in stems)
    return own if not is_whole or any(f"{stem}_{name}" in names for stem in stems for name in own) else (ALL,)


def _cluster_by(names: Collection[str], splits: Sequence[str], request: Request) -> str:
    """Return the array that says what belongs together, "" for none; one that nobody named has to be in every split."""
    section = request.section
    taken = [section.labels, section.group_by, *(section.inputs.get(spec.name, spec.name) for spec in request.inputs)]
    stems = [name.removesuffix(f"_{splits[0]}") if splits[0] else name for name in names]
    found = belonging.column(section, stems, taken)
    is_there = all((f"{found}_{split}" if split else found) in names for split in splits)
    return found if section.cluster_by or is_there else ""


def arrays_of(path: Path, limit_bytes: int) -> dict[str, Array]:
    """Read all arrays of an npz file; object arrays are refused, since reading one would run code.

    Raises:
        InvalidInput: as :func:`read`.
    """
    try:
        with path.open("rb") as raw:
            if raw.read(4) != b"PK\x03\x04":
                raise bad_source(f"{path}: not a readable npz file: expected what numpy.savez writes")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                unpacked = sum(member.file_size for member in file.zip.infolist())
                if unpacked > limit_bytes:
                    raise too_large(f"{path}: {unpacked} bytes of arrays, at most {limit_bytes}", "max_bytes")
                return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise bad_source(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise bad_source(
                f"{path}: holds an array of Python objects, and reading one would run code; save text as "
                "array.astype(str), and numbers as numbers"
            ) from error
        raise bad_source(f"{path}: not a readable npz file of plain arrays: {error}") from error


def _part(arrays: Mapping[str, Array], split: str, request: Request, cluster_by: str) -> Part:
    section = request.section
    inputs, fields = {}, {}

    def array(stem: str, field: str) -> Array:
        key = f"{stem}_{split}" if split else stem
        if key not in arrays:
            is_input = field not in (LABELS, GROUPS, CLUSTERS)
            hint = f'; [data] may name it: inputs = {{ {field} = "NAME" }}' if is_input else ""
            raise InvalidInput(f"{request.path}: no array {key!r}; {nearest(key, arrays)}{hint}", field=key)
        fields[field] = f"{request.path.name}:{key}"
        return arrays[key]

    for spec in request.inputs:
        given = array(section.inputs.get(spec.name, spec.name), spec.name)
        is_text = given.dtype.kind in "SU"  # an array of str is as wide as its longest word
        inputs[spec.name] = untrusted.words(given, field=fields[spec.name]) if is_text else given
    return Part(
        split=split,
        inputs=inputs,
        labels=array(section.labels, LABELS) if request.wants_labels else None,
        groups=array(section.group_by, GROUPS) if section.group_by else None,
        fields=fields,
        clusters=array(cluster_by, CLUSTERS) if cluster_by else None,
        cluster_by=cluster_by,
    )
