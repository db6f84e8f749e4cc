"""Real examples, once each way that a source can be written: scikit-learn's digits, wine and breast cancer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from compiler.data import DataSection, Dataset, loading
from penstock.wire.tensors import TensorSpec

DIGITS = TensorSpec(name="x", datatype="FP32", shape=(-1, 64))
GREY = 8  # a pixel of the digits is 0..16; times 8 it is a byte, and back again it is exact


class Bunch:
    """Features float32 [N, D], labels int64 [N], and their names."""

    def __init__(self, loaded: Any) -> None:
        self.x = loaded.data.astype(np.float32)
        self.y = loaded.target.astype(np.int64)
        self.columns = [str(name).replace("/", " of ") for name in loaded.feature_names]
        self.classes = tuple(str(name) for name in loaded.target_names)


@pytest.fixture(scope="session")
def digits() -> Bunch:
    return Bunch(load_digits())


@pytest.fixture(scope="session")
def wine() -> Bunch:
    return Bunch(load_wine())


@pytest.fixture(scope="session")
def cancer() -> Bunch:
    return Bunch(load_breast_cancer())


@pytest.fixture(scope="session")
def digit_images(digits: Bunch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``images/DIGIT/0000.png``: the first 400 digits, 8x8 grey."""
    root = tmp_path_factory.mktemp("digits") / "images"
    for row, (pixels, label) in enumerate(zip(digits.x[:400], digits.y, strict=False)):
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.reshape(8, 8) * GREY).astype(np.uint8)).save(folder / f"{row:04d}.png")
    return root


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """``write_csv({"column": values, ...}, "name.csv")``: a file with a header."""

    def write(columns: dict[str, Any], name: str = "table.csv", delimiter: str = ",") -> Path:
        lines = [delimiter.join(columns)]
        lines += [delimiter.join(str(value) for value in row) for row in zip(*columns.values(), strict=True)]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """``load(inputs, classes=3, labels_as=..., **section)`` from ``tmp_path``."""

    def from_here(inputs: list[TensorSpec], /, *, classes: int | None = 3, **settings: Any) -> Dataset:
        outside = {
            name: settings.pop(name) for name in ("labels_as", "labels_of_model", "input_range") if name in settings
        }
        if "labels_of_model" in outside:
            outside["labels"] = outside.pop("labels_of_model")
        return loading.load(DataSection(**settings), tmp_path, inputs, classes=classes, **outside)

    return from_here
