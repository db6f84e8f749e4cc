"""The same examples from every kind of source are the same arrays, the same splits and the same labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from compiler.data import DataSection, Dataset, loading
from compiler.recipe.data_section import ImagesSection
from penstock.wire.tensors import TensorSpec

DIGITS = TensorSpec(name="x", datatype="FP32", shape=(-1, 64))
PROGRAM = """
import numpy as np
def rows():
    for pixels, label in zip(np.load("{x}"), np.load("{y}")):
        yield {{"x": pixels}}, label
"""


def by_row(dataset: Dataset) -> dict[str, set[tuple[bytes, int]]]:
    return {
        use: {(row.tobytes(), int(label)) for row, label in zip(split.inputs["x"], split.labels, strict=True)}
        for use, split in dataset.by_use().items()
    }


def test_digits_are_the_same_from_npz_csv_parquet_images_and_an_iterator(
    tmp_path: Path, digits: Any, digit_images: Path, write_csv: Callable[..., Path]
) -> None:
    x, y = digits.x[:400], digits.y[:400]
    np.savez(tmp_path / "d.npz", x=x, y=y)
    pixels = {f"pixel_{at}": x[:, at] for at in range(64)}
    write_csv({**pixels, "digit": y}, "d.csv")
    parquet.write_table(pa.table({**pixels, "digit": y}), tmp_path / "d.parquet")
    lists = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 64), "y": y})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    (tmp_path / "rows.py").write_text(PROGRAM.format(x=tmp_path / "x.npy", y=tmp_path / "y.npy"))
    sections = [
        DataSection(source="d.npz"),
        DataSection(source="d.csv", columns={"x": "pixel_*"}, labels="digit"),
        DataSection(source="d.parquet", columns={"x": tuple(pixels)}, labels="digit"),
        DataSection(source="lists.parquet"),
        DataSection(source="rows.py:rows"),
        DataSection(source=str(digit_images), images=ImagesSection(channels="L", rescale=1 / 8)),
    ]
    loaded = [loading.load(section, tmp_path, [DIGITS], classes=10) for section in sections]
    assert [loaded[0].by_use()[use].rows for use in ("ranges", "tune", "certify", "test")] == [80, 80, 160, 80]
    for section, dataset in zip(sections, loaded, strict=True):
        assert by_row(dataset) == by_row(loaded[0]), section.source
        for split in dataset.by_use().values():
            assert split.inputs["x"].dtype == np.float32
            assert split.labels is not None
            assert split.labels.dtype == np.int64
    assert loaded[-1].class_names == tuple("0123456789")
    # files with one order of rows give the same bytes; image folders are in the order of their names
    assert len({dataset.certify.digest for dataset in loaded[:-1]}) == 1


@pytest.mark.parametrize("which", ["wine", "cancer"])
def test_wine_and_breast_cancer_are_the_same_from_csv_and_parquet(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, write_csv: Callable[..., Path]
) -> None:
    bunch = request.getfixturevalue(which)
    words = np.array(bunch.classes)[bunch.y]
    columns = {name: bunch.x[:, at] for at, name in enumerate(bunch.columns)} | {"kind": words}
    write_csv(columns, "d.csv")
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, len(bunch.columns)))
    digests = set()
    for name in ("d.csv", "d.parquet"):
        section = DataSection(source=name, columns={"x": tuple(bunch.columns)}, labels="kind")
        loaded = loading.load(section, tmp_path, [spec], classes=len(bunch.classes), labels=bunch.classes)
        digests.add(tuple(split.digest for split in loaded.by_use().values()))
        label_of = {row.tobytes(): label for row, label in zip(bunch.x, bunch.y, strict=True)}
        for split in loaded.by_use().values():
            assert split.labels is not None
            for row, label in zip(split.inputs["x"], split.labels, strict=True):
                assert label_of[row.tobytes()] == label
        assert sum(split.rows for split in loaded.by_use().values()) == len(bunch.x)
        assert loaded.class_names == bunch.classes
    assert len(digests) == 1
