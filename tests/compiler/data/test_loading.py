"""Loading: each row has one use, labels and groups stay with their rows, and bad data are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import data
from compiler.data import DataSection, Dataset, loading
from compiler.recipe import data_section
from penstock.errors import InvalidInput
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
Load = Callable[..., Dataset]
Edit = Callable[..., None]


@pytest.fixture
def edit(tmp_path: Path) -> Edit:
    """data.npz with splits fit (200 rows), certify (600) and test (300); changes replace arrays, None removes one."""
    source = np.random.default_rng(7)
    arrays: dict[str, Any] = {}
    for split, rows in {"fit": 200, "certify": 600, "test": 300}.items():
        arrays[f"x_{split}"] = source.normal(0, 1, (rows, 4)).astype(np.float32)
        arrays[f"y_{split}"] = source.integers(0, 3, rows)

    def write(**changes: Any) -> None:
        np.savez(tmp_path / "data.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})

    write()
    return write


def rows_of(array: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in array}


def test_fit_is_divided_without_loss_and_without_overlap(tmp_path: Path, edit: Edit, load: Load) -> None:
    loaded = load([X], source="data.npz")
    ranges, tune = rows_of(loaded.ranges.inputs["x"]), rows_of(loaded.tune.inputs["x"])
    with np.load(tmp_path / "data.npz") as file:
        assert ranges | tune == rows_of(file["x_fit"])
        label_of = {row.tobytes(): label for row, label in zip(file["x_fit"], file["y_fit"], strict=True)}
    assert not ranges & tune
    assert [split.rows for split in loaded.by_use().values()] == [100, 100, 600, 300]
    assert loaded.ranges.labels is not None
    for row, label in zip(loaded.ranges.inputs["x"], loaded.ranges.labels, strict=True):
        assert label_of[row.tobytes()] == label


def test_a_split_to_tune_on_leaves_fit_whole(edit: Edit, load: Load) -> None:
    edit(x_warm=np.eye(5, 4, dtype=np.float32), y_warm=np.zeros(5, np.int64))
    loaded = load([X], source="data.npz", splits=data_section.SplitsSection(tune="warm"))
    assert (loaded.ranges.rows, loaded.tune.rows) == (200, 5)


def test_a_split_called_tune_is_used_though_nobody_names_it(edit: Edit, load: Load) -> None:
    edit(x_tune=np.eye(5, 4, dtype=np.float32), y_tune=np.zeros(5, np.int64))
    loaded = load([X], source="data.npz")
    assert (loaded.ranges.rows, loaded.tune.rows) == (200, 5)
    edit(x_tune=np.eye(5, 4, dtype=np.float32), y_tune=None)
    with pytest.raises(InvalidInput, match="no array 'y_tune'"):
        load([X], source="data.npz")


def test_inputs_may_have_other_names_in_the_file(edit: Edit, load: Load) -> None:
    pixels = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 4))
    assert list(load([pixels], source="data.npz", inputs={"pixels": "x"}).test.inputs) == ["pixels"]
    with pytest.raises(InvalidInput, match="data.inputs: the model has no input 'pixel'; did you mean 'pixels'"):
        load([pixels], source="data.npz", inputs={"pixel": "x"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_certify": None}, "no array 'x_certify'"),
        ({"y_tset": np.zeros(300, np.int64), "y_test": None}, "no array 'y_test'; did you mean 'y_tset'"),
        ({"x_test": np.zeros((300, 4))}, "data.npz:x_test: datatype is FP64, expected FP32"),
        ({"x_test": np.zeros((300, 5), np.float32)}, r"shape is \[300, 5\], expected \[-1, 4\]"),
        ({"x_test": np.zeros((0, 4), np.float32)}, "no rows"),
        ({"x_test": np.full((300, 4), np.nan, np.float32)}, "NaN or infinite values in 300 rows, first row 0"),
        ({"x_test": np.full((300, 4), np.inf, np.float32)}, "NaN or infinite"),
        ({"y_test": np.zeros(299, np.int64)}, r"int64 \[299\], expected one integer class for each of 300 rows"),
        (
            {"y_test": np.zeros(300)},
            "expected one integer class for each of 300 rows; they are whole, so save them as integers",
        ),
        ({"y_test": np.full(300, 3)}, "labels from 3 to 3, but the model has classes 0 to 2"),
        ({"y_test": np.arange(300) % 3 + 1}, "labels from 1 to 3, .* classes 0 to 2; count them from 0"),
        ({"y_test": np.full(300, -1)}, "labels from -1"),
        ({"y_test": np.array(["cat", "dog"] * 150)}, r"labels are words \('cat', 'dog'\); set model.labels"),
        (
            {"x_fit": np.zeros((1, 4), np.float32), "y_fit": np.zeros(1, np.int64)},
            "has 1 row, 1 different; it needs two",
        ),
        ({"x_fit": np.ones((9, 4), np.float32), "y_fit": np.zeros(9, np.int64)}, "has 9 rows, 1 different"),
        ({"x_test": np.array([object()] * 3, dtype=object)}, "an array of Python objects.*save text as array.astype"),
    ],
)
def test_bad_arrays_are_refused_by_name(edit: Edit, load: Load, change: dict[str, Any], message: str) -> None:
    edit(**change)
    with pytest.raises(InvalidInput, match=message):
        load([X], source="data.npz")


def test_two_inputs_must_have_the_same_rows(edit: Edit, load: Load) -> None:
    z = TensorSpec(name="z", datatype="FP32", shape=(-1,))
    edit(z_fit=np.zeros(200, np.float32), z_certify=np.zeros(9, np.float32), z_test=np.zeros(300, np.float32))
    with pytest.raises(InvalidInput, match="data.npz:z_certify: 9 rows, but another input has 600"):
        load([X, z], source="data.npz")


@pytest.mark.parametrize("other", ["fit", "test"])
def test_certifying_on_data_with_another_use_is_refused(tmp_path: Path, edit: Edit, load: Load, other: str) -> None:
    with np.load(tmp_path / "data.npz") as file:
        x, y = file["x_certify"][::-1], file["y_certify"][::-1]
    edit(**{f"x_{other}": x, f"y_{other}": y})
    for repeats in ("", "copies", "natural"):
        with pytest.raises(InvalidInput, match=f"'certify' and '{other}' hold the same examples"):
            load([X], source="data.npz", repeats=repeats)


def test_a_row_in_two_splits_is_named_and_may_be_allowed(tmp_path: Path, edit: Edit, load: Load) -> None:
    with np.load(tmp_path / "data.npz") as file:
        x = file["x_test"].copy()
        x[17] = file["x_certify"][5]
    edit(x_test=x)
    message = r"splits 'certify' and 'test' share 1 of 600 rows \(first: row 5 is row 17 of 'test'\); remove them"
    with pytest.raises(InvalidInput, match=message):
        load([X], source="data.npz")
    assert load([X], source="data.npz", repeats="natural").certify.rows == 600


def test_values_out_of_the_declared_range_are_refused(edit: Edit, load: Load) -> None:
    with pytest.raises(InvalidInput, match="model.input_range is 0 to 1; were these examples preprocessed differently"):
        load([X], source="data.npz", input_range=(0.0, 1.0))
    assert load([X], source="data.npz", input_range=(-9.0, 9.0)).test.rows == 300


def test_words_are_classes_by_their_place_in_the_models_labels(edit: Edit, load: Load) -> None:
    words = {
        f"y_{s}": np.array(["cat", "dog"] * (n // 2)) for s, n in {"fit": 200, "certify": 600, "test": 300}.items()
    }
    edit(**words)
    loaded = load([X], source="data.npz", labels_of_model=("dog", "eel", "cat"))
    assert loaded.test.labels is not None
    assert loaded.test.labels[:4].tolist() == [2, 0, 2, 0]
    assert loaded.class_names == ("dog", "eel", "cat")
    with pytest.raises(InvalidInput, match="y_fit: row 1 is 'dog', which is no class; did you mean 'dogs'"):
        load([X], source="data.npz", labels_of_model=("cat", "dogs", "eel"))
    with pytest.raises(InvalidInput, match=r"2 names of classes \(cat, dog\), but the model has 3 classes"):
        load([X], source="data.npz", labels_of_model=("cat", "dog"))


def test_without_labels_nothing_is_read_or_asked_for(edit: Edit, load: Load) -> None:
    edit(y_fit=None, y_certify=None, y_test=None)
    assert load([X], source="data.npz", labels="").test.labels is None
    assert load([X], source="data.npz", labels_as="none").test.labels is None


def test_labels_of_a_regression_are_numbers(edit: Edit, load: Load) -> None:
    edit(y_fit=np.linspace(0, 1, 200), y_certify=np.ones((600, 1)), y_test=np.arange(300))
    loaded = load([X], source="data.npz", labels_as="numbers", classes=None)
    assert loaded.test.labels is not None
    assert loaded.test.labels.dtype == np.float64
    assert loaded.certify.labels is not None
    assert loaded.certify.labels.shape == (600, 1)
    edit(y_test=np.array(["a"] * 300))
    with pytest.raises(InvalidInput, match=r"y_test: text \[300\], expected one number for each of 300 rows"):
        load([X], source="data.npz", labels_as="numbers", classes=None)
    edit(y_test=np.array([np.nan] * 300))
    with pytest.raises(InvalidInput, match="y_test: NaN or infinite values in 300 rows"):
        load([X], source="data.npz", labels_as="numbers", classes=None)


def test_groups_stay_with_their_rows(edit: Edit, load: Load) -> None:
    groups = {f"site_{s}": np.arange(n) % 5 for s, n in {"fit": 200, "certify": 600, "test": 300}.items()}
    edit(**groups)
    loaded = load([X], source="data.npz", group_by="site")
    assert loaded.test.groups is not None
    assert loaded.test.groups[:6].tolist() == ["0", "1", "2", "3", "4", "0"]
    assert loaded.ranges.groups is not None
    assert len(loaded.ranges.groups) == loaded.ranges.rows
    edit(**groups | {"site_test": np.zeros((300, 2), np.int64)})
    with pytest.raises(InvalidInput, match=r"site_test: \[300, 2\], expected one group for each of 300 rows"):
        load([X], source="data.npz", group_by="site")
    edit(**groups | {"site_test": np.zeros(300)})
    with pytest.raises(InvalidInput, match="site_test: holds float64, expected words or whole numbers"):
        load([X], source="data.npz", group_by="site")


def test_digests_tell_labels_groups_and_order_apart(edit: Edit, load: Load) -> None:
    split = load([X], source="data.npz").test
    other = split.take(np.arange(300)[::-1], name="test")
    assert len({split.digest, other.digest, load([X], source="data.npz", labels="").test.digest}) == 3
    assert split.digest == split.take(slice(None), name="again").digest


# --- one array of everything --------------------------------------------------------------------------------------


def test_a_file_without_splits_is_dealt_by_the_shares(tmp_path: Path, load: Load) -> None:
    x = np.random.default_rng(0).normal(0, 1, (500, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(500) % 3)
    loaded = load([X], source="d.npz")
    assert [split.rows for split in loaded.by_use().values()] == [100, 100, 200, 100]
    assert set().union(*(rows_of(s.inputs["x"]) for s in loaded.by_use().values())) == rows_of(x)
    other = load([X], source="d.npz", seed=1)
    assert other.certify.digest != loaded.certify.digest
    shares = data_section.SharesSection(fit=0.1, tune=0.1, certify=0.7, test=0.1)
    assert load([X], source="d.npz", shares=shares).certify.rows == 350


def test_shuffling_a_file_moves_no_row_to_another_split(tmp_path: Path, load: Load) -> None:
    source = np.random.default_rng(0)
    x, y = source.integers(0, 4, (300, 4)).astype(np.float32), np.arange(300) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    order = source.permutation(300)
    np.savez(tmp_path / "b.npz", x=x[order], y=y[order])
    a, b = load([X], source="a.npz"), load([X], source="b.npz")
    for use in a.by_use():
        assert rows_of(a.by_use()[use].inputs["x"]) == rows_of(b.by_use()[use].inputs["x"])


def test_rows_that_repeat_by_nature_are_each_dealt_by_themselves(tmp_path: Path, load: Load) -> None:
    x = np.repeat(np.eye(4, dtype=np.float32), 25, axis=0)
    np.savez(tmp_path / "d.npz", x=x, y=np.zeros(100, np.int64))
    loaded = load([X], source="d.npz", repeats="natural")
    assert [split.rows for split in loaded.by_use().values()] == [20, 20, 40, 20]
    assert all(len(rows_of(split.inputs["x"])) == 4 for split in loaded.by_use().values())
    assert loaded.repeats.words == "100 rows, 4 distinct (one of them 25 times), each a draw by itself"


@pytest.mark.parametrize("repeats", ["", "copies"])
def test_copies_count_once_and_a_guess_says_how_to_change_it(tmp_path: Path, load: Load, repeats: str) -> None:
    distinct = np.random.default_rng(0).normal(0, 1, (100, 4)).astype(np.float32)
    x = np.concatenate([np.repeat(distinct, 3, axis=0), distinct[:1]])
    np.savez(tmp_path / "d.npz", x=x, y=np.zeros(301, np.int64))
    loaded = load([X], source="d.npz", repeats=repeats)
    assert [split.rows for split in loaded.by_use().values()] == [20, 20, 40, 20]
    assert sum(int(split.copies.sum()) for split in loaded.by_use().values() if split.copies is not None) == 301
    said = "301 rows, 100 distinct (one of them 4 times), taken for copies: each distinct one counts once"
    guess = '; if they repeat by nature, set data.repeats = "natural"'
    assert loaded.repeats.words == (said if repeats else said + guess)


def test_copies_that_leave_a_split_empty_are_refused_with_the_counts(tmp_path: Path, load: Load) -> None:
    np.savez(tmp_path / "e.npz", x=np.repeat(np.eye(4, dtype=np.float32)[:2], 25, axis=0), y=np.zeros(50, np.int64))
    message = (
        r"50 rows, 2 distinct \(one of them 25 times\).*\"natural\": they leave none for '\w+' \(\d+%\); give more"
    )
    with pytest.raises(InvalidInput, match=message):
        load([X], source="e.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04truncated"])
def test_an_unreadable_file_is_refused(tmp_path: Path, load: Load, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match="not a readable npz file"):
        load([X], source="data.npz")


def test_a_missing_file_and_a_bare_array_are_told_apart(tmp_path: Path, load: Load) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        load([X], source="data.npz")
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InvalidInput, match="expected what numpy.savez writes"):
        load([X], source="data.npz")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 1000}, "bytes of arrays, at most 1000"),
        ({"max_rows": 299}, r"600 rows, at most 299 \(data.limits.max_rows\); a sample is enough"),
    ],
)
def test_more_data_than_the_limit_is_refused(edit: Edit, load: Load, limits: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load([X], source="data.npz", limits=data_section.LimitsSection(**limits), splits=CERTIFY_FIRST)


CERTIFY_FIRST = data_section.SplitsSection(fit="certify", certify="fit")


def test_whether_a_source_has_splits_of_its_own(tmp_path: Path, edit: Edit) -> None:
    named = data_section.SplitsSection(column="part")
    np.savez(tmp_path / "whole.npz", x=np.zeros((3, 4), np.float32))
    np.savez(tmp_path / "both.npz", x=np.zeros((3, 4), np.float32), x_certify=np.zeros((3, 4), np.float32))
    (tmp_path / "rows.py").write_text("def every(): ...\ndef each(split): ...\n")
    (tmp_path / "flat" / "cat").mkdir(parents=True)
    for split in ("fit", "certify", "test"):
        (tmp_path / "deep" / split).mkdir(parents=True)
    sources = [
        (DataSection(source="data.npz"), True),
        (DataSection(source="both.npz"), True),
        (DataSection(source="whole.npz"), False),
        (DataSection(source="whole.npz", inputs={"x": "z"}), True),  # and loading says what is missing
        (DataSection(source="d.csv"), False),
        (DataSection(source="d.csv", splits=named), True),
        (DataSection(source="rows.py:every"), False),
        (DataSection(source="rows.py:each"), True),
        (DataSection(source="flat"), False),
        (DataSection(source="deep"), True),
    ]
    assert [loading.has_splits(section, tmp_path, [X]) for section, _ in sources] == [own for _, own in sources]


# --- what the compiler does with a dataset -----------------------------------------------------------------------


def test_batches_are_all_rows_in_order(edit: Edit, load: Load) -> None:
    split = load([X], source="data.npz").test
    parts = list(data.batches(split, 64))
    assert [len(part["x"]) for part in parts] == [64, 64, 64, 64, 44]
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), split.inputs["x"])


def test_a_smoke_run_sees_a_few_rows_of_every_split_and_of_every_class(tmp_path: Path, load: Load) -> None:
    x = np.random.default_rng(0).normal(0, 1, (500, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.repeat([0, 1, 2], [200, 200, 100]))
    small = load([X], source="d.npz").thinned(8)
    assert [split.rows for split in small.by_use().values()] == [8, 8, 8, 8]
    assert small.certify.labels is not None
    assert set(small.certify.labels.tolist()) == {0, 1, 2}
    assert small.thinned(100).certify.digest == small.certify.digest


def test_progress_is_told(tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    write_csv({"x": range(9), "y": [0, 1, 2] * 3})
    notes: list[str] = []
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
    loading.load(DataSection(source="table.csv"), tmp_path, [spec], classes=3, progress=notes.append)
    assert notes == ["9 rows"]


def test_text_is_taken_as_the_model_takes_it_without_the_room_of_the_longest(tmp_path: Path, load: Load) -> None:
    words = np.array([[f"grün {n}", "x" * (n % 40)] for n in range(80)])
    np.savez(tmp_path / "d.npz", x=words, y=np.arange(80) % 3)
    spec = TensorSpec(name="x", datatype="BYTES", shape=(-1, 2))
    loaded = load([spec], source="d.npz")
    found = np.concatenate([split.inputs["x"] for split in loaded.by_use().values()])
    assert (found.dtype, {type(word) for word in found.ravel()}) == (object, {str})
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, words.tolist()))
    np.savez(tmp_path / "b.npz", x=np.char.encode(words, "utf-8"), y=np.arange(80) % 3)
    assert load([spec], source="b.npz").test.digest == loaded.test.digest
    with pytest.raises(InvalidInput, match=r"datatype is BYTES, expected FP32"):
        load([TensorSpec(name="x", datatype="FP32", shape=(-1, 2))], source="d.npz")


def test_labels_of_other_tasks_are_anything_with_an_entry_a_row(edit: Edit, load: Load) -> None:
    edit(y_fit=np.zeros((200, 2, 5)), y_certify=np.ones((600, 2, 5)), y_test=np.ones((300, 1, 5)))
    loaded = load([X], source="data.npz", labels_as="array", classes=None)
    assert loaded.certify.labels is not None
    assert loaded.certify.labels.shape == (600, 2, 5)
    edit(y_fit=np.array(["a"] * 200), y_certify=np.array(["bc"] * 600), y_test=np.array(["d"] * 300))
    words = load([X], source="data.npz", labels_as="array", classes=None).test.labels
    assert words is not None
    assert words[0] == "d"
    edit(y_fit=np.full(200, np.nan))
    with pytest.raises(InvalidInput, match=r"y_fit: NaN or infinite values in 200 rows"):
        load([X], source="data.npz", labels_as="array", classes=None)
    edit(y_fit=np.zeros((3, 5)))
    with pytest.raises(InvalidInput, match=r"y_fit: \[3, 5\], expected an entry for each of 200 rows"):
        load([X], source="data.npz", labels_as="array", classes=None)
