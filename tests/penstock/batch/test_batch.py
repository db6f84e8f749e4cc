"""``penstock batch run``: one answer for each row, in order, whatever happens on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud_core.app import Core
from cloud_core.commands.core import command as core_command
from penstock import Client
from penstock.artifact.layout import Layout, VariantDraft
from penstock.batch.parts import Parts, Run
from penstock.cli.batch import run as command
from penstock.errors import Conflict, InvalidInput, NotFound
from penstock.registry import transfer
from penstock.registry.client import RegistryClient
from penstock.wire.tensors import Array, TensorSpec
from tests.cloud_core.rig import core_in_a_thread, onnx_layout
from tests.factories import echo_spec
from tests.waiting import wait_until

COLUMNS = ("a", "b", "c", "d")
CLASSES = ("low", "middle", "high")
ROWS = 1000


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    with core_in_a_thread(tmp_path_factory.mktemp("core")) as started:
        yield started


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the core serves, with names for its columns and classes."""
    names = {"columns": {"x": list(COLUMNS)}}
    made = onnx_layout(tmp_path_factory.mktemp("layout"), "v1", preprocessing=names, labels=CLASSES)
    return made.root


@pytest.fixture
def rows() -> Array:
    return np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)


def by_column(rows: Array, **more: Any) -> dict[str, Any]:
    return {**{name: rows[:, at] for at, name in enumerate(COLUMNS)}, **more}


def batch(*arguments: str | Path) -> dict[str, Any]:
    words = [*map(str, arguments), "-o", "json"]
    done = CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def logits(path: Path) -> Array:
    return np.array(pq.read_table(path)["logits"].to_pylist(), dtype=np.float32)


def expected(layout: Path, rows: Array) -> Array:
    """What the model answers, asked without a batch."""
    found = Layout(layout)
    weights = found.blobs.path(found.artifact().variant("cloud").weights.digest)
    (answer,) = onnxruntime.InferenceSession(str(weights)).run(None, {"x": rows})
    return np.asarray(answer)


def test_every_row_is_answered_in_order_and_columns_are_matched_by_name(
    layout: Path, rows: Array, tmp_path: Path
) -> None:
    shuffled = by_column(rows, id=[f"row {at}" for at in range(ROWS)])
    pq.write_table(pa.table(dict(reversed(shuffled.items()))), tmp_path / "in.parquet", row_group_size=77)
    said = batch(
        layout, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet", "--keep", "id", "--keep", "b"
    )
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "b", "logits", "class"]
    np.testing.assert_array_equal(table["b"].to_numpy(), rows[:, 1])
    best = expected(layout, rows).argmax(axis=1)
    assert table["class"].to_pylist() == [CLASSES[at] for at in best]
    assert table["id"].to_pylist() == [f"row {at}" for at in range(ROWS)]
    np.testing.assert_allclose(logits(tmp_path / "out.parquet"), expected(layout, rows), atol=1e-5)
    assert (said["rows"], said["refused"], said["resumed_rows"]) == (ROWS, 0, 0)
    assert not list(tmp_path.glob("*.parts"))


def test_the_same_through_a_core_from_csv_and_npz(core: Core, layout: Path, rows: Array, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=rows)
    at = ("--core", f"grpc://127.0.0.1:{core.grpc_port}")
    said = batch("mlp", "-i", tmp_path / "in.npz", "--output", tmp_path / "out.csv", *at, "--batch-rows", "16")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "logits"
    cells = [json.loads(line.strip('"')) for line in lines[1:]]
    np.testing.assert_allclose(np.array(cells), expected(layout, rows), atol=1e-5)
    assert said["version"].startswith("sha256:")
    with (tmp_path / "in.csv").open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        file.writelines(",".join(map(repr, row)) + "\n" for row in rows.tolist())
    batch(layout, "-i", tmp_path / "in.csv", "--output", tmp_path / "out.parquet")
    np.testing.assert_allclose(logits(tmp_path / "out.parquet"), expected(layout, rows), atol=1e-5)
    with pytest.raises(NotFound):
        batch("nothing", "-i", tmp_path / "in.npz", "--output", tmp_path / "other.csv", *at)


def test_texts_and_lists_of_many_lengths_come_back_as_they_went_in(tmp_path: Path) -> None:
    tensors = (
        TensorSpec(name="word", datatype="BYTES", shape=(-1, 1)),
        TensorSpec(name="numbers", datatype="INT64", shape=(-1, -1)),
    )
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(tensors))
    layout = Layout.create(tmp_path / "echo")
    spec = echo_spec("cloud", inputs=tensors, outputs=tensors, score_output="numbers", max_batch=16)
    layout.pack([VariantDraft(spec=spec, weights=tmp_path / "model.json")], tag="v1")
    went_in = {
        "word": [f"größe {at}" for at in range(100)],
        "numbers": [[2**60 + at] * (1 + at // 60) for at in range(100)],
    }
    pq.write_table(pa.table(went_in), tmp_path / "in.parquet")
    said = batch(layout.root, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    assert said["refused"] == 0
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == went_in


def test_a_refused_row_stops_with_its_number_or_is_an_entry(layout: Path, rows: Array, tmp_path: Path) -> None:
    cells = [*map(str, rows[:, 0].tolist())]
    cells[637] = "seven"
    columns = by_column(rows) | {"a": cells}
    with (tmp_path / "in.csv").open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        file.writelines(",".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    arguments = (layout, "-i", tmp_path / "in.csv", "--output", tmp_path / "out.parquet", "--batch-rows", "8")
    with pytest.raises(InvalidInput, match=r"^row 637: inputs\['a'\]: it holds 'seven'"):
        batch(*arguments)
    assert not (tmp_path / "out.parquet").exists()
    said = batch(*arguments, "--on-error", "row")
    table = pq.read_table(tmp_path / "out.parquet")
    assert said["refused"] == 1
    with pytest.raises(Conflict, match="1 of its rows were refused"):
        batch(*arguments)
    assert said["resumed_rows"] > 0
    assert [at for at, error in enumerate(table["error"].to_pylist()) if error] == [637]
    assert [at for at, answer in enumerate(table["logits"].to_pylist()) if answer is None] == [637]
    others = np.delete(np.arange(ROWS), 637)
    answers = np.array([answer for answer in table["logits"].to_pylist() if answer], np.float32)
    np.testing.assert_allclose(answers, expected(layout, rows[others]), atol=1e-5)


_KILLED = """
import os, signal, sys
from penstock.batch import parts
kept, moment = [], sys.argv.pop(1)
write, replace, discard = parts.Parts.write, os.replace, parts.Parts.discard
def write_and_die(self, index, cells):
    write(self, index, cells)
    kept.append(index)
    if moment == "parts" and len(kept) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
def replace_and_die(source, target):
    is_output = str(target).endswith(".parquet")
    if moment == "complete" and is_output:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if moment == "published" and is_output:
        os.kill(os.getpid(), signal.SIGKILL)
def discard_and_die(self):
    if moment == "tidying" and kept:
        next(self.root.glob("*.part")).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    discard(self)
parts.Parts.write, os.replace, parts.Parts.discard = write_and_die, replace_and_die, discard_and_die
from penstock.cli import main
main()
"""
"""The command, killed at a moment of its work: by itself, since nobody else hits it."""


@pytest.mark.parametrize("moment", ["parts", "complete", "published", "tidying"])
def test_killed_at_any_moment_and_started_again_there_is_one_row_for_each(
    layout: Path, rows: Array, tmp_path: Path, moment: str
) -> None:
    pq.write_table(pa.table(by_column(rows)), tmp_path / "in.parquet")
    arguments = (layout, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet", "--batch-rows", "4")
    words = [sys.executable, "-c", _KILLED, moment, "batch", "run", *map(str, arguments)]
    killed = subprocess.run(words, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "out.parquet").exists() == (moment in ("published", "tidying"))
    said = batch(*arguments)
    assert said["resumed_rows"] >= 3 * 32 * 4
    np.testing.assert_allclose(logits(tmp_path / "out.parquet"), expected(layout, rows), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet", "out.parquet.run.json"]


def test_killed_from_outside_in_the_middle_of_a_run_through_a_core(core: Core, layout: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(4).normal(size=(20_000, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    address = f"grpc://127.0.0.1:{core.grpc_port}"
    files = ("-i", tmp_path / "in.npz", "--output", tmp_path / "out.parquet", "--core", address, "--batch-rows", "2")
    words = [sys.executable, "-m", "penstock", "batch", "run", "mlp", *map(str, files)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        wait_until("parts", lambda: len([*(tmp_path / "out.parquet.parts").glob("*.part")]) >= 4)
        process.kill()
    assert not (tmp_path / "out.parquet").exists()
    said = batch("mlp", *files[:-1], "256")
    assert 4 * 64 <= said["resumed_rows"] < len(rows)
    np.testing.assert_allclose(logits(tmp_path / "out.parquet"), expected(layout, rows), atol=1e-5)


def test_a_default_that_moves_mixes_no_versions(core: Core, rows: Array, tmp_path: Path) -> None:
    first, second = (onnx_layout(tmp_path, f"v{seed}", model="moving", seed=seed) for seed in (1, 2))
    np.savez(tmp_path / "in.npz", x=rows)
    output, address = tmp_path / "out.parquet", f"grpc://127.0.0.1:{core.grpc_port}"
    arguments = ("moving", "-i", tmp_path / "in.npz", "--output", output, "--core", address)
    pushed(core, first, "v1")
    assert batch(*arguments)["version"] == first.digest
    made = Parts(output).made()
    assert made is not None
    output.unlink()
    Parts(output).begin(made.run)  # as a run that was killed before its first part leaves it
    pushed(core, second, "v2")
    with pytest.raises(Conflict, match="another version"):
        batch(*arguments, "--version", "v2")
    assert batch(*arguments)["version"] == first.digest
    np.testing.assert_allclose(logits(output), expected(first.root, rows), atol=1e-5)
    with pytest.raises(Conflict, match="made with another version"):
        batch(*arguments)
    assert batch(*arguments, "--overwrite")["version"] == second.digest


def pushed(core: Core, layout: Layout, default: str) -> None:
    """Push an artifact, and make it what the core answers with."""
    address = f"grpc://127.0.0.1:{core.grpc_port}"
    with RegistryClient(f"http://127.0.0.1:{core.http_port}") as registry:
        transfer.push(registry, layout)
    moved = CliRunner().invoke(core_command, ["default", "moving", default, "--core", address])
    assert moved.exit_code == 0, moved.output
    with Client(address) as client:
        wait_until(f"{default} answers", lambda: client.model_ready("moving"))
        assert client.metadata("moving").properties["default_version"] == default


def test_parts_of_another_input_or_version_are_refused(layout: Path, rows: Array, tmp_path: Path) -> None:
    arguments = (layout, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    pq.write_table(pa.table(by_column(rows)), tmp_path / "in.parquet")
    begun = Run(input_digest="sha256:other", rows=ROWS, model="mlp", version="sha256:v", part_rows=100)
    Parts(tmp_path / "out.parquet").begin(begun)
    with pytest.raises(Conflict, match="another input"):
        batch(*arguments)
    batch(*arguments, "--overwrite")
    made = Parts(tmp_path / "out.parquet").made()
    assert made is not None
    assert batch(*arguments)["resumed_rows"] == ROWS  # nothing is left to do
    (tmp_path / "out.parquet").unlink()
    Parts(tmp_path / "out.parquet").begin(msgspec.structs.replace(made.run, version="sha256:v"))
    with pytest.raises(Conflict, match="another version"):
        batch(*arguments)


def test_what_is_there_is_not_replaced_unasked(layout: Path, rows: Array, tmp_path: Path) -> None:
    pq.write_table(pa.table(by_column(rows)), tmp_path / "in.parquet")
    (tmp_path / "out.csv").write_text("mine\n")
    arguments = (layout, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.csv")
    with pytest.raises(Conflict, match="--overwrite"):
        batch(*arguments)
    assert (tmp_path / "out.csv").read_text() == "mine\n"
    with Parts(tmp_path / "out.csv").locked(), pytest.raises(Conflict, match="another process"):
        batch(*arguments, "--overwrite")
    batch(*arguments, "--overwrite")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == ROWS + 1


def test_a_damaged_part_is_answered_again(layout: Path, rows: Array, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "out.parquet")
    parts.begin(Run(input_digest="", rows=1, model="m", version="v", part_rows=1))
    parts.write(0, {"y": [1.5]})
    assert parts.read(0) == {"y": [1.5]}
    (part,) = parts.root.glob("*.part")
    part.write_bytes(part.read_bytes()[:-1])
    assert parts.read(0) is None


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"a": [1.0], "b": [1.0], "c": [1.0]}, "it has no 'd'"),
        ({name: [1.0] for name in (*COLUMNS, "e")}, "the model does not take 'e'"),
    ],
)
def test_columns_that_are_not_the_models_are_refused_before_any_row(
    layout: Path, tmp_path: Path, columns: dict[str, list[float]], why: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(InvalidInput, match=why):
        batch(layout, "-i", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet", "--on-error", "row")


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.npz"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00not a table"])
def test_a_file_that_is_none_is_refused_by_name(layout: Path, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=name):
        batch(layout, "-i", tmp_path / name, "--output", tmp_path / "out.parquet")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_rows_give_no_rows(layout: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in.csv").write_text(",".join(COLUMNS) + "\n")
    output = tmp_path / f"out.{kind}"
    assert batch(layout, "-i", tmp_path / "in.csv", "--output", output)["rows"] == 0
    assert output.is_file()
