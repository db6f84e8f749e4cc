"""Compiling without a recipe: what has one reading is read so, and the rest is refused with what was seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tokenizers import Tokenizer, models

from compiler import data
from compiler.data import DataSection, loading
from penstock.errors import ConfigError, InvalidInput
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, 8, 8))
Z = TensorSpec(name="z", datatype="INT64", shape=(-1,))


def saved(tmp_path: Path, **arrays: Any) -> DataSection | str:
    np.savez(tmp_path / "d.npz", **arrays)
    return "d.npz"


F = np.random.default_rng(0).normal(0, 1, (30, 4)).astype(np.float32)
Y = np.arange(30) % 3


@pytest.mark.parametrize(
    ("arrays", "inputs", "expected"),
    [
        ({"x": F, "y": Y}, [X], {}),
        ({"x": F}, [X], {"labels": ""}),
        (
            {"features": F, "Target": Y, "names": np.array(["a"])},
            [X],
            {"inputs": {"x": "features"}, "labels": "Target"},
        ),
        ({"z": Y, "data": F, "label": Y}, [X, Z], {"inputs": {"x": "data"}, "labels": "label"}),
        ({f"{n}_{s}": a for n, a in {"x": F, "y": Y}.items() for s in ("fit", "certify", "test")}, [X], {}),
        (
            {f"{n}_{s}": a for n, a in {"p": F, "y": Y}.items() for s in ("fit", "tune", "certify", "test")},
            [X],
            {"inputs": {"x": "p"}},
        ),
    ],
)
def test_arrays_by_name_or_as_the_only_ones_that_fit(
    tmp_path: Path, arrays: dict[str, Any], inputs: list[TensorSpec], expected: dict[str, Any]
) -> None:
    saved(tmp_path, **arrays)
    assert data.infer("d.npz", inputs, base=tmp_path) == DataSection(source="d.npz", **expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": F, "b": F}, r"d.npz: several arrays fit input x FP32\[-1, 4\]; it has a float32\[30, 4\], b float32"),
        (
            {"a": F.astype(float), "y": Y},
            r"no array fits input x FP32\[-1, 4\]; it has a float64\[30, 4\], y int64\[30\]",
        ),
        ({"x": F, "y": Y, "label": Y}, "y and label may all be the labels; it has"),
        ({"x_train": F, "x_test": F}, r"several arrays fit .* or write a recipe: \[data\] inputs = \{x = "),
        ({"y": Y}, r"no array fits input x FP32\[-1, 4\]; it has y int64\[30\]. Name an array 'x', or write"),
    ],
)
def test_arrays_with_several_readings_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    saved(tmp_path, **arrays)
    with pytest.raises(InvalidInput, match=message):
        data.infer("d.npz", [X], base=tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_that_are_left_are_the_only_input(
    tmp_path: Path, wine: Any, write_csv: Callable[..., Path], suffix: str
) -> None:
    columns = {name: wine.x[:, at] for at, name in enumerate(wine.columns)} | {"class": wine.y}
    write_csv(columns, "wine.csv")
    parquet.write_table(pa.table(columns), tmp_path / "wine.parquet")
    spec = TensorSpec(name="input", datatype="FP32", shape=(-1, 13))
    guessed = data.infer(f"wine.{suffix}", [spec], base=tmp_path)
    assert guessed.labels == "class"
    assert guessed.columns == {"input": tuple(wine.columns)}
    loaded = loading.load(guessed, tmp_path, [spec], classes=3)
    assert {row.tobytes() for s in loaded.by_use().values() for row in s.inputs["input"]} == {
        row.tobytes() for row in wine.x
    }


def test_what_rows_belong_to_is_no_input_where_the_others_are_enough(
    tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    write_csv({"a": [1.5, 2.5], "patient_id": [1, 1], "b": [1.5, 2.5], "y": [0, 1]})
    two, three = (TensorSpec(name="x", datatype="FP32", shape=(-1, width)) for width in (2, 3))
    assert data.infer("table.csv", [two], base=tmp_path).columns == {"x": ("a", "b")}
    assert data.infer("table.csv", [three], base=tmp_path).columns == {"x": ("a", "patient_id", "b")}


def test_columns_by_the_names_of_inputs_and_a_column_of_splits(tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    write_csv({"a": [1, 2], "z": [1, 2], "other": [0, 0], "split": ["fit", "test"], "y": [0, 1]})
    a = TensorSpec(name="a", datatype="FP32", shape=(-1, 1))
    guessed = data.infer("table.csv", [a, Z], base=tmp_path)
    assert (guessed.columns, guessed.labels, guessed.splits.column) == ({}, "y", "split")


@pytest.mark.parametrize(
    ("columns", "inputs", "message"),
    [
        (
            {"a": [1], "b": [1], "y": [0]},
            [X],
            "no column is called x, and 2 columns are left where x takes 4; it has a",
        ),
        ({"a": [1], "y": [0]}, [X, Z], "no column is called x, z, and 1 columns are left"),
        ({"a": [1], "target": [0], "class": [1]}, [X], "target and class may all be the labels"),
        (
            {"a": [1]},
            [TensorSpec(name="x", datatype="FP32", shape=(-1, -1))],
            "1 columns are left where x takes any number of",
        ),
        ({"a": [1], "y": [0]}, [TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 8))], "customary for text"),
        (
            {"text": ["a"], "sentence": ["b"]},
            [TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 8))],
            "several columns may be the text",
        ),
        (
            {"text": ["a"], "y": [0]},
            [TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 8))],
            "there is no tokenizer.json beside the file",
        ),
    ],
)
def test_tables_with_several_readings_are_refused(
    tmp_path: Path, write_csv: Callable[..., Path], columns: dict[str, Any], inputs: list[TensorSpec], message: str
) -> None:
    write_csv(columns)
    with pytest.raises(InvalidInput, match=message):
        data.infer("table.csv", inputs, base=tmp_path)


@pytest.mark.parametrize("columns", [("text",), ("question", "context")])
def test_text_by_customary_names_and_the_tokenizer_beside_it(
    tmp_path: Path, write_csv: Callable[..., Path], columns: tuple[str, ...]
) -> None:
    write_csv({**{name: [f"a {n}" for n in range(30)] for name in columns}, "label": list(range(2)) * 15})
    Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    ids = TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 8))
    guessed = data.infer("table.csv", [ids], base=tmp_path)
    assert (guessed.text_columns, guessed.tokenizer.file, guessed.labels) == (columns, "tokenizer.json", "label")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((-1, 3, 8, 9), ("RGB", "NCHW", (8, 9))),
        ((-1, 8, 9, 3), ("RGB", "NHWC", (8, 9))),
        ((-1, 1, 8, 9), ("L", "NCHW", (8, 9))),
        ((-1, 8, 9), ("L", "NCHW", (8, 9))),
    ],
)
def test_images_by_the_shape_of_the_input(tmp_path: Path, shape: tuple[int, ...], expected: Any) -> None:
    for at in range(12):
        path = tmp_path / "photos" / "ab"[at % 2] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 5, 3), at * 20, np.uint8)).save(path)
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)
    guessed = data.infer(Path("photos"), [spec], base=tmp_path)
    assert (guessed.images.channels, guessed.images.layout, guessed.images.resize) == expected
    loaded = loading.load(guessed, tmp_path, [spec], classes=2)
    assert loaded.certify.inputs["x"].shape[1:] == shape[1:]
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "loose.png")
    assert data.infer("photos", [spec], base=tmp_path).labels == ""


def test_images_that_fit_no_input(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InvalidInput, match="photos: no images in this folder"):
        data.infer("photos", [IMAGE], base=tmp_path)
    with pytest.raises(InvalidInput, match="nothing: no such file or folder; expected .npz"):
        data.infer("nothing", [IMAGE], base=tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "a.png")
    free = TensorSpec(name="image", datatype="FP32", shape=(-1, 3, -1, -1))
    for inputs in ([X], [IMAGE, X], [free]):
        with pytest.raises(InvalidInput, match=r"photos: images do not fit .*; it has images: 1. Write a recipe"):
            data.infer("photos", inputs, base=tmp_path)


def test_an_iterator_by_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.py"
    path.write_text("def rows():\n    yield {'x': [1, 2, 3, 4]}, 0\n")
    assert data.infer("rows.py:rows", [X], base=tmp_path) == DataSection(source="rows.py:rows")
    path.write_text("def rows():\n    yield {'x': [1, 2, 3, 4], 'label': 0}\n")
    assert data.infer("rows.py:rows", [X], base=tmp_path).labels == "label"
    path.write_text("def rows():\n    yield {'x': [1, 2, 3, 4]}\n")
    assert data.infer("rows.py:rows", [X], base=tmp_path).labels == ""
    with pytest.raises(InvalidInput, match=r"rows.py:rows: gives no 'z'; it has x int64\[4\]. Call it so, or write"):
        data.infer("rows.py:rows", [Z], base=tmp_path)
    path.write_text("def rows():\n    return []\n")
    with pytest.raises(InvalidInput, match="gave no rows"):
        data.infer("rows.py:rows", [X], base=tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected .npz, .csv, .parquet"):
        data.infer("d.pickle", [X], base=tmp_path)


def test_columns_that_a_model_knows_are_taken_by_name_and_others_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("class,id,d,y,c,b\n" + "1,2,3,0,5,6\n" * 3)
    known = {"x": ("b", "c", "d", "class")}  # a name that would mean labels, were it not taken
    section = data.infer("d.csv", [X], base=tmp_path, columns=known)
    assert section == DataSection(source="d.csv", columns=known, labels="y")
    with pytest.raises(InvalidInput, match="class and y may all be the labels"):
        data.infer("d.csv", [X], base=tmp_path)
