"""The files of a variant, verified and where an engine can load them from.

A model of several files (external data, tokenizer) cannot be loaded from blobs that are named by their digests: its
files are put side by side in one directory, under the names by which they know each other. Owns that every byte is
verified first (invariant 3) and that no name leads out of the directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.artifact import golden, manifests
from penstock.artifact.blobs import BlobStore, digest_of_file, disk_errors
from penstock.artifact.manifests import Variant
from penstock.errors import DigestMismatch, NotFound, StorageError, TooLarge


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFiles:
    """What a variant is loaded from; every byte has been verified against the manifest.

    Attributes:
        weights: the model file, with the further files of the model beside it.
        golden: the golden vectors' document; None where the variant was packed without, or it is damaged.
        is_golden_damaged: there is one, but not in a state to be replayed.
    """

    weights: Path
    golden: bytes | None
    is_golden_damaged: bool = False


def verified_files(variant: Variant, blobs: BlobStore, root: Path, *, may_lack_golden: bool = False) -> VariantFiles:
    """Verify every blob of a variant; several files of one model are put side by side in a directory under ``root``.

    The directory is made new each time, of hard links where the file system has them: it costs no space, and what is
    loaded is what was verified just now. On a disk that takes no writes the one from before is verified and used.

    Args:
        may_lack_golden: damaged golden vectors are left out: the variant has proved itself on this machine before.

    Raises:
        NotFound, DigestMismatch: a blob is gone or was changed. ArtifactError: a name that leads elsewhere.
        TooLarge: golden vectors beyond ``golden.MAX_BYTES``. StorageError: not writable.
    """
    vectors = _golden(variant, blobs, may_lack=may_lack_golden)
    is_golden_damaged = variant.golden is not None and vectors is None
    if not variant.files:
        weights = blobs.verify(variant.weights.digest)
        return VariantFiles(weights=weights, golden=vectors, is_golden_damaged=is_golden_damaged)
    parts = {_name(described): blobs.verify(described.digest) for described in (variant.weights, *variant.files)}
    directory = root / variant.digest.removeprefix("sha256:")
    try:
        _unpack(parts, directory)
    except StorageError:  # the disk takes no writes; what is there from before is as good if it is the same
        if not _holds(
            directory, {_name(described): described.digest for described in (variant.weights, *variant.files)}
        ):
            raise
    weights = directory / _name(variant.weights)
    return VariantFiles(weights=weights, golden=vectors, is_golden_damaged=is_golden_damaged)


def _unpack(parts: Mapping[str, Path], directory: Path) -> None:
    """Put files side by side in a directory, in place of what was there."""
    root = directory.parent
    with disk_errors(f"unpacking {directory.name}"):
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=root, prefix=".tmp-"))
        try:
            for name, blob in parts.items():
                _link(blob, scratch / name)
            shutil.rmtree(directory, ignore_errors=True)
            os.rename(scratch, directory)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _holds(directory: Path, digests: Mapping[str, str]) -> bool:
    """Tell whether a directory holds these files, each verified against its digest, and no others."""
    try:
        return {path.name: digest_of_file(path) for path in directory.iterdir()} == digests
    except OSError:
        return False


def discard(root: Path, keep: frozenset[str] = frozenset()) -> None:
    """Remove the directories of all variants but those whose manifest digests are in ``keep``."""
    names = {digest.removeprefix("sha256:") for digest in keep}
    for path in root.iterdir() if root.is_dir() else ():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def _golden(variant: Variant, blobs: BlobStore, *, may_lack: bool) -> bytes | None:
    if variant.golden is None:
        return None
    try:
        return blobs.read(variant.golden.digest, limit_bytes=golden.MAX_BYTES)
    except (NotFound, DigestMismatch, TooLarge, StorageError):
        if not may_lack:
            raise
        return None


def _name(described: manifests.Descriptor) -> str:
    return manifests.check_file_name(described.annotations.get(manifests.TITLE, ""))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)
