"""The digest that decides whether an export is reused: it changes with the content, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compiler import sources
from compiler.sources import SourceSection, fingerprint
from penstock.errors import InvalidInput


def factory(base: Path, content: str = "def make(): ...") -> Path:
    base.mkdir(parents=True, exist_ok=True)
    (base / "net.py").write_text(content)
    return base


def hugging_face(base: Path) -> Path:
    (base / "dir" / ".cache").mkdir(parents=True)
    (base / "dir" / "config.json").write_text('{"architectures": ["BertModel"]}')
    (base / "dir" / "model.safetensors").write_bytes(b"weights")
    return base


def of(model: str, base: Path, section: SourceSection | None = None) -> str:
    return fingerprint(sources.detect(model, base, section), section)


def test_a_factory_is_its_file_wherever_it_lies(tmp_path: Path) -> None:
    a, b = factory(tmp_path / "a"), factory(tmp_path / "b")
    assert of("net.py:make", a) == of("net.py:make", b)
    assert of("net.py:make", a) != of("net.py:other", a)
    factory(b, "def make(): return 1")
    assert of("net.py:make", a) != of("net.py:make", b)


def test_listed_files_count(tmp_path: Path) -> None:
    base, section = factory(tmp_path), SourceSection(files=("weights.pt",))
    with pytest.raises(InvalidInput, match=r"source.files: .*weights.pt: no such file"):
        of("net.py:make", base, section)
    (base / "weights.pt").write_bytes(b"one")
    first = of("net.py:make", base, section)
    (base / "weights.pt").write_bytes(b"two")
    assert of("net.py:make", base, section) != first


def test_every_file_of_a_directory_counts_but_hidden_ones(tmp_path: Path) -> None:
    base = hugging_face(tmp_path)
    first = of("dir", base)
    (base / "dir" / ".cache" / "bookkeeping").write_text("x")
    assert of("dir", base) == first
    (base / "dir" / "vocab.txt").write_text("x")
    changed = of("dir", base)
    assert changed != first
    (base / "dir" / "vocab.txt").rename(base / "dir" / "words.txt")
    assert of("dir", base) != changed


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    """As a hub's cache keeps its snapshots."""
    base = hugging_face(tmp_path)
    first = of("dir", base)
    (base / "dir" / "model.safetensors").rename(base / "blob")
    (base / "dir" / "model.safetensors").symlink_to(base / "blob")
    assert of("dir", base) == first


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["compiler.sources.content"], "MAX_FILES", 1)
    with pytest.raises(InvalidInput, match="has 2 files, more than 1; name the model's own directory"):
        of("dir", hugging_face(tmp_path))
