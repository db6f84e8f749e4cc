"""``penstock compile`` as a user meets it: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compiler.recipe import recipes
from penstock.artifact.layout import Layout
from penstock.cli import main
from penstock.process import machine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``penstock compile ARGUMENTS`` in this process -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["penstock", "compile", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_table_on_stdout_progress_on_stderr(workspace: Path, run: Run) -> None:
    before = os.umask(0o027)
    code, out, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    os.umask(before)
    assert code == 0
    written = [workspace / "out", *(workspace / "out").rglob("*")]
    modes = {("dir" if path.is_dir() else "file", oct(path.stat().st_mode & 0o777)) for path in written}
    assert modes == {("dir", "0o750"), ("file", "0o640")}, "others in the group may read it, as the umask says"
    target = f"edge/{machine.edge_target()}"
    lines = out.splitlines()
    assert lines[0].startswith(target.upper())
    assert [line[2:17].strip() for line in lines[1:5]] == ["fp32", "int8 minmax", "int8 percentile", "int8 entropy"]
    assert [line.startswith(">") for line in lines[1:5]].count(True) == 1
    assert f"blobs:v1  {Layout(workspace / 'out').digest}" in lines
    assert lines[-2].startswith(
        f"{target}: 600 certifying examples do not show that escalating gains accuracy (right: "
    )
    assert "; with 95% confidence, answering locally at " in lines[-2]
    assert lines[-1] == f"report: {workspace / 'out' / 'report.html'}"
    assert [line.split()[0] for line in err.splitlines()][-3:] == ["test", "pack", "publish"]


def test_one_model_and_one_file_of_examples_are_enough(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No recipe: the float model is the cloud's, its int8 form the device's, and the rows divide themselves."""
    with np.load(workspace / "data.npz") as data:
        x, y = (np.concatenate([data[f"{name}_{split}"] for split in ("fit", "certify", "test")]) for name in "xy")
    np.savez(workspace / "d.npz", x=x, y=y)
    monkeypatch.chdir(workspace)
    code, out, err = run(
        "teacher.onnx", "--target", machine.edge_target(), "--data", "d.npz", "-o", "out", "-o", "json"
    )
    assert (code, err.count("Traceback")) == (0, 0)
    found = json.loads(out)
    assert found["reference"] == "teacher:v1"
    assert found["certificate"]["n"] == 440
    assert sum(split["rows"] for split in found["evaluation"]["splits"].values()) == 1100


def test_init_takes_the_models_path_from_where_the_user_stands(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "models").mkdir()
    (workspace / "teacher.onnx").rename(workspace / "models" / "teacher.onnx")
    monkeypatch.chdir(workspace)
    code, _, err = run("init", "models/teacher.onnx", "-o", "recipes/first.toml")
    assert code == 0, err
    recipe = recipes.load(workspace / "recipes" / "first.toml")
    assert recipe.rungs[0].section.model == "../models/teacher.onnx"
    assert (recipe.base / recipe.rungs[0].section.model).is_file()


def test_flags_that_a_recipe_settles_are_refused_with_one(workspace: Path, run: Run) -> None:
    code, _, err = run(workspace / "recipe.toml", "-o", workspace / "out", "--target", "any", "--precision", "fp32")
    assert code == 2
    assert "--precision, --target: the recipe says that" in err


def test_a_model_without_examples_says_what_is_missing(workspace: Path, run: Run) -> None:
    code, _, err = run(workspace / "teacher.onnx", "-o", workspace / "out")
    assert code == 2
    assert "--data has to say where examples are" in err
    assert "penstock compile init" in err


def test_smoke_needs_no_directory_and_says_what_it_was(workspace: Path, run: Run) -> None:
    code, out, _ = run(workspace / "recipe.toml", "--smoke")
    assert code == 0
    assert "the figures above mean nothing" in out
    assert not (workspace / "out").exists()


def test_an_interrupted_compilation_says_how_to_go_on(
    workspace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compiler.artifact.pack.write", interrupt)
    code, _, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    assert code == 130
    assert "the same command goes on from there" in err
    monkeypatch.undo()


@pytest.mark.usefixtures("warm")
def test_json_has_what_scripts_need(workspace: Path, run: Run) -> None:
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["reference"] == "blobs:v1"
    assert found["digest"] == Layout(workspace / "out").digest
    assert found["directory"] == str(workspace / "out")
    assert "with 95% confidence" in found["promise"]
    assert found["certificate"]["max_harm"] == 0.02
    assert set(found["accuracy"]) == {"edge", "fp32", "cloud", "cascade"}
    assert found["evaluation"]["schema"] == 2


@pytest.mark.usefixtures("warm")
def test_refused_certificate_is_exit_3_with_the_number_needed(
    workspace: Path, run: Run, edit_recipe: Callable[[str, str], Path]
) -> None:
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    code, out, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    assert (code, out) == (3, "")
    assert "2995 are needed" in err
    assert "--without-certificate" in err
    assert "Traceback" not in err
    assert not (workspace / "out").exists()


@pytest.mark.usefixtures("warm")
def test_without_certificate_says_that_everything_is_escalated(
    workspace: Path, run: Run, edit_recipe: Callable[[str, str], Path]
) -> None:
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "--without-certificate")
    assert code == 0
    assert "NO CERTIFICATE, agents will escalate every answer: 600 certifying" in out.splitlines()[-2]


def test_failed_gate_is_exit_3(workspace: Path, run: Run, edit_recipe: Callable[[str, str], Path]) -> None:
    with np.load(workspace / "data.npz") as data:
        arrays = {name: data[name] for name in data.files}
    arrays["x_tune"], arrays["y_tune"] = arrays["x_fit"], arrays["y_fit"]
    arrays["x_fit"] = 0.01 * arrays["x_fit"]  # ranges that clip everything that comes later
    np.savez(workspace / "data.npz", **arrays)
    edit_recipe("[certificate]", '[data.splits]\ntune = "tune"\n\n[certificate]')
    edit_recipe("max_accuracy_drop = 0.1", "max_accuracy_drop = 0.1\nrestore_operators = false")
    code, _, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    assert code == 3
    assert "refused: no candidate for edge/" in err


def test_occupied_destination_is_exit_3(workspace: Path, run: Run) -> None:
    code, _, err = run(workspace / "recipe.toml", "-o", workspace)
    assert code == 3
    assert "choose another directory" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_harm", "max_ham", "did you mean 'max_harm'"),
        ("student.onnx", "absent.onnx", "no such file"),
    ],
)
def test_a_wrong_recipe_is_exit_2(
    workspace: Path, run: Run, edit_recipe: Callable[[str, str], Path], old: str, new: str, message: str
) -> None:
    code, _, err = run(edit_recipe(old, new), "-o", workspace / "out")
    assert code == 2
    assert message in err


def test_dry_run_prints_the_plan_and_writes_nothing(workspace: Path, run: Run) -> None:
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "--dry-run")
    assert code == 0
    assert "at least 149 rows" in out
    assert not (workspace / "out").exists()
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "-o", "json", "--dry-run")
    assert [step["step"] for step in json.loads(out)][-3:] == ["gate", "certify", "pack"]


@pytest.mark.parametrize(
    "arguments", [(), ("-o", "json"), ("-o", "a", "-o", "b"), ("-o", "a", "-o", "json", "-o", "json")]
)
def test_one_directory_is_asked_for(workspace: Path, run: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(workspace / "recipe.toml", *arguments)
    assert code == 2
    assert "-o" in err


def test_help_has_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "penstock compile recipe.toml -o build/digits" in out
