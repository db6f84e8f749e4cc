"""Mistakes on the command line get one line that helps and an exit code, before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("core", "status", "--target", "nonsense"), 2, "--target: 'nonsense' is not a URL such as http://"),
        (("core", "status", "--target", "http://127.0.0.1:1"), 4, "no core answers at http://127.0.0.1:1"),
        (("versoin",), 2, "no command 'versoin'; did you mean 'version'?"),
        (("demo", "--json", "/nowhere/figures.json"), 2, "--json: /nowhere is not a directory"),
        (("demo", "--dir", "/dev/null/x"), 1, "--dir: creating /dev/null/x: Not a directory"),
        (("agent", "run", "--registry", "grpc://core:8001"), 2, "registry: 'grpc://core:8001' is not a URL"),
        (("agent", "run", "--core", "core"), 2, "'core' is not one of grpc://host:port"),
        (("agent", "status", "--socket", "none.sock"), 4, "no agent answers on none.sock"),
        (("fleet", "devices", "--core", "grpc://127.0.0.1:1"), 4, "127.0.0.1:1"),
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
