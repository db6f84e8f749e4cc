"""The commands of the pages about compiling and certifying, typed in their order, on digits."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_readme import run_script
from tests.pages import DOCS
from tests.processes import DigitsBuild
from tests.project.readme import Block, blocks, script

ROWS = {"fit": 700, "tune": 200, "certify": 450}
"""Of the table that is compiled from; the other digits are new."""

RECIPE = """\
[model]
name = "digits"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
[edge]
model = "student.onnx"
precisions = ["fp32"]
[cloud]
model = "teacher.onnx"
[data]
source = "old.csv"
columns = { x = "p*" }
splits.column = "split"
[certificate]
max_harm = 0.10
"""
AGAIN = """\
[data]
source = "more.csv"
columns = { x = "p*" }
"""


def _typed(page: str) -> list[Block]:
    return blocks((DOCS / "how-to" / page).read_text(encoding="utf-8"))


def _table(path: Path, x: np.ndarray, y: np.ndarray, **columns: object) -> None:
    names = [*(f"p{n}" for n in range(x.shape[1])), "y", *columns]
    cells = zip(*x.T.astype(str), y.astype(str), *columns.values(), strict=True)
    path.write_text("\n".join([",".join(names), *(",".join(row) for row in cells)]) + "\n")


def _env(directory: Path) -> Mapping[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PENSTOCK_CACHE": str(directory / "cache")}


def test_what_the_page_about_compiling_says_is_typed(digits_build: DigitsBuild, tmp_path: Path) -> None:
    shutil.copy(digits_build.models / "student_v2.onnx", tmp_path / "model.onnx")
    for name in ("data.npz", "d.npz"):
        shutil.copy(digits_build.models / "data.npz", tmp_path / name)
    commands = [block for block in _typed("compile-a-model.md") if block.commands]
    # the second block's answer is elsewhere than the first's: a directory that holds another build is refused
    elsewhere = [
        Block(b.language, b.text.replace("d.npz -o build/m", "d.npz -o build/n"), b.tested_by) for b in commands
    ]
    done = run_script(script(elsewhere), tmp_path, **_env(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "rows: 700 ranges, 200 tune, 450 certify, 447 test" in done.stdout
    assert "figures above mean nothing" in done.stdout
    assert (tmp_path / "build" / "m" / "report.html").exists()


@pytest.fixture(scope="module")
def compiled(digits_build: DigitsBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an artifact in ``build/digits`` and examples that have certified nothing yet."""
    directory = tmp_path_factory.mktemp("certify")
    with np.load(digits_build.models / "data.npz") as file:
        data = dict(file)
    for name in ("student_v1", "teacher"):
        shutil.copy(digits_build.models / f"{name}.onnx", directory / f"{name.removesuffix('_v1')}.onnx")
    splits = [*ROWS, "test"]
    x, y = (np.concatenate([data[f"{stem}_{split}"] for split in splits]) for stem in "xy")
    _table(directory / "old.csv", x, y, split=np.repeat(splits, [len(data[f"y_{split}"]) for split in splits]))
    (directory / "recipe.toml").write_text(RECIPE)
    done = run_script(
        script([Block("bash", "penstock compile recipe.toml -o build/digits", "")]), directory, **_env(directory)
    )
    assert done.returncode == 0, done.stdout
    new_x, new_y = data["x_test"], data["y_test"]
    np.savez(directory / "new.npz", x=new_x, y=new_y, site=np.where(np.arange(len(new_y)) % 2, "north", "south"))
    _table(directory / "new.csv", new_x, new_y, patient=np.arange(len(new_y)).astype(str))
    _table(directory / "more.csv", new_x, new_y)
    (directory / "recipe.toml").write_text(AGAIN)
    return directory


COMMANDS = [command for block in _typed("certify-again.md") for command in block.commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_page_about_certifying_says_is_typed(compiled: Path, tmp_path: Path, command: str) -> None:
    """Each alone: the same examples certify a variant once."""
    work = tmp_path / "work"
    shutil.copytree(compiled, work)
    done = run_script(script([Block("bash", command, "")]), work, **_env(tmp_path))
    assert done.returncode == 0, done.stdout


def test_the_page_about_certifying_has_its_commands() -> None:
    assert len(COMMANDS) == 6
