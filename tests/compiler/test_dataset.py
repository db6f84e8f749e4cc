"""Examples: each split has one use, and bad data is refused by name instead of repaired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compiler import dataset, recipe
from compiler.dataset import Dataset
from penstock.errors import InvalidInput
from penstock.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
Edit = Callable[..., None]


def load(workspace: Path) -> Dataset:
    return dataset.load(recipe.load(workspace / "recipe.toml"), [X], classes=3)


def rows_of(array: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in array}


def test_fit_is_divided_without_loss_and_without_overlap(workspace: Path) -> None:
    data = load(workspace)
    ranges, temperature = rows_of(data.ranges.inputs["x"]), rows_of(data.temperature.inputs["x"])
    with np.load(workspace / "data.npz") as file:
        assert ranges | temperature == rows_of(file["x_fit"])
    assert not ranges & temperature
    assert (data.ranges.rows, data.temperature.rows, data.certify.rows, data.test.rows) == (100, 100, 600, 300)


def test_labels_stay_with_their_rows(workspace: Path) -> None:
    data = load(workspace)
    with np.load(workspace / "data.npz") as file:
        label_of = {row.tobytes(): label for row, label in zip(file["x_fit"], file["y_fit"], strict=True)}
    assert data.ranges.labels is not None
    for row, label in zip(data.ranges.inputs["x"], data.ranges.labels, strict=True):
        assert label_of[row.tobytes()] == label


def test_the_division_is_the_same_every_time(workspace: Path) -> None:
    assert load(workspace).ranges.digest == load(workspace).ranges.digest


def test_a_temperature_split_of_its_own_leaves_fit_whole(
    workspace: Path, edit_recipe: Callable[[str, str], Path], edit_data: Edit
) -> None:
    edit_recipe("[certificate]", '[data.splits]\ntemperature = "warm"\n[certificate]')
    edit_data(x_warm=np.ones((5, 4), np.float32), y_warm=np.zeros(5, np.int64))
    data = load(workspace)
    assert (data.ranges.rows, data.temperature.rows) == (200, 5)


def test_inputs_may_have_other_names_in_the_file(workspace: Path, edit_recipe: Callable[[str, str], Path]) -> None:
    edit_recipe('npz = "data.npz"', 'npz = "data.npz"\ninputs = { pixels = "x" }')
    spec = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 4))
    data = dataset.load(recipe.load(workspace / "recipe.toml"), [spec], classes=3)
    assert list(data.test.inputs) == ["pixels"]
    with pytest.raises(InvalidInput, match="no input 'pixels'; did you mean 'pixel'"):
        dataset.load(
            recipe.load(workspace / "recipe.toml"),
            [TensorSpec(name="pixel", datatype="FP32", shape=(-1, 4))],
            classes=3,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_certify": None}, "no array 'x_certify'"),
        ({"y_tset": np.zeros(300, np.int64), "y_test": None}, "no array 'y_test'; did you mean 'y_tset'"),
        ({"x_test": np.zeros((300, 4))}, "x_test: datatype is FP64, expected FP32"),
        ({"x_test": np.zeros((300, 5), np.float32)}, r"shape is \[300, 5\], expected \[-1, 4\]"),
        ({"x_test": np.zeros((0, 4), np.float32)}, "no rows"),
        ({"x_test": np.full((300, 4), np.nan, np.float32)}, "NaN or infinite values in 300 rows, first row 0"),
        ({"x_test": np.full((300, 4), np.inf, np.float32)}, "NaN or infinite"),
        ({"y_test": np.zeros(299, np.int64)}, r"int64 \[299\], expected one integer class for each of 300 rows"),
        ({"y_test": np.zeros(300)}, "expected one integer class"),
        ({"y_test": np.full(300, 3)}, "labels from 3 to 3, but the model has classes 0 to 2"),
        ({"y_test": np.full(300, -1)}, "labels from -1"),
        ({"x_fit": np.zeros((1, 4), np.float32), "y_fit": np.zeros(1, np.int64)}, "needs two or more"),
    ],
)
def test_bad_arrays_are_refused_by_name(
    workspace: Path, edit_data: Edit, change: dict[str, np.ndarray | None], message: str
) -> None:
    edit_data(**change)
    with pytest.raises(InvalidInput, match=message):
        load(workspace)


@pytest.mark.parametrize("other", ["fit", "test"])
def test_certifying_on_data_with_another_use_is_refused(workspace: Path, edit_data: Edit, other: str) -> None:
    with np.load(workspace / "data.npz") as file:
        x, y = file["x_certify"], file["y_certify"]
    edit_data(**{f"x_{other}": x, f"y_{other}": y})
    with pytest.raises(InvalidInput, match=f"'certify' and '{other}' hold the same examples"):
        load(workspace)


def test_values_out_of_the_declared_range_are_refused(workspace: Path, edit_recipe: Callable[[str, str], Path]) -> None:
    edit_recipe('version = "v1"', 'version = "v1"\ninput_range = [0.0, 1.0]')
    with pytest.raises(InvalidInput, match="were these examples preprocessed differently"):
        load(workspace)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04truncated"])
def test_an_unreadable_file_is_refused(workspace: Path, content: bytes) -> None:
    (workspace / "data.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match="not a readable npz file"):
        load(workspace)


def test_a_missing_file_and_a_bare_array_are_told_apart(workspace: Path) -> None:
    (workspace / "data.npz").unlink()
    with pytest.raises(InvalidInput, match="no such file"):
        load(workspace)
    with (workspace / "data.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InvalidInput, match="expected what numpy.savez writes"):
        load(workspace)


def test_more_data_than_the_limit_is_refused_before_it_is_read(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_NPZ_BYTES", 1000)
    with pytest.raises(InvalidInput, match="at most 1000; a sample is enough"):
        load(workspace)


def test_object_arrays_are_refused_since_reading_them_runs_code(workspace: Path, edit_data: Edit) -> None:
    edit_data(x_test=np.array([object()] * 3, dtype=object))
    with pytest.raises(InvalidInput, match="plain arrays"):
        load(workspace)
