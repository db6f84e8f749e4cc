"""Rows that repeat or belong together: found, said, kept on one side, and counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.data import belonging
from compiler.data.dataset import Dataset, Split
from compiler.data.loading import load
from compiler.recipe.data_section import DataSection, SplitsSection
from penstock.errors import ConfigError, InvalidInput
from penstock.wire.tensors import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
SHARES = (20, 20, 40, 20)


def read(base: Path, source: str, **settings: Any) -> Dataset:
    return load(DataSection(source=source, **settings), base, [X], classes=None)


def write(base: Path, kind: str, columns: dict[str, Any], x: np.ndarray) -> str:
    """Write the same rows as npz, csv, parquet or Python; return the source's name."""
    if kind == "npz":
        np.savez(base / "d.npz", x=x, **columns)
        return "d.npz"
    table = {"x0": x[:, 0], "x1": x[:, 1], **columns}
    if kind == "py":
        rows = [
            ({"x": x[i].tolist(), **{k: v[i].item() for k, v in columns.items() if k != "y"}}, 0) for i in range(len(x))
        ]
        (base / "rows.py").write_text(f"ROWS = {rows!r}\ndef rows():\n    yield from ROWS\n")
        return "rows.py:rows"
    if kind == "csv":
        lines = [",".join(table), *(",".join(str(v) for v in row) for row in zip(*table.values(), strict=True))]
        (base / "d.csv").write_text("\n".join(lines) + "\n")
        return "d.csv"
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(table), base / "d.parquet")
    return "d.parquet"


def settings_of(kind: str) -> dict[str, Any]:
    return {"columns": {"x": ("x0", "x1")}} if kind in ("csv", "parquet") else {}


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (n, 2)).astype(np.float32)


def clusters_of(dataset: Dataset) -> list[set[int]]:
    found = []
    for split in dataset.by_use().values():
        assert split.clusters is not None
        found.append(set(split.clusters.tolist()))
    return found


# --- clusters by a column


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet", "py"])
@pytest.mark.parametrize("named", [True, False])
def test_every_cluster_is_in_one_split_whatever_the_source(tmp_path: Path, kind: str, named: bool) -> None:
    """A hundred patients with one to nine rows each; the column is no input, and its name is enough."""
    source_of = np.repeat(np.arange(100), np.random.default_rng(1).integers(1, 10, 100))
    x = rows(len(source_of))
    columns = {"y": np.zeros(len(x), np.int64), "patient_id": np.array([f"p{i}" for i in source_of])}
    source = write(tmp_path, kind, columns, x)
    asked = {"cluster_by": "patient_id"} if named else {}
    dataset = read(tmp_path, source, **asked, **settings_of(kind))
    sides = clusters_of(dataset)
    assert tuple(len(side) for side in sides) == SHARES  # of clusters, whatever their sizes
    assert len(set().union(*sides)) == 100
    assert sum(split.rows for split in dataset.by_use().values()) == len(x)
    said = f"{len(x)} rows in 100 clusters by 'patient_id', certified as wholes"
    if named:
        assert dataset.repeats.words == said
    else:
        assert dataset.repeats.words.startswith(f"{said} because of the column's name; data.cluster_by = ")


def test_every_row_is_a_draw_where_the_recipe_says_so(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", {"y": np.zeros(100, np.int64), "user": np.arange(100) % 7}, rows(100))
    dataset = read(tmp_path, source, repeats="natural", **settings_of("csv"))
    assert dataset.certify.clusters is None
    assert dataset.repeats.words == ""


def test_a_column_that_is_an_input_or_says_nothing_makes_no_clusters(tmp_path: Path) -> None:
    zero = np.zeros(100, np.int64)
    for columns in ({"device": np.full(100, "cpu")}, {"session": np.arange(100)}, {"x": rows(100)[:, 0]}):
        source = write(tmp_path, "csv", {"y": zero, **columns}, rows(100))
        assert read(tmp_path, source, **settings_of("csv")).certify.clusters is None
    source = write(tmp_path, "csv", {"y": zero, "user": np.arange(100) % 7}, rows(100))
    dataset = read(tmp_path, source, columns={"x": ("x0", "user")})
    assert dataset.certify.clusters is None
    named = read(tmp_path, source, columns={"x": ("x0", "user")}, cluster_by="user")  # said, so it holds
    assert named.repeats.clusters == 7


def test_equal_rows_join_clusters_unless_they_repeat_by_nature(tmp_path: Path) -> None:
    x = rows(100)
    x[1] = x[0]  # of patients 0 and 1
    columns = {"y": np.zeros(100, np.int64), "patient": np.arange(100) // 2 + np.array([0, 0] + [0] * 98)}
    columns["patient"][1] = 99
    source = write(tmp_path, "csv", columns, x)
    joined = read(tmp_path, source, cluster_by="patient", **settings_of("csv"))
    apart = read(tmp_path, source, cluster_by="patient", repeats="natural", **settings_of("csv"))
    assert (joined.repeats.clusters, apart.repeats.clusters) == (50, 51)


@pytest.mark.parametrize("named", [True, False])
def test_clusters_in_two_splits_of_the_users_own_are_refused(tmp_path: Path, named: bool) -> None:
    n = 120
    part = np.array(["fit", "certify", "test"] * 40)
    columns = {"y": np.zeros(n, np.int64), "camera": np.arange(n) // 2, "part": part}
    source = write(tmp_path, "csv", columns, rows(n))
    asked: dict[str, Any] = {"cluster_by": "camera"} if named else {}
    splits = SplitsSection(column="part")
    message = r"splits 'certify' and 'test' share 20 of 40 clusters by 'camera' \(first: '\d+'\)"
    with pytest.raises(InvalidInput, match=message) as caught:
        read(tmp_path, source, splits=splits, **asked, **settings_of("csv"))
    assert ('data.repeats = "natural"' in caught.value.message) != named
    columns["camera"] = np.unique(part, return_inverse=True)[1] * 100 + np.arange(n) % 10
    source = write(tmp_path, "csv", columns, rows(n))
    dataset = read(tmp_path, source, splits=splits, **asked, **settings_of("csv"))
    assert len(set(dataset.certify.clusters.tolist())) == 10  # type: ignore[union-attr]


def test_a_row_that_belongs_to_nothing_is_named(tmp_path: Path) -> None:
    patients = np.array([f"p{i // 2}" for i in range(100)], dtype=object)
    patients[13] = ""
    source = write(tmp_path, "csv", {"y": np.zeros(100, np.int64), "patient": patients}, rows(100))
    message = "d.csv:patient: row 13 does not say what it belongs to"
    with pytest.raises(InvalidInput, match=message) as caught:
        read(tmp_path, source, cluster_by="patient", **settings_of("csv"))
    assert "natural" not in caught.value.message
    with pytest.raises(InvalidInput, match=f'{message}.*read because its name.*"natural" leaves it alone'):
        read(tmp_path, source, **settings_of("csv"))
    source = write(tmp_path, "parquet", {"y": np.zeros(3, np.int64), "user": np.array(["a", None, "a"])}, rows(3))
    with pytest.raises(InvalidInput, match='column .user.: row 1 is missing.*"natural" leaves it alone'):
        read(tmp_path, source, **settings_of("parquet"))


def test_a_column_that_is_not_there_is_refused_and_folders_of_images_have_none(tmp_path: Path) -> None:
    source = write(tmp_path, "csv", {"y": np.zeros(100, np.int64)}, rows(100))
    with pytest.raises(InvalidInput, match="no column 'patinet' .data.cluster_by"):
        read(tmp_path, source, cluster_by="patinet", **settings_of("csv"))
    with pytest.raises(ConfigError, match=r"data.cluster_by: only for .* sources; 'photos' is images"):
        read(tmp_path, "photos", cluster_by="patient")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["x", "Patient ID"], "Patient ID"),
        (["session", "user_id"], "user_id"),  # a user has sessions
        (["cameraId"], "cameraId"),
        (["devices"], "devices"),
        (["patience", "username_length", "y"], ""),
    ],
)
def test_a_column_is_found_by_its_name(names: list[str], found: str) -> None:
    assert belonging.column(DataSection(source="d.csv"), names, ["x"]) == found
    assert belonging.column(DataSection(source="d.csv"), names, names) == ""
    assert belonging.column(DataSection(source="d.csv", repeats="natural"), names, []) == ""
    assert belonging.column(DataSection(source="d.csv", cluster_by="z"), names, []) == "z"


# --- joining and drawing, as properties

pairs = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 8)), min_size=1, max_size=40)


@given(pairs)
def test_rows_are_joined_exactly_where_a_chain_of_names_and_equal_rows_leads(rows: list[tuple[str, int]]) -> None:
    names, keys = [name for name, _ in rows], [bytes([key]) for _, key in rows]
    found = belonging.joined(names, keys)
    reached = [{i} for i in range(len(rows))]
    for _ in rows:  # the plain way: grow each row's set until nothing is added
        reached = [
            {j for j in range(len(rows)) for i in some if names[i] == names[j] or keys[i] == keys[j]}
            for some in reached
        ]
    for i in range(len(rows)):
        assert {j for j in range(len(rows)) if found[j] == found[i]} == reached[i]
        assert found[i] == min(names[j] for j in reached[i])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40), st.randoms())
def test_one_of_all_equal_rows_is_kept_and_it_is_the_same_in_any_order(
    rows: list[tuple[int, int]], shuffle: Any
) -> None:
    def kept(some: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        x = np.array([[key, key] for key, _ in some], np.float32)
        split = Split(name="all", inputs={"x": x}, labels=np.array([label for _, label in some]))
        (one,), _ = belonging.arranged([split], None, DataSection(source="d.npz"), cluster_by="")
        assert one.split.labels is not None
        copies = np.ones(one.split.rows) if one.split.copies is None else one.split.copies
        return sorted(
            zip(one.split.inputs["x"][:, 0].tolist(), one.split.labels.tolist(), copies.tolist(), strict=True)
        )

    found = kept(rows)
    assert [(key, count) for key, _, count in found] == [
        (key, sum(other == key for other, _ in rows)) for key in sorted({key for key, _ in rows})
    ]
    assert all((key, label) in rows for key, label, _ in found)
    other = list(rows)
    shuffle.shuffle(other)
    assert kept(other) == found


def test_which_of_equal_rows_is_kept_is_chance_and_not_its_label() -> None:
    """Of 2,000 rows that are there with label 0 and with label 1, about half keep each: always the first would bias."""
    x = np.repeat(np.arange(2000, dtype=np.float32), 2)[:, None].repeat(2, axis=1)
    split = Split(name="all", inputs={"x": x}, labels=np.tile([0, 1], 2000))
    (one,), _ = belonging.arranged([split], None, DataSection(source="d.npz"), cluster_by="")
    assert one.split.labels is not None
    assert 0.46 < float(one.split.labels.mean()) < 0.54
