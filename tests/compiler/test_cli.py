"""``penstock compile`` as a user meets it: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penstock.cli import main
from penstock.layout import Layout

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
    code, out, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    assert code == 0
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == ["student fp32", "student int8", "teacher fp32", "cascade"]
    assert lines[-2] == f"blobs:v1  {Layout(workspace / 'out').digest}"
    assert lines[-1].startswith("with 95% confidence, answering locally at max_prob >= ")
    steps = [line.split()[0] for line in err.splitlines()]
    assert steps == ["load", "quantize", "calibrate", "evaluate", "certify", "pack"]


def test_json_has_what_scripts_need(workspace: Path, run: Run) -> None:
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["reference"] == "blobs:v1"
    assert found["digest"] == Layout(workspace / "out").digest
    assert found["directory"] == str(workspace / "out")
    assert found["promise"].startswith("with 95% confidence")
    assert found["certificate"]["max_harm"] == 0.02
    assert set(found["accuracy"]) == {"edge", "fp32", "cloud", "cascade"}
    assert found["evaluation"]["schema"] == 1


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


def test_without_certificate_says_that_everything_is_escalated(
    workspace: Path, run: Run, edit_recipe: Callable[[str, str], Path]
) -> None:
    edit_recipe("max_harm = 0.02", "max_harm = 0.001")
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "--without-certificate")
    assert code == 0
    assert out.splitlines()[-1].startswith("NO CERTIFICATE, agents will escalate every answer: 600 certifying")


def test_failed_gate_is_exit_3(workspace: Path, run: Run, edit_data: Callable[..., None]) -> None:
    with np.load(workspace / "data.npz") as data:
        x = data["x_fit"]
    x[:, 3] = np.where(np.arange(200) % 2, 2000, -2000)
    edit_data(x_fit=x)
    code, _, err = run(workspace / "recipe.toml", "-o", workspace / "out")
    assert code == 3
    assert "refused: int8 costs" in err


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
    assert "600 rows (149 needed at least)" in out
    assert not (workspace / "out").exists()
    code, out, _ = run(workspace / "recipe.toml", "-o", workspace / "out", "-o", "json", "--dry-run")
    assert [step["step"] for step in json.loads(out)] == ["load", "quantize", "calibrate", "gate", "certify", "pack"]


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
