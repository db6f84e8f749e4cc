"""The table [data]: what a source is by its name, and settings that do not go together are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.recipe import data_section
from compiler.recipe.data_section import DataSection, TokenizerSection
from penstock.errors import ConfigError
from penstock.process import config


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe of which only the data matter here."""

    data: DataSection


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("digits.npz", "npz"),
        ("a/b.CSV", "csv"),
        ("a/b.parquet", "parquet"),
        ("photos", "images"),
        ("photos.v2/", "images"),
        ("package.module:rows", "iterator"),
        ("scripts/rows.py:train", "iterator"),
    ],
)
def test_a_source_is_known_by_its_name(source: str, kind: str) -> None:
    assert data_section.kind_of(source) == kind


@pytest.mark.parametrize("source", ["a.pickle", "a.npy", "a.tsv", "rows.py", "archive.tar", "a.json"])
def test_other_files_are_refused_with_what_would_do(source: str) -> None:
    with pytest.raises(ConfigError, match="expected .npz, .csv, .parquet, a folder of images, or a Python iterator"):
        data_section.kind_of(source)


def test_a_recipe_reads_as_the_documentation_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
[data]
source = "reviews.parquet"
labels = "stars"
text = ["title", "body"]
columns = { age = "age", size = ["w", "h"] }
group_by = "language"
[data.splits]
tune = "warm"
column = "part"
[data.shares]
fit = 0.1
tune = 0.3
[data.tokenizer]
file = "tokenizer.json"
truncation = "only_second"
[data.limits]
max_rows = 10
"""
    )
    parsed = config.load(Recipe, file=path).data
    data_section.check(parsed)
    assert parsed.text_columns == ("title", "body")
    assert parsed.columns["size"] == ("w", "h")
    assert parsed.splits.names() == {"fit": "fit", "tune": "warm", "certify": "certify", "test": "test"}


def test_a_misspelt_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[data]\nsource = "a.csv"\n[data.tokenizer]\nmaxlength = 3\n')
    with pytest.raises(ConfigError, match="'data.tokenizer.maxlength'; did you mean 'max_length'"):
        config.load(Recipe, file=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "data.seed: -1 given, expected 0 or more"),
        ({"shares": {"fit": 0.5}}, "data.shares: fit 0.5, tune 0.2, certify 0.4, test 0.2 given, expected four shares"),
        ({"shares": {"fit": 0.0, "tune": 0.4}}, "above 0 that make 1 together"),
        ({"splits": {"fit": "a", "test": "a"}}, "data.splits: a, certify, a given, expected a name of its own"),
        ({"splits": {"certify": ""}}, "data.splits: fit, test given"),
        ({"limits": {"max_rows": 0}}, "data.limits: max_rows 0, .* given, expected limits above 0"),
        ({"source": "a.csv", "delimiter": "||"}, r"data.delimiter: '\|\|' given, expected one character"),
        ({"columns": {"x": "a"}}, "data.columns: only for csv and parquet sources; 'a.npz' is npz"),
        ({"source": "a.csv", "inputs": {"x": "a"}}, "data.inputs: only for npz and iterator sources"),
        ({"source": "folder", "group_by": "g"}, "data.group_by: only for .* 'folder' is images"),
        ({"delimiter": ";"}, "data.delimiter: only for csv"),
        ({"images": {"resize": 3}}, "data.images: only for images"),
        ({"splits": {"column": "part"}}, "data.splits.column: only for csv and parquet"),
        ({"source": "a.csv", "text": "t"}, r"data.text: needs \[data.tokenizer\] file"),
        ({"source": "a.csv", "tokenizer": {"file": "t.json"}}, "data.tokenizer: needs data.text"),
        ({"source": "a.npz", "tokenizer": {"max_length": 9}}, "data.tokenizer: needs data.text"),
        ({"source": "f", "images": {"resize": 0}}, r"data.images.resize, images.center_crop: \[0\] given"),
        ({"source": "f", "images": {"rescale": -1.0}}, "data.images.rescale: -1.0 given"),
        (
            {"source": "f", "images": {"normalize": {"mean": [0.5], "std": [0.5]}}},
            r"expected a mean and a std above 0 for each of 3 channels \(RGB\)",
        ),
        ({"source": "f", "images": {"channels": "L", "normalize": {"mean": [0.5], "std": [0.0]}}}, "1 channels"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    parsed = msgspec.convert({"source": "a.npz"} | changes, DataSection)
    with pytest.raises(ConfigError, match=message):
        data_section.check(parsed)


def test_defaults_are_good() -> None:
    for source in ("a.npz", "a.csv", "a.parquet", "folder", "m:f"):
        data_section.check(DataSection(source=source))
    data_section.check(DataSection(source="a.csv", text="t", tokenizer=TokenizerSection(file="t.json")))


def test_a_setting_of_an_earlier_release_says_what_became_of_it(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text('[data]\nsource = "x.npz"\nduplicates = "allow"\n')
    with pytest.raises(ConfigError, match=r"unknown setting 'data.duplicates'; it became data.repeats: \"natural\""):
        config.load(Recipe, file=tmp_path / "old.toml")
