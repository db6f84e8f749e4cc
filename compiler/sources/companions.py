"""Files that travel with a model: its tokenizer, its preprocessing, its configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

from penstock.artifact.blobs import disk_errors
from penstock.errors import InvalidInput

NAMES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "preprocessor_config.json", "processor_config.json", "feature_extractor.json",
)  # fmt: skip
MAX_FILE_BYTES = 256 * 1024**2


def copy(directory: Path, out: Path) -> tuple[Path, ...]:
    """Copy those of ``directory`` into ``out``, in the order of :data:`NAMES`.

    Raises:
        InvalidInput: one is too large to be what its name says. StorageError: it cannot be copied.
    """
    copied = []
    for name in NAMES:
        path = directory / name
        if not path.is_file():
            continue
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"model: {path} has more than {MAX_FILE_BYTES} bytes", field="model")
        with disk_errors(f"copying {path}"):
            shutil.copyfile(path, out / name)
        copied.append(out / name)
    return tuple(copied)
