"""A variant's files side by side in one directory, under the names by which they know each other.

A model of several files (external data, tokenizer) cannot be loaded from blobs that are named by their digests. Owns
that every byte is verified first and that no name leads out of the directory. A variant of one file needs none of this.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore, disk_errors
from penstock.artifact.manifests import Variant


def weights_path(variant: Variant, blobs: BlobStore, root: Path) -> Path:
    """The verified file to load a variant from: its blob, or its weights in a directory of its own under ``root``.

    The directory is made anew each time, of hard links where the file system has them: it costs no space, and what is
    loaded is what was verified just now.

    Raises:
        NotFound, DigestMismatch: a blob is gone or was changed. ArtifactError: a name that leads elsewhere.
        StorageError: not writable.
    """
    weights = blobs.verify(variant.weights.digest)
    if not variant.files:
        return weights
    parts = {manifests.check_file_name(_title(variant.weights)): weights}
    for described in variant.files:
        parts[manifests.check_file_name(_title(described))] = blobs.verify(described.digest)
    directory = root / variant.digest.removeprefix("sha256:")
    with disk_errors(f"unpacking {variant.digest}"):
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
    return directory / _title(variant.weights)


def discard(root: Path, keep: frozenset[str] = frozenset()) -> None:
    """Remove the directories of all variants but those whose manifest digests are in ``keep``."""
    names = {digest.removeprefix("sha256:") for digest in keep}
    for path in root.iterdir() if root.is_dir() else ():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def _title(described: manifests.Descriptor) -> str:
    return described.annotations.get(manifests.TITLE, "")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(source, target)
