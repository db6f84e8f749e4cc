"""csv: strict cells, named by line and column; columns become inputs by name, list or pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.data import Dataset, csv_file
from compiler.data.csv_file import CsvFile
from compiler.recipe.data_section import LimitsSection, SplitsSection
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

Load = Callable[..., Dataset]
Write = Callable[..., Path]
SIZE = TensorSpec(name="size", datatype="FP32", shape=(-1, 2))
COLOUR = TensorSpec(name="colour", datatype="INT64", shape=(-1,))
NUMBERS = {"w": range(40), "h": [n / 4 for n in range(40)], "colour": [n % 7 for n in range(40)]}
LABELS = {"y": [n % 3 for n in range(40)]}


def everything(dataset: Dataset, name: str) -> np.ndarray:
    parts = [split.inputs[name] for split in dataset.by_use().values()]
    return np.concatenate(parts)


def test_columns_become_inputs_in_the_models_types(write_csv: Write, load: Load) -> None:
    write_csv({**NUMBERS, **LABELS})
    loaded = load([SIZE, COLOUR], source="table.csv", columns={"size": ("w", "h")})
    size, colour = everything(loaded, "size"), everything(loaded, "colour")
    assert (size.dtype, colour.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(size[:, 0] / 4, size[:, 1])
    np.testing.assert_array_equal(size[:, 0] % 7, colour)


def test_a_pattern_takes_columns_in_the_order_of_the_file(write_csv: Write, load: Load) -> None:
    write_csv({"p10": [1.5] * 40, "p9": range(40), **LABELS})
    spec = TensorSpec(name="size", datatype="FP32", shape=(-1, 2))
    loaded = load([spec], source="table.csv", columns={"size": "p*"})
    assert set(everything(loaded, "size")[:, 0].tolist()) == {1.5}
    with pytest.raises(InvalidInput, match=r"data.columns.size: no column matches 'q\*'; known: p10, p9, y"):
        load([spec], source="table.csv", columns={"size": "q*"})


def test_other_delimiters_marks_quotes_and_blank_lines(tmp_path: Path, load: Load) -> None:
    rows = "".join(f'{n};"{n}"\r\n\r\n' for n in range(40))
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbf" + f"a;b\r\n{rows}".encode())
    spec = TensorSpec(name="size", datatype="FP64", shape=(-1, 2))
    loaded = load([spec], source="d.csv", delimiter=";", columns={"size": ("a", "b")}, labels="")
    assert sum(split.rows for split in loaded.by_use().values()) == 40


def test_flags_words_and_text_are_read(write_csv: Write, load: Load) -> None:
    flag = TensorSpec(name="flag", datatype="BOOL", shape=(-1, 1))
    words = TensorSpec(name="words", datatype="BYTES", shape=(-1,))
    write_csv({"flag": ["true", "0"] * 20, "words": [f"row {n}" for n in range(40)], "y": ["no", "yes"] * 20})
    loaded = load([flag, words], source="table.csv", classes=2, labels_of_model=("yes", "no"))
    for split in loaded.by_use().values():
        assert split.labels is not None
        np.testing.assert_array_equal(split.inputs["flag"][:, 0], split.labels == 1)
    assert set(everything(loaded, "words")) == {f"row {n}" for n in range(40)}
    assert loaded.certify.digest.startswith("sha256:")


def test_words_for_yes_and_no_are_the_numbers_1_and_0_to_a_model_of_numbers(write_csv: Write, load: Load) -> None:
    write_csv({**NUMBERS, "w": ["True", "FALSE"] * 20, **LABELS})
    sizes = everything(load([SIZE], source="table.csv", columns={"size": ("w", "h")}), "size")
    assert sorted(map(tuple, sizes.tolist())) == sorted(((n + 1) % 2, n / 4) for n in range(40))
    write_csv({"w": ["True", "2"] * 20, "h": ["1"] * 40, **LABELS})
    with pytest.raises(InvalidInput, match="line 2, column 'w': 'True' is not a number"):
        load([SIZE], source="table.csv", columns={"size": ("w", "h")})


def test_a_pattern_takes_no_label_group_or_split(write_csv: Write, load: Load) -> None:
    part = ["fit"] * 20 + ["certify"] * 12 + ["test"] * 8
    write_csv({**NUMBERS, "y": ["1", "0"] * 20, "z": ["1", "0"] * 20, "part": part})
    settings: dict[str, Any] = {"source": "table.csv", "group_by": "z", "splits": SplitsSection(column="part")}
    loaded = load([SIZE], columns={"size": "[!c]*"}, **settings)
    assert loaded.certify.inputs["size"][:, 0].tolist() == list(range(20, 32))
    with pytest.raises(InvalidInput, match="no column but data.labels matches 'y\\*'"):
        load([SIZE], columns={"size": "y*"}, source="table.csv")


def test_an_empty_word_may_be_a_missing_one_and_is_refused_unless_the_recipe_says_otherwise(
    write_csv: Write, load: Load
) -> None:
    words = TensorSpec(name="words", datatype="BYTES", shape=(-1, 2))
    write_csv({"a": [f"grün {n}" for n in range(40)], "b": ["", " ", "nan", "None"] * 10, **LABELS})
    settings: dict[str, Any] = {"source": "table.csv", "columns": {"words": ("a", "b")}}
    with pytest.raises(InvalidInput, match=r"line 2, column 'b': is empty; write a word.*data.empty_cells = \"text\""):
        load([words], **settings)
    loaded = load([words], empty_cells="text", **settings)
    assert set(everything(loaded, "words")[:, 1]) == {"", " ", "nan", "None"}


def test_splits_may_be_named_by_a_column_and_other_rows_are_left_out(write_csv: Write, load: Load) -> None:
    part = ["train"] * 10 + ["fit"] * 10 + ["certify"] * 12 + ["test"] * 8
    write_csv({**NUMBERS, **LABELS, "part": part, "site": ["a", "b"] * 20})
    named = SplitsSection(column="part")
    loaded = load([SIZE], source="table.csv", columns={"size": ("w", "h")}, splits=named, group_by="site")
    assert [split.rows for split in loaded.by_use().values()] == [5, 5, 12, 8]
    assert loaded.certify.inputs["size"][:, 0].tolist() == list(range(20, 32))
    assert loaded.certify.labels is not None
    assert loaded.certify.labels.tolist() == [n % 3 for n in range(20, 32)]
    assert loaded.test.groups is not None
    assert loaded.test.groups.tolist() == ["a", "b"] * 4
    with pytest.raises(
        InvalidInput, match="column 'part' has no row with 'warm'; it has 'certify', 'fit', 'test', 'tr"
    ):
        load([SIZE], source="table.csv", columns={"size": ("w", "h")}, splits=SplitsSection(column="part", tune="warm"))


def test_rows_of_a_split_called_tune_are_tuned_on(write_csv: Write, load: Load) -> None:
    part = ["tune"] * 10 + ["fit"] * 10 + ["certify"] * 12 + ["test"] * 8
    write_csv({**NUMBERS, **LABELS, "part": part})
    loaded = load([SIZE], source="table.csv", columns={"size": ("w", "h")}, splits=SplitsSection(column="part"))
    assert [split.rows for split in loaded.by_use().values()] == [10, 10, 12, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"no column 'size' \(data.columns.size\); known: colour, h, w, y"),
        ({"columns": {"size": ("w", "H")}}, r"no column 'H' \(data.columns.size\); "),
        ({"columns": {"size": ("w",)}}, r"table.csv:w: 1 values a row, but input 'size' takes \[2\]"),
        ({"columns": {"size": ("w", "h", "colour")}}, "table.csv:w and 2 more: 3 values a row"),
        ({"columns": {"siz": "w"}}, "data.columns: the model has no input 'siz'; did you mean 'size'"),
        ({"labels": "label"}, r"no column 'label' \(data.labels; '' if there are no labels\)"),
        ({"group_by": "site"}, r"no column 'site' \(data.group_by\)"),
        ({"splits": SplitsSection(column="s")}, r"no column 's' \(data.splits.column\)"),
    ],
)
def test_a_column_that_is_not_there_is_named(
    write_csv: Write, load: Load, settings: dict[str, Any], message: str
) -> None:
    write_csv({**NUMBERS, **LABELS})
    usual = {"columns": {"size": ("w", "h")}} if settings and "columns" not in settings else {}
    with pytest.raises(InvalidInput, match=message):
        load([SIZE], source="table.csv", **usual, **settings)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"w": "wide"}, "table.csv: line 9, column 'w': 'wide' is not a number"),
        ({"w": ""}, "line 9, column 'w': is empty"),
        ({"w": "1_000"}, "line 9, column 'w': '1_000' is not a number"),
        ({"w": "1,000"}, "line 9 has 5 values, but the header has 4"),
        ({"w": "nan"}, "table.csv:w: NaN or infinite values in 1 rows, first row 7"),
        ({"w": "1e300"}, r"table.csv:w: row 7 holds 1e\+300, which FP32 cannot hold"),
        ({"colour": "1.0"}, "line 9, column 'colour': '1.0' is not a whole number"),
        ({"colour": "9" * 30}, "line 9, column 'colour': '9+' is not a whole number"),
        ({"y": ""}, "line 9, column 'y': is empty"),
        ({"y": "1.5"}, r"table.csv:y: float64 \[40\], expected one integer class .* 40 rows; row 7 is 1.5"),
        ({"y": "nan"}, "expected one integer class for each of 40 rows; row 7 is nan"),
        ({"y": "inf"}, "expected one integer class for each of 40 rows; row 7 is inf"),
        ({"y": "x"}, r"labels are words \('0', '1', '2', 'x'\)"),
        ({"w": '"7" 7'}, "line 9: not csv: ',' expected after '\"'"),
    ],
)
def test_a_bad_cell_is_named_by_line_and_column(
    write_csv: Write, load: Load, cells: dict[str, str], message: str
) -> None:
    columns = {name: list(map(str, values)) for name, values in {**NUMBERS, **LABELS}.items()}
    for name, cell in cells.items():
        columns[name][7] = cell
    write_csv(columns)
    with pytest.raises(InvalidInput, match=message):
        load([SIZE, COLOUR], source="table.csv", columns={"size": ("w", "h")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; expected a line with the columns' names first"),
        (b"a,b,a\n1,2,3\n", "two columns are called 'a'; rename one"),
        (b"a;y\n1;2\n", "one column, 'a;y'; is it separated by ';'. Set data.delimiter"),
        (b"a,y\n", "a header and no rows"),
        (b"a,y\n\xff\xfe,2\n", "not UTF-8 text: .*; save it as UTF-8"),
        (b'a,y\n"1,2\n', "not csv: unexpected end of data"),
        (b"a,y\n1\n", "line 2 has 1 values, but the header has 2"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, load: Load, content: bytes, message: str) -> None:
    (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        load([TensorSpec(name="a", datatype="FP32", shape=(-1,))], source="d.csv")


def test_files_that_are_not_there_or_no_files(tmp_path: Path, load: Load) -> None:
    with pytest.raises(InvalidInput, match="d.csv: no such file"):
        load([SIZE], source="d.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InvalidInput, match="d.csv: Is a directory"):
        load([SIZE], source="d.csv")


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_rows": 39}, "more than 39 rows"), ({"max_bytes": 100}, r"\d+ bytes, at most 100")],
)
def test_more_than_the_limits_is_refused(
    write_csv: Write, load: Load, limits: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_file, "_CHUNK_ROWS", 16)
    write_csv({**NUMBERS, **LABELS})
    with pytest.raises(InvalidInput, match=message):
        load([SIZE], source="table.csv", columns={"size": ("w", "h")}, limits=LimitsSection(**limits))


def test_chunks_make_no_difference(write_csv: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv({"a": [*range(20), "x"], "b": [0.5] * 21, "y": [*range(20), 0.5]})
    file = CsvFile(path=path, delimiter=",", limits=LimitsSection())
    whole = file.columns({"b": "float", "y": "label"}, lambda note: None)
    monkeypatch.setattr(csv_file, "_CHUNK_ROWS", 4)
    parts = file.columns({"b": "float", "y": "label"}, lambda note: None)
    np.testing.assert_array_equal(whole["y"], parts["y"])
    assert parts["y"].dtype == np.float64
    with pytest.raises(InvalidInput, match="line 22, column 'a': 'x' is not a number"):
        file.columns({"a": "float"}, lambda note: None)
