"""Rows for the models of ``examples.real_models.fetch``, of what every machine has.

That is: the files of this Python, two photographs of scikit-learn, prose of the standard library drawn as pictures, and
sound that is made here. The same arguments give the same rows on one machine. What a model's authors do to raw data
before it is their model's input is done here in the same way (their packages are not imported).
"""

from __future__ import annotations

import ast
import os
import string
import sysconfig
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rows = dict[str, NDArray[Any]]

KINDS: Mapping[str, int] = {
    ".c": 17, ".css": 31, ".csv": 32, ".gz": 64, ".h": 17, ".html": 71, ".js": 83, ".json": 87, ".md": 100, ".npy": 110,
    ".npz": 111, ".pdf": 127, ".png": 133, ".py": 143, ".pyc": 144, ".rst": 153, ".so": 46, ".svg": 172, ".toml": 181,
    ".ttf": 184, ".xml": 206,
}  # fmt: skip
"""What magika calls a file with this ending, as a number of its 214 answers."""

PACKAGES = (
    "asyncio",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
)
"""Of the standard library: those that explain most of what they define, and no two about the same."""

_MIN_WORDS, _MAX_CHARS = 4, 400
_EDGE_BYTES, _BLOCK_BYTES, _PADDING = 1024, 4096, 256
_MIN_FILE_BYTES = 256
_RATE, _CHUNK, _CONTEXT = 16_000, 512, 64


def magika(count: int, *, seed: int = 0) -> Rows:
    """Take files of this Python by kind, in turn: ``bytes`` int32 [N, 2048], their first and last 1024 bytes, and
    ``y`` int64 [N].
    """
    source = np.random.default_rng(seed)
    found: dict[bytes, tuple[NDArray[np.int32], int]] = {}
    by_kind = {kind: [paths[at] for at in source.permutation(len(paths))] for kind, paths in _files().items()}
    while len(found) < count and by_kind:
        for kind in list(by_kind):
            path = by_kind[kind].pop()
            if path.stat().st_size >= _MIN_FILE_BYTES and len(found) < count:
                row = edges(path)
                found.setdefault(row.tobytes(), (row, KINDS[kind]))
            if not by_kind[kind]:
                del by_kind[kind]
    return {
        "bytes": np.stack([row for row, _ in found.values()]),
        "y": np.array([label for _, label in found.values()], np.int64),
    }


@cache
def _files() -> dict[str, list[Path]]:
    """List files of the standard library and of what is installed, by ending."""
    found: dict[str, list[Path]] = {kind: [] for kind in sorted(KINDS)}
    for place in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}):
        for directory, _, names in os.walk(place):
            for name in names:
                ending = os.path.splitext(name)[1]
                if ending in found:
                    found[ending].append(Path(directory, name))
    return {kind: sorted(paths) for kind, paths in found.items() if paths}


def edges(path: Path) -> NDArray[np.int32]:
    """Return the first 1024 bytes of a file and its last, without white space around them; 256 where it is shorter."""
    with path.open("rb") as file:
        first = file.read(_BLOCK_BYTES).lstrip()[:_EDGE_BYTES]
        file.seek(-min(_BLOCK_BYTES, path.stat().st_size), os.SEEK_END)
        last = file.read().rstrip()[-_EDGE_BYTES:]
    row = np.full(2 * _EDGE_BYTES, _PADDING, np.int32)
    row[: len(first)] = np.frombuffer(first, np.uint8)
    row[len(row) - len(last) :] = np.frombuffer(last, np.uint8)
    return row


def silero_vad(count: int, model: Path, *, seed: int = 0) -> Rows:
    """Make 32 ms pieces of sound, with the state that the model itself was in before each: ``input`` FP32 [N, 576],
    ``state`` FP32 [N, 2, 1, 128] and ``sr`` INT64 [N].
    """
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    sound = _sound(count * _CHUNK + _CONTEXT, np.random.default_rng(seed))
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(_RATE, np.int64)
    inputs, states = [], []
    for at in range(count):
        piece = sound[None, at * _CHUNK : (at + 1) * _CHUNK + _CONTEXT]
        inputs.append(piece)
        states.append(state)
        state = session.run(["stateN"], {"input": piece, "state": state, "sr": rate})[0]
    return {"input": np.concatenate(inputs), "state": np.stack(states), "sr": np.full(count, rate, np.int64)}


def _sound(samples: int, source: np.random.Generator) -> NDArray[np.float32]:
    """Make vowels (a pitch that wanders, three formants) that come and go in noise."""
    time_s = np.arange(samples) / _RATE
    pitch_hz = 140 + 50 * np.sin(2 * np.pi * 0.31 * time_s) + 15 * np.sin(2 * np.pi * 5.0 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / _RATE
    formants = [
        (600 + 250 * np.sin(2 * np.pi * 1.3 * time_s), 90),
        (1500 + 500 * np.sin(2 * np.pi * 0.9 * time_s), 120),
    ]
    voice = np.zeros(samples)
    for harmonic in range(1, 25):
        at_hz = harmonic * pitch_hz
        loud = sum(1 / (1 + ((at_hz - centre_hz) / width_hz) ** 2) for centre_hz, width_hz in formants)
        voice += loud * np.sin(harmonic * phase) / np.sqrt(harmonic)
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time_s), 0, None) ** 0.5
    turns = (np.sin(2 * np.pi * 0.4 * time_s) > 0).astype(float)
    mixed = 0.25 * voice * syllables * turns + 0.01 * source.standard_normal(samples)
    return np.asarray(np.clip(mixed, -1, 1), np.float32)


def ppocr_cls(count: int, *, seed: int = 0) -> Rows:
    """Draw lines of prose, every other one upside down: ``x`` FP32 [N, 3, 48, 192] and ``y`` int64 [N]."""
    source = np.random.default_rng(seed)
    pictures = [_line(192, source) for _ in range(count)]
    turned = np.arange(count) % 2
    return {
        "x": np.stack([_normal(p.rotate(180) if flip else p) for p, flip in zip(pictures, turned, strict=True)]),
        "y": turned.astype(np.int64),
    }


def ppocr_rec(count: int, *, width: int = 320, seed: int = 0) -> Rows:
    """Draw lines of prose: ``x`` FP32 [N, 3, 48, width]."""
    source = np.random.default_rng(seed)
    return {"x": np.stack([_normal(_line(width, source)) for _ in range(count)])}


def ppocr_det(count: int, *, side: int = 160, seed: int = 0) -> Rows:
    """Draw lines of prose into pieces of photographs: ``x`` FP32 [N, 3, side, side]."""
    source = np.random.default_rng(seed)
    rows = []
    for picture in _pieces(count, side, source):
        for _ in range(3):
            line = _line(side, source).resize((int(source.integers(side // 2, side)), int(source.integers(12, 28))))
            picture.paste(line, (int(source.integers(0, side - line.width + 1)), int(source.integers(0, side - 28))))
        rows.append(_normal(picture))
    return {"x": np.stack(rows)}


def nudenet(count: int, *, side: int = 320, seed: int = 0) -> Rows:
    """Take pieces of photographs: ``images`` FP32 [N, 3, side, side], from 0 to 1."""
    pieces = _pieces(count, side, np.random.default_rng(seed))
    return {"images": np.stack([(_normal(piece) + 1) / 2 for piece in pieces])}


def photographs(count: int, *, side: int = 96, seed: int = 0) -> Rows:
    """Take pieces of photographs: ``x`` FP32 [N, 3, side, side], from -1 to 1."""
    pieces = _pieces(count, side, np.random.default_rng(seed))
    return {"x": np.stack([_normal(piece) for piece in pieces])}


def texts(count: int, *, length: int = 64, seed: int = 0) -> Rows:
    """Take sentences of the standard library, as bytes: ``input_ids``, ``attention_mask`` and ``token_type_ids`` INT64
    [N, length]. A byte is a token; 0 fills up.
    """
    found = definitions(count, seed=seed)["sentence"][:, 0]
    ids = np.zeros((len(found), length), np.int64)
    for row, sentence in zip(ids, found, strict=True):
        some = np.frombuffer(str(sentence).encode()[:length], np.uint8)
        row[: len(some)] = some
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}


def definitions(count: int, *, seed: int = 0) -> Rows:
    """Take classes and functions of the standard library that say what they do: ``kind`` text [N, 2] (what it is, and
    the first word about it), ``sentence`` text [N, 1], ``sizes`` FP32 [N, 2] (lines and arguments), and ``y`` int64
    [N], which of ``PACKAGES`` it is from.
    """
    found = _definitions()
    some = [found[at] for at in np.random.default_rng(seed).permutation(len(found))[:count]]
    return {
        "kind": np.array([one[:2] for one in some]),
        "sentence": np.array([one[2:3] for one in some]),
        "sizes": np.array([one[3:5] for one in some], np.float32),
        "y": np.array([one[5] for one in some], np.int64),
    }


@cache
def _definitions() -> list[tuple[str, str, str, int, int, int]]:
    """List kind, first word, sentence, lines, arguments and package, each sentence once; files are never imported."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, tuple[str, str, str, int, int, int]] = {}
    for label, package in enumerate(PACKAGES):
        for path in sorted((library / package).rglob("*.py")):
            if not {"test", "tests"} & set(path.parts):
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                        sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())[:_MAX_CHARS]
                        if len(words := sentence.split()) >= _MIN_WORDS:
                            lines = (node.end_lineno or node.lineno) - node.lineno + 1
                            arguments = 0 if isinstance(node, ast.ClassDef) else len(node.args.args)
                            kind = type(node).__name__
                            found.setdefault(sentence, (kind, words[0], sentence, lines, arguments, label))
    return list(found.values())


def _pieces(count: int, side: int, source: np.random.Generator) -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    whole_ones = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    found = []
    for number in range(count):
        whole = whole_ones[number % len(whole_ones)]
        size = int(source.integers(120, min(whole.size)))
        left, top = int(source.integers(0, whole.width - size)), int(source.integers(0, whole.height - size))
        found.append(whole.crop((left, top, left + size, top + size)).resize((side, side)))
    return found


def _line(width: int, source: np.random.Generator) -> Image.Image:
    """Draw a few words of the standard library's own prose, as they come out of a scan: ink, paper and noise."""
    words = _prose()
    at = int(source.integers(0, len(words) - 8))
    text = " ".join(words[at : at + int(source.integers(1, 2 + width // 80))])
    paper, ink = source.integers(170, 256, 3), source.integers(0, 90, 3)
    picture = Image.new("RGB", (width, 48), tuple(paper.tolist()))
    font = ImageFont.load_default(size=int(source.integers(20, 34)))
    ImageDraw.Draw(picture).text(
        (int(source.integers(2, 10)), int(source.integers(2, 10))), text, tuple(ink.tolist()), font
    )
    noisy = np.asarray(picture) + source.normal(0, source.uniform(0, 12), (48, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@cache
def _prose() -> list[str]:
    from pydoc_data.topics import topics

    letters = set(string.ascii_letters)
    return [word for topic in sorted(topics) for word in topics[topic].split() if letters.issuperset(word.strip(".,"))]


def _normal(picture: Image.Image) -> NDArray[np.float32]:
    """Return channels first, from -1 to 1."""
    return np.ascontiguousarray((np.asarray(picture, np.float32) / 127.5 - 1).transpose(2, 0, 1))


ROWS: Mapping[str, Callable[..., Rows]] = {
    "magika": magika,
    "silero-vad": silero_vad,
    "ppocr-cls": ppocr_cls,
    "ppocr-rec": ppocr_rec,
    "ppocr-det": ppocr_det,
    "nudenet": nudenet,
}
