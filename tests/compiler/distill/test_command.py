"""``penstock compile distill`` as a user meets it: with and without a recipe, interrupted, and with wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from compiler.commands.distill import command
from compiler.distill import prepare
from compiler.distill.student import Request
from compiler.progress import unwatched
from penstock.errors import ConfigError, InvalidInput, PenstockError, Unavailable
from penstock.runtime import EngineOptions, load_engine
from tests.compiler.distill.conftest import NETS, Digits
from tests.waiting import PATIENCE_S

Run = Callable[..., tuple[int, str, str]]
RECIPE = """
[model]
name = "digits"

[edge]
model = "nets.py:make"
distill = true

[cloud]
model = "teacher.onnx"

[data]
source = "data.npz"

[distill]
split = "train"
epochs = 3
threads = 1
"""


@pytest.fixture
def workspace(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """teacher.onnx, nets.py, data.npz and recipe.toml in the current directory; a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "teacher.onnx").write_bytes(digits.teacher.read_bytes())
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arrays = {f"x_{name}": split.inputs["x"] for name, split in digits.splits.items()}
    arrays |= {f"y_{name}": split.labels for name, split in digits.splits.items() if split.labels is not None}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
    return tmp_path


def run(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); errors of ours are raised."""
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


PLAIN = ("--teacher", "teacher.onnx", "--student", "nets.py:make", "--threads", "1", "-o", "s.onnx")


def test_a_recipe_says_everything(workspace: Path, torch: str, digits: Digits) -> None:
    before = os.umask(0o027)
    code, out, err = run("recipe.toml", "-o", "build/student.onnx", "-o", "json", "--epochs", "4")
    os.umask(before)
    assert code == 0, err
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path("build").iterdir()}
    assert modes == {"student.onnx": 0o640, "student.json": 0o640}, "others in the group may read them"
    found = json.loads(out)
    assert found["student"] == "build/student.onnx"
    metrics = found["metrics"]
    assert metrics == json.loads((workspace / "build" / "student.json").read_text())
    assert metrics["settings"]["epochs"] == 4, "a flag wins"
    assert (metrics["split"], metrics["left_out"]) == ("train", 0)
    assert metrics["train_rows"] + metrics["validation_rows"] == 700
    assert metrics["versions"]["torch"].startswith("2.")
    assert load_engine("onnx", Path("build/student.onnx"), EngineOptions()).outputs[0].name == "logits"
    assert err.splitlines()[-1].startswith("100%")
    assert not any((workspace / "cache" / "compile" / "distill" / "unfinished").iterdir()), "no checkpoint stays behind"


def asked(flags: dict[str, Any], workspace: Path) -> AbstractContextManager[Request]:
    out = workspace / "student.onnx"
    return prepare.from_recipe(Path("recipe.toml"), flags, out=out, work=workspace, token="", progress=unwatched)


def test_without_a_split_of_its_own_training_takes_the_part_of_ranges(workspace: Path) -> None:
    (workspace / "recipe.toml").write_text(RECIPE.replace('split = "train"\n', ""))
    with asked({}, workspace) as found:
        assert (found.train.name, found.train.rows) == ("ranges", 100), "the other half of fit is for choices"
        assert [split.rows for split in found.held_out] == [100, 450, 447]
        assert found.section.student == "nets.py:make"


def test_a_split_of_its_own_leaves_the_others_as_they_are(workspace: Path) -> None:
    with asked({"split": "train"}, workspace) as found:
        assert (found.train.name, found.train.rows) == ("train", 700)
        assert [split.rows for split in found.held_out] == [200, 450, 447], "fit chooses as a whole now"


def test_a_training_split_that_shares_rows_is_refused(workspace: Path) -> None:
    arrays = dict(np.load("data.npz"))
    arrays["x_train"][:5] = arrays["x_certify"][:5]
    np.savez("data.npz", **arrays)
    with pytest.raises(InvalidInput, match="'certify' and 'train' share 5 of 450 rows"):
        run("recipe.toml", "-o", "s.onnx")


def test_a_source_without_splits_has_none_to_name(workspace: Path) -> None:
    arrays = np.load("data.npz")
    np.savez("data.npz", x=arrays["x_train"], y=arrays["y_train"])
    with pytest.raises(ConfigError, match="no splits of its own, and so none called 'train'"):
        run("recipe.toml", "-o", "s.onnx")


def test_ctrl_c_and_the_same_command_again(workspace: Path, torch: str) -> None:
    program = "import importlib; m = importlib.import_module('penstock.cli.main'); "
    program += "from compiler.commands.distill import command; m.command = command; m.main()"
    settings = ("--student", "nets.py:held", "--epochs", "5", "--patience", "0", "--checkpoint-s", "0")
    # the signal finds it in the second of its five epochs, however long it takes to come
    Path("steps").write_text("15")
    arguments = (*PLAIN, "--data", "data.npz", *settings)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    started = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        too_late = threading.Timer(PATIENCE_S, process.kill)  # one that does not end fails this test, and not the run
        too_late.start()
        for line in process.stderr:
            if "distil: epoch" in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.stderr.read()
        too_late.cancel()
        assert process.wait(timeout=PATIENCE_S) == 130
    assert "run the same command again to go on from the last checkpoint" in said
    assert "Traceback" not in said
    assert not Path("s.onnx").exists()
    unfinished = workspace / "cache" / "compile" / "distill" / "unfinished"
    (kept,) = unfinished.iterdir()
    assert (kept / "checkpoint").stat().st_size > 1000
    Path("steps").unlink()
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.splitlines()[0].split() == ["PHASE", "EPOCH", "LOSS", "VALIDATION", "RIGHT"]
    assert "note:" not in out, "nothing was wrong with what was kept"
    assert not any(unfinished.iterdir())


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--data", "gone.npz"), InvalidInput, "no such file"),
        (("--data", "data.npz", "--split", "test"), ConfigError, "never train"),
        (("--data", "data.npz", "--split", "tain"), InvalidInput, "no arrays '<input>_tain'"),
        (("--data", "data.npz", "--labels", "label"), InvalidInput, "no labels 'label_train'"),
        (("--data", "data.npz", "--teacher", "gone.onnx"), InvalidInput, "gone.onnx"),
        (("--data", "data.npz", "--teacher", "grpc://127.0.0.1:1"), ConfigError, "grpc://host:port/model"),
        (("--data", "data.npz", "--teacher", "ftp://127.0.0.1:1/m"), ConfigError, "grpc://host:port/model"),
        (("--data", "data.npz", "--teacher", "grpc://127.0.0.1:1/m"), Unavailable, "127.0.0.1:1"),
        (("--data", "data.npz", "--epochs", "0"), ConfigError, "distill.epochs"),
        (("--data", "data.npz", "--defer", "maybe"), ConfigError, "none, labels, gatekeeper"),
        (("--data", "double.npz"), InvalidInput, "double.npz:x_train: datatype is FP64, expected FP32"),
        (("--data", "nan.npz"), InvalidInput, "nan.npz:x_train: NaN or infinite values in 1 rows, first row 3"),
        (("--data", "unlabelled.npz", "--alpha", "0.5"), ConfigError, "no labels; set alpha = 0"),
    ],
)
def test_wrong_input_is_named(
    workspace: Path, torch: str, arguments: tuple[str, ...], kind: type[PenstockError], message: str
) -> None:
    x = np.load("data.npz")["x_train"]
    np.savez("double.npz", x_train=x.astype(np.float64))
    np.savez("unlabelled.npz", x_train=x)
    np.savez("nan.npz", x_train=np.where(np.arange(700)[:, None] == 3, np.float32(np.nan), x))
    with pytest.raises(kind, match=message):
        run(*PLAIN, *arguments)
    assert not Path("s.onnx").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs = 3", "epoch = 3"), "did you mean 'epochs'"),
        (('split = "train"', 'split = "certify"'), "never train"),
        (('name = "digits"', 'name = "digits"\ntask = "embedding"'), "classifier"),
    ],
)
def test_a_wrong_recipe_is_refused(workspace: Path, change: tuple[str, str], message: str) -> None:
    (workspace / "recipe.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        run("recipe.toml", "-o", "s.onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "s.onnx"),
        ("--teacher", "t.onnx", "--student", "n.py:f", "-o", "s.onnx"),
        ("recipe.toml",),
        ("recipe.toml", "-o", "directory"),
        ("recipe.toml", "-o", "s.onnx", "--data", "data.npz"),
        ("recipe.toml", "-o", "s.onnx", "--output-kind", "logits"),
    ],
)
def test_wrong_usage_is_exit_2(workspace: Path, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert "Error:" in err


def test_help_teaches_by_examples() -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "penstock compile distill --teacher teacher.onnx --student net.py:make --data d.npz -o student.onnx" in out
    assert "def make():" in out


def test_all_settings_have_a_flag() -> None:
    from compiler.recipe.distill_section import LATER, DistillSection

    flags: set[Any] = {parameter.name for parameter in command.params}
    assert set(DistillSection.__struct_fields__) - set(LATER) <= flags  # those decide about candidates of a compilation
