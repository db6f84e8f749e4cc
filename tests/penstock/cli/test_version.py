from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from penstock.cli.version import command


def test_json_has_every_library_that_is_declared_for_users() -> None:
    document = json.loads(CliRunner().invoke(command, ["-o", "json"]).output)
    assert document["penstock"] == importlib.metadata.version("penstock")
    assert document["python"] == ".".join(map(str, sys.version_info[:3]))
    libraries = document["libraries"]
    assert libraries["numpy"] == importlib.metadata.version("numpy")
    assert {"grpcio", "aiohttp", "onnxruntime", "sqlalchemy", "onnx"} <= set(libraries)
    assert not {"pytest", "ruff", "penstock"} & set(libraries)


def test_the_table_names_the_extra_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "aiohttp":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (line,) = [text for text in CliRunner().invoke(command, []).output.splitlines() if text.startswith("aiohttp")]
    assert line.split(maxsplit=2)[1:] == ["-", "not installed; pip install 'penstock[http]'"]


def test_no_library_is_imported_for_its_version() -> None:
    code = (
        "import sys; sys.argv = ['penstock', 'version']\n"
        "from penstock.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*{'numpy', 'grpc', 'onnxruntime', 'aiohttp', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[1].startswith("penstock")
    assert done.stderr.strip() == ""
