from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from penstock.cli.main import command


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_penstock_itself(shell: str) -> None:
    done = CliRunner().invoke(command, ["completion", shell])
    assert done.exit_code == 0
    assert f"_PENSTOCK_COMPLETE={shell}_complete" in done.output
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.output, text=True, check=True, timeout=20)


def test_an_unknown_shell_is_refused_with_those_there_are() -> None:
    done = CliRunner().invoke(command, ["completion", "tcsh"])
    assert done.exit_code == 2
    assert "bash" in done.output


def test_commands_are_completed() -> None:
    asked = {"_PENSTOCK_COMPLETE": "bash_complete", "COMP_WORDS": "penstock in", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['penstock']; from penstock.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["plain,infer"]
