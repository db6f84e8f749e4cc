"""parquet: columns by their own types, in bounded batches; missing values and foreign types are named."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from compiler.data import Dataset, parquet_file
from compiler.recipe.data_section import LimitsSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

Load = Callable[..., Dataset]
A = TensorSpec(name="a", datatype="FP32", shape=(-1,))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def to_file(**columns: Any) -> Path:
        path = tmp_path / "d.parquet"
        parquet.write_table(pa.table(columns), path, row_group_size=16)
        return path

    return to_file


def values(dataset: Dataset, name: str) -> list[Any]:
    return sorted(np.concatenate([s.inputs[name] for s in dataset.by_use().values()]).tolist())


@pytest.mark.parametrize(
    ("column", "datatype"),
    [
        (pa.array(range(40), pa.int8()), "FP32"),
        (pa.array(range(40), pa.uint64()), "INT32"),
        (pa.array(range(40), pa.float16()), "FP32"),
        (pa.array(range(40), pa.float64()), "INT64"),
        (pa.array([n % 2 == 0 for n in range(40)]), "FP32"),
        (pa.array([n % 2 for n in range(40)]), "BOOL"),
    ],
)
def test_numbers_of_every_width(write: Callable[..., Path], load: Load, column: pa.Array, datatype: str) -> None:
    write(a=column, key=range(40))
    spec = TensorSpec(name="a", datatype=datatype, shape=(-1, 1))
    key = TensorSpec(name="key", datatype="INT64", shape=(-1,))  # so that rows differ
    loaded = load([spec, key], source="d.parquet", labels="")
    assert values(loaded, "a") == [
        [value] for value in sorted(map(type(values(loaded, "a")[0][0]), column.to_pylist()))
    ]


def test_words_become_one_input_and_a_missing_one_is_named(write: Callable[..., Path], load: Load) -> None:
    words = [f"grün {n}" for n in range(40)]
    spec = TensorSpec(name="x", datatype="BYTES", shape=(-1, 2))
    settings: dict[str, Any] = {"source": "d.parquet", "labels": "", "columns": {"x": ("a", "b")}}
    write(a=words, b=pa.array(["", "🦕"] * 20).dictionary_encode())
    assert values(load([spec], **settings), "x") == sorted([word, ["", "🦕"][n % 2]] for n, word in enumerate(words))
    write(a=words, b=[*words[:7], None, *words[8:]])
    with pytest.raises(InvalidInput, match=r"column 'b': row 7 is missing \(null\)"):
        load([spec], **settings)
    write(a=words, b=pa.array([0.5] * 40))
    with pytest.raises(InvalidInput, match=r"d.parquet:b: holds float64, expected words or whole numbers"):
        load([spec], **settings)


def test_words_may_be_in_a_dictionary_and_names_may_have_dots(tmp_path: Path, load: Load) -> None:
    kinds = pa.array(["no", "yes"] * 20).dictionary_encode()
    parquet.write_table(pa.table({"sepal.length": range(40), "kind": kinds}), tmp_path / "d.parquet")
    loaded = load(
        [A], source="d.parquet", columns={"a": "sepal.length"}, labels="kind", classes=2, labels_of_model=("yes", "no")
    )
    for split in loaded.by_use().values():
        assert split.labels is not None
        np.testing.assert_array_equal(split.labels, 1 - split.inputs["a"] % 2)


def test_lists_become_rows_of_the_inputs_shape(write: Callable[..., Path], load: Load) -> None:
    spec = TensorSpec(name="a", datatype="FP32", shape=(-1, 2, 3))
    lists = [[float(n)] * 6 for n in range(40)]
    nested = [[[n] * 3] * 2 for n in range(40)]
    for column in (pa.array(lists), pa.array(lists, pa.list_(pa.float32(), 6)), pa.array(nested)):
        write(a=column)
        loaded = load([spec], source="d.parquet", labels="")
        assert loaded.certify.inputs["a"].shape == (16, 2, 3)
        assert (loaded.certify.inputs["a"] == loaded.certify.inputs["a"][:, :1, :1]).all()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0] * 20 + [None] + [2.0] * 19), r"column 'a': row 20 is missing \(null\)"),
        (pa.array([[1.0, None]] * 40), r"column 'a\[\]': row 1 is missing \(null\)"),
        (
            pa.array([[1.0]] * 19 + [[1.0, 2.0]] * 21),
            r"column 'a': row 16 has 1 values and row 19 has 2; rows must have one length, so pad them",
        ),
        (
            pa.array([[1.0]] * 16 + [[1.0, 2.0]] * 24),
            r"column 'a': rows of differing sizes \(\[\(1,\), \(2,\)\]\); pad them to one length",
        ),
        (pa.array([[]] * 40, pa.list_(pa.float32())), "column 'a': holds empty lists"),
        (pa.array([datetime.date(2026, 1, 1)] * 40), "column 'a': holds date32.*; expected numbers, text or lists"),
        (pa.array(["x"] * 40), "d.parquet:a: holds text or objects, but the model takes FP32; give it numbers, or set"),
        (pa.array([float("nan")] * 40), "d.parquet:a: NaN or infinite values in 40 rows, first row 0"),
        (pa.array([1e300] * 40), r"d.parquet:a: row 0 holds 1e\+300, which FP32 cannot hold"),
    ],
)
def test_bad_columns_are_named(
    write: Callable[..., Path], load: Load, column: pa.Array, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_file, "_BATCH_ROWS", 16)
    write(a=column)
    with pytest.raises(InvalidInput, match=message):
        load([A], source="d.parquet", labels="")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 60 + b"PAR1", b"no parquet at all" * 9])
def test_an_unreadable_file_is_refused(tmp_path: Path, load: Load, content: bytes) -> None:
    (tmp_path / "d.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match="d.parquet: not a readable parquet file: "):
        load([A], source="d.parquet")


def test_a_damaged_page_is_refused(write: Callable[..., Path], load: Load) -> None:
    path = write(a=np.random.default_rng(0).normal(0, 1, 4000))
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="d.parquet: not a readable parquet file: "):
        load([A], source="d.parquet", labels="")


def test_missing_and_empty_files(write: Callable[..., Path], load: Load) -> None:
    with pytest.raises(InvalidInput, match="d.parquet: no such file"):
        load([A], source="d.parquet")
    write(a=pa.array([], pa.float32()))
    with pytest.raises(InvalidInput, match="d.parquet: no rows"):
        load([A], source="d.parquet", labels="")


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_rows": 39}, "40 rows, at most 39"), ({"max_bytes": 300}, "more than 300 bytes of values")],
)
def test_more_than_the_limits_is_refused(
    write: Callable[..., Path], load: Load, limits: dict[str, int], message: str
) -> None:
    write(a=[float(n) for n in range(40)])
    with pytest.raises(InvalidInput, match=message):
        load([A], source="d.parquet", labels="", limits=LimitsSection(**limits))
