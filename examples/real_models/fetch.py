"""Models out of the wheels on PyPI that carry them: downloaded by pip, known by digest, never installed or run.

``python -m examples.real_models.fetch DIRECTORY`` downloads 53 MB and leaves a file for each model. Their authors'
licences: Apache 2.0 (magika, rapidocr-onnxruntime), MIT (silero-vad), AGPL 3 (nudenet).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 256 * 1024**2
_UNREACHABLE = ("Connection", "Temporary failure", "timed out", "Network is unreachable", "ProxyError", "Max retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A model inside a wheel.

    Attributes:
        wheel: what pip downloads.
        member: the model's place in it; ``digest`` is the SHA-256 of its bytes.
    """

    wheel: str
    member: str
    digest: str


MODELS: Mapping[str, Carried] = {
    "magika": Carried(
        wheel="magika==1.0.3",
        member="magika/models/standard_v3_3/model.onnx",
        digest="fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "silero-vad": Carried(
        wheel="silero-vad==6.2.3",
        member="silero_vad/data/silero_vad_16k_op15.onnx",
        digest="7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    ),
    "ppocr-cls": Carried(
        wheel="rapidocr-onnxruntime==1.4.4",
        member="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        digest="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    ),
    "ppocr-rec": Carried(
        wheel="rapidocr-onnxruntime==1.4.4",
        member="rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        digest="48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
    "ppocr-det": Carried(
        wheel="rapidocr-onnxruntime==1.4.4",
        member="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        digest="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    "nudenet": Carried(
        wheel="nudenet==3.4.2",
        member="nudenet/320n.onnx",
        digest="c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
    ),
}


class Unreachable(RuntimeError):
    """Nothing can be downloaded here."""


def fetch(name: str, directory: Path) -> Path:
    """Return a model's file below ``directory``; its wheel is downloaded unless the file is there.

    Raises:
        Unreachable: there is no way to PyPI. RuntimeError: pip cannot download the wheel, or it holds something else.
    """
    carried, target = MODELS[name], directory / f"{name}.onnx"
    if target.is_file() and _digest(target.read_bytes()) == carried.digest:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        wheel = download(carried.wheel, Path(scratch))
        siblings = {one: other for one, other in MODELS.items() if other.wheel == carried.wheel}
        for other, inside in siblings.items():  # a wheel is downloaded once
            _take(wheel, inside, directory / f"{other}.onnx")
    return target


def download(requirement: str, directory: Path) -> Path:
    """Let pip download one wheel without what it depends on; ``requirement`` may end in ``--hash``.

    Raises:
        Unreachable, RuntimeError: pip cannot; the message is pip's own.
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(requirement + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(directory), "--requirement", str(requirements)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip()[-500:]
        is_unreachable = any(word in done.stderr for word in _UNREACHABLE)
        raise (Unreachable if is_unreachable else RuntimeError)(f"{requirement} cannot be downloaded: {reason}")
    (wheel,) = directory.glob("*.whl")
    return wheel


def _take(wheel: Path, carried: Carried, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(carried.member).file_size > MAX_BYTES:
            raise RuntimeError(f"{wheel.name}: {carried.member} has more than {MAX_BYTES} bytes")
        content = archive.read(carried.member)
    if _digest(content) != carried.digest:
        raise RuntimeError(f"{wheel.name}: {carried.member} is another file than {carried.digest}")
    making = target.with_suffix(".making")
    making.write_bytes(content)
    making.rename(target)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    for model in MODELS:
        print(fetch(model, Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
