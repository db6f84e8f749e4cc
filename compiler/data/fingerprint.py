"""What a source holds, as a digest for the cache of steps, and what was done to it, for the certificate to bind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compiler.data import iterator, table, text
from compiler.data.parts import Request, bad_source, silent
from compiler.recipe.data_section import DataSection, ImagesSection, kind_of
from penstock.artifact.blobs import digest_of, digest_of_file
from penstock.artifact.manifests import canonical_json
from penstock.wire import tensors
from penstock.wire.tensors import Array, TensorSpec


def fingerprint(section: DataSection, base: Path) -> str:
    """Return ``sha256:<hex>`` over the settings and every byte of the source (and tokenizer): equal only for equal
    datasets.

    Files are read as a stream, once. An iterator is run to its end, since nothing else tells what it gives.

    Raises:
        InvalidInput: no such source; or an iterator's own failure.
    """
    hasher = hashlib.sha256(canonical_json(section))
    kind = kind_of(section.source)
    parts = _of_iterator(section, base) if kind == "iterator" else _of_files(base / section.source)
    for part in parts:
        hasher.update(digest_of(part).encode())
    if section.tokenizer.file:
        hasher.update(_of_file(base / section.tokenizer.file).encode())
    return "sha256:" + hasher.hexdigest()


def preprocessing(section: DataSection, base: Path, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return what becomes of raw data before it is ``inputs``, as plain JSON for ``VariantSpec.preprocessing``.

    Empty for arrays that come as the model takes them (npz, and an iterator without text): what was done to those only
    the recipe's own table [preprocessing] can say.

    Raises:
        InvalidInput: no such table, column or tokenizer. ConfigError: its length is not the model's.
    """
    done: dict[str, Any] = {}
    kind = kind_of(section.source)
    if kind in ("csv", "parquet"):
        request = Request(section=section, base=base, inputs=inputs, wants_labels=False, progress=silent)
        done["columns"] = table.columns_by_input(request, table.open_table(request).names())
    if kind == "images":
        done["images"] = _of_images(section.images, inputs)
    if section.text:
        settings = section.tokenizer
        length, padded = text.lengths(section, inputs, own=text.own_length(base / settings.file))
        done["tokenizer"] = {
            "digest": _of_file(base / settings.file),
            "text": list(section.text_columns),
            "max_length": length,
            "padding": "max_length" if padded else "longest",
            "truncation": settings.truncation,
            "pad_token": settings.pad_token,
        }
    return done


def _of_images(images: ImagesSection, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return the settings with the default that depends on the input filled in."""
    done: dict[str, Any] = msgspec.json.decode(canonical_json(images))
    floats = any(spec.datatype.startswith("FP") for spec in inputs)
    return done | {"rescale": images.rescale or (1 / 255 if floats else 1.0)}


def _of_file(path: Path) -> str:
    try:
        return digest_of_file(path)
    except FileNotFoundError:
        raise bad_source(f"{path}: no such file") from None
    except OSError as error:
        raise bad_source(f"{path}: {error.strerror}") from error


def _of_files(path: Path) -> Iterator[bytes]:
    """Return a file's digest; a folder's are those of every file in it with its place, hidden ones left out."""
    if not path.is_dir():
        yield _of_file(path).encode()
        return
    for file in sorted(path.rglob("*")):
        place = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in place.parts):
            yield canonical_json([place.as_posix(), _of_file(file)])


def _of_iterator(section: DataSection, base: Path) -> Iterator[bytes]:
    for split in iterator.splits_of(section, base):
        yield split.encode()
        for row in iterator.rows(section, base, split, silent):
            named: dict[str, Array] = {name: row.inputs[name] for name in sorted(row.inputs)}
            if row.label is not None:
                named["<label>"] = row.label
            yield tensors.pack({name: array.reshape(1, *array.shape) for name, array in named.items()})
