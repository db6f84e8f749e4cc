"""A fingerprint changes with every byte that a dataset depends on, and with nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models

from compiler import data
from compiler.data import DataSection
from compiler.recipe.data_section import ImagesSection, NormalizeSection, TokenizerSection
from penstock.artifact.manifests import preprocessing_digest
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

PIXELS = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 4, 4))


def test_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("x,y\n1,0\n")
    section = DataSection(source="d.csv")
    first = data.fingerprint(section, tmp_path)
    assert first.startswith("sha256:")
    os.utime(path, (1, 1))
    assert data.fingerprint(section, tmp_path) == first
    assert data.fingerprint(DataSection(source="d.csv", seed=1), tmp_path) != first
    path.write_text("x,y\n1,1\n")
    assert data.fingerprint(section, tmp_path) != first
    with pytest.raises(InvalidInput, match="e.csv: no such file"):
        data.fingerprint(DataSection(source="e.csv"), tmp_path)


def test_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / "1.png")
    section = DataSection(source="photos")
    first = data.fingerprint(section, tmp_path)
    (tmp_path / "photos" / ".DS_Store").write_text("x")
    assert data.fingerprint(section, tmp_path) == first
    (tmp_path / "photos" / "b" / "1.png").rename(tmp_path / "photos" / "b" / "2.png")
    assert data.fingerprint(section, tmp_path) != first


def test_of_an_iterator_are_its_rows_and_not_its_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.py"
    path.write_text("def rows():\n    yield {'x': [1.0]}, 0\n")
    section = DataSection(source="rows.py:rows")
    first = data.fingerprint(section, tmp_path)
    path.write_text("# the same\ndef rows():\n    yield {'x': [1.0]}, 0\n")
    assert data.fingerprint(section, tmp_path) == first
    for other in ("{'x': [2.0]}, 0", "{'x': [1.0]}, 1", "{'x': [1.0]}", "{'z': [1.0]}, 0"):
        path.write_text(f"def rows():\n    yield {other}\n")
        assert data.fingerprint(section, tmp_path) != first


def test_of_text_includes_the_tokenizer(tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    write_csv({"text": ["a"], "y": [0]})
    section = DataSection(source="table.csv", text="text", tokenizer=TokenizerSection(file="tokenizer.json"))
    digests = set()
    for vocabulary in ({"a": 0, "[PAD]": 1}, {"a": 1, "[PAD]": 0}):
        Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
        digests.add(data.fingerprint(section, tmp_path))
    assert len(digests) == 2


def bound(section: DataSection, base: Path, *inputs: TensorSpec) -> dict[str, Any]:
    done = data.preprocessing(section, base, inputs)
    preprocessing_digest(done)  # plain JSON
    return done


def test_preprocessing_says_what_was_done_to_raw_data(tmp_path: Path) -> None:
    assert bound(DataSection(source="d.npz"), tmp_path, PIXELS) == {}
    assert bound(DataSection(source="m:f"), tmp_path, PIXELS) == {}
    (tmp_path / "d.csv").write_text("size,b2,b1,a,title,y\n1,2,3,4,word,0\n")
    table = DataSection(source="d.csv", columns={"x": ("a", "b*")})
    size = TensorSpec(name="size", datatype="FP32", shape=(-1,))
    assert bound(table, tmp_path, PIXELS, size) == {"columns": {"x": ["a", "b2", "b1"], "size": ["size"]}}
    normal = NormalizeSection(mean=(0.5,) * 3, std=(0.25,) * 3)
    photos = DataSection(source="photos", images=ImagesSection(resize=8, center_crop=4, normalize=normal))
    assert bound(photos, tmp_path, PIXELS) == {
        "images": {
            "channels": "RGB",
            "layout": "NCHW",
            "resize": 8,
            "resample": "bilinear",
            "center_crop": 4,
            "rescale": 1 / 255,
            "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        }
    }


def test_preprocessing_binds_the_tokenizer_and_the_length_that_was_used(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "d.csv").write_text("title,y\nword,0\n")
    section = DataSection(source="d.csv", text="title", tokenizer=TokenizerSection(file="tokenizer.json"))
    ids = TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 32))
    done = bound(section, tmp_path, ids)
    assert done["columns"] == {}
    assert done["tokenizer"].pop("digest").startswith("sha256:")
    assert done["tokenizer"] == {
        "text": ["title"],
        "max_length": 32,
        "padding": "max_length",
        "truncation": "longest_first",
        "pad_token": "",
    }


def test_a_large_file_is_read_as_a_stream(tmp_path: Path) -> None:
    import tracemalloc

    np.savez(tmp_path / "d.npz", x=np.zeros(8_000_000, np.float32))
    tracemalloc.start()
    data.fingerprint(DataSection(source="d.npz"), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
