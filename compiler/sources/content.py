"""The content of a source as one digest: what decides whether an earlier export may be used again.

Of a file its bytes, of an ONNX file those of its external data too, of a directory every file in it. Of a factory the
file that defines it and the files the recipe lists (``source.files``): what else it imports or reads cannot be known
without running it. A factory that is installed in a toolchain is known by its name; the toolchain's versions are the
caller's to add, as are the settings and the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compiler.recipe.source_section import SourceSection
from compiler.sources.detection import Source
from penstock.artifact.blobs import digest_of, digest_of_file, disk_errors
from penstock.artifact.manifests import canonical_json
from penstock.errors import InvalidInput

MAX_FILES = 10_000


def fingerprint(source: Source, section: SourceSection | None = None) -> str:
    """Return ``sha256:...`` of what can be seen of the source; names below a directory count, where it lies does not.

    Raises:
        InvalidInput: too many files, or one that the recipe lists is missing. StorageError: a file cannot be read.
    """
    section = section or SourceSection()
    with disk_errors(f"reading {source.location}"):
        parts = {name: digest_of_file(path) for name, path in _files(source)}
        for name in section.files:
            path = source.base / name
            if not path.is_file():
                raise InvalidInput(f"source.files: {path}: no such file", field="source.files")
            parts[f"listed:{name}"] = digest_of_file(path)
    return digest_of(
        canonical_json({"kind": source.kind, "module": source.module, "factory": source.factory, "files": parts})
    )


def _files(source: Source) -> Iterator[tuple[str, Path]]:
    if source.kind == "onnx":
        from compiler.graph.files import data_files  # imports onnx

        yield "model", source.location
        for path in data_files(source.location, field="model"):
            yield path.relative_to(source.location.parent).as_posix(), path
    elif source.location.is_file():
        yield "model", source.location
    elif not source.factory:
        yield from _below(source.location)


def _below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Return every file but hidden ones (a downloader's bookkeeping), in the order of their names."""
    found = [
        (path.relative_to(directory).as_posix(), path)
        for path in directory.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    ]
    if len(found) > MAX_FILES:
        raise InvalidInput(
            f"model: {directory} has {len(found)} files, more than {MAX_FILES}; name the model's own directory",
            field="model",
        )
    yield from sorted(found)
