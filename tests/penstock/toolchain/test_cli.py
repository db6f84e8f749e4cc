"""``penstock toolchain``: what each word prints, asks and exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from penstock.cli.toolchain import command
from penstock.toolchain import definitions
from penstock.toolchain.definitions import TOOLCHAINS
from penstock.toolchain.install import install
from tests.penstock.toolchain.tiny import Tiny


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(command, list(arguments), input=answer)


def test_help_teaches_with_examples() -> None:
    text = run("--help").output
    for words in ("penstock toolchain install torch", "PENSTOCK_TOOLCHAINS", "PENSTOCK_TOOLCHAIN_TORCH"):
        assert words in text


def test_list_has_every_toolchain_its_state_and_sizes(tiny: Tiny) -> None:
    for name in TOOLCHAINS:
        if name != "tiny":
            (tiny.lock_file.parent / f"{name}.txt").write_text("", encoding="utf-8")
    install("tiny")
    rows = {row["name"]: row for row in json.loads(run("list", "-o", "json").output)}
    assert set(rows) == set(TOOLCHAINS)
    assert rows["tiny"]["state"] == "installed"
    assert rows["tiny"]["disk_bytes"] > 1000
    table = run("list").output
    assert "tiny" in table
    assert "installed" in table
    assert "NVIDIA GPU and its driver" in table


def test_install_says_what_it_does_and_then_that_it_is_there(tiny: Tiny) -> None:
    first = run("install", "tiny")
    assert first.exit_code == 0, first.output
    assert "toolchain tiny (tests): 1 package: 1.0 kB to fetch, 2.0 kB on disk, into" in first.stderr
    assert "tinypkg 1.0" in first.stderr
    assert first.stdout.startswith("tiny: installed: 1 package,")
    assert run("install", "tiny").stdout.startswith("tiny: is there and current")
    (again,) = json.loads(run("install", "tiny", "-o", "json").stdout)
    assert again["was_there"]


@pytest.mark.parametrize("arguments", [["install"], ["install", "tiny", "--all"], ["remove"]])
def test_names_or_all_and_not_both(tiny: Tiny, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert "or --all" in done.output


def test_remove_asks_unless_told_not_to(tiny: Tiny) -> None:
    install("tiny")
    assert run("remove", "tiny", answer="n\n").exit_code == 1
    assert tiny.directory.exists()
    done = run("remove", "tiny", "--yes", "-o", "json")
    assert json.loads(done.stdout)[0]["freed_bytes"] > 1000
    assert not tiny.directory.exists()
    assert run("remove", "tiny").stdout == "nothing to remove\n"


def test_doctor_is_content_when_nothing_is_installed_and_not_when_something_is_broken(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("doctor", "tiny")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (0, "tiny: not installed")
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TINY", "/bin/false")
    done = run("doctor", "tiny")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (1, "tiny: DOES NOT WORK")
    (found,) = json.loads(run("doctor", "tiny", "-o", "json").stdout)
    assert found["verdict"] == "broken"


def test_an_unknown_name_is_one_line_and_exit_code_two() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "toolchain", "install", "troch"],
        env={**os.environ, "PENSTOCK_TOOLCHAINS": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, "penstock: toolchain: no toolchain 'troch'; did you mean 'torch'?\n")


def test_all_leaves_out_what_is_installed_by_name_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    only = replace(TOOLCHAINS["tiny"], only_by_name=True)
    monkeypatch.setattr(definitions, "TOOLCHAINS", {"tiny": only})
    assert json.loads(run("install", "--all", "-o", "json").stdout) == []
    assert run("install", "tiny").stdout.startswith("tiny: installed")
    assert run("remove", "--all", "--yes").stdout.startswith("tiny: removed")
