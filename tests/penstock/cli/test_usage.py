"""Mistakes on the command line get one line that helps and an exit code, before anything is started."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.output import format_table


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("core", "status", "--core", "nonsense"), 2, "--core: target: 'nonsense' is not one of grpc://host:port"),
        (
            ("core", "status", "--core", "http://127.0.0.1:1"),
            4,
            "no core answers at http://127.0.0.1:1: Connection refused; start one with 'penstock core serve'",
        ),
        (("versoin",), 2, "no command 'versoin'; did you mean 'version'?"),
        (("demo", "--json", "/nowhere/figures.json"), 2, "--json: /nowhere is not a directory"),
        (("demo", "--example", "codecomplete", "--keep"), 2, "--keep: of the example codecomplete nothing stays"),
        (
            ("demo", "--example", "codecomplete", "--dir", "/dev/null/x"),
            1,
            "--dir: creating /dev/null/x: Not a directory",
        ),
        (("demo", "--dir", "/dev/null/x"), 1, "--dir: creating /dev/null/x: Not a directory"),
        (("agent", "run", "--registry", "grpc://core:8001"), 2, "registry: 'grpc://core:8001' is not a URL"),
        (("agent", "run", "--core", "core"), 2, "'core' is not one of grpc://host:port"),
        (("agent", "status", "--socket", "none.sock"), 4, "no agent answers on none.sock"),
        (
            ("fleet", "devices", "--core", "grpc://127.0.0.1:1"),
            4,
            "127.0.0.1:1: cannot reach it: Connection refused; start one with 'penstock core serve'",
        ),
        (
            ("artifact", "list", "--registry", "http://127.0.0.1:1"),
            4,
            "cannot reach the registry at http://127.0.0.1:1",
        ),
        (("artifact", "inspect", "./nothing"), 1, "./nothing: no such directory"),
    ],
    ids=lambda value: "-".join(value[:3]).replace("/", "") if isinstance(value, tuple) else "",
)
def test_one_line_and_no_traceback(arguments: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("core", "status", "--core", "http://127.0.0.1:1", "-o", "json"), 4, "unavailable"),
        (("artifact", "inspect", "./nothing", "--output=json"), 1, "not-found"),
        (("artifact", "inspect", "-ojson"), 2, "usage"),
        (("compile", "recipe.toml", "-o", "json"), 2, "usage"),
        (("compile", "init", "model.onnx", "-o", "json"), 2, "usage"),
    ],
)
def test_an_error_is_json_where_json_was_asked_for(
    arguments: tuple[str, ...], code: int, error: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "penstock", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)["error"]
    assert (document["code"], document["exit_code"]) == (error, code)
    assert document["message"] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_version_is_told_in_the_usual_way() -> None:
    done = subprocess.run([sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"penstock {importlib.metadata.version('penstock')}\n")


def test_a_table_that_is_too_wide_is_broken_between_words_in_its_widest_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = "a reason that goes on and on, and does not fit beside the others in eighty columns"
    rows = [("cam-1", "0" * 30, long, 7), ("cam-2", "1" * 30, "short", 12)]
    lines = format_table(["device", "digest", "why", "rows"], rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["DEVICE", "DIGEST", "WHY", "ROWS"]
    assert lines[1].startswith("cam-1   " + "0" * 30 + "  a reason")
    assert lines[1].endswith("     7")
    assert " ".join([*lines[1].split()[2:-1], *" ".join(lines[2:-1]).split()]) == long
    assert lines[-1].split() == ["cam-2", "1" * 30, "short", "12"]
    wide = format_table(["digest", "of"], [("0" * 64, "1" * 64)]).splitlines()
    assert wide[1] == "0" * 64 + "  " + "1" * 64, "a word is never broken"
    monkeypatch.delenv("COLUMNS")
    piped = format_table(["device", "digest", "why", "rows"], rows).splitlines()
    assert len(piped) == 3, "what goes into a pipe has a line for each row"
