"""What a process loads: light where it must be, never another room's libraries. Each check has its own interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOT_ON_A_DEVICE = {"onnx", "torch", "sqlalchemy", "sklearn", "scipy", "matplotlib", "jinja2", "pydantic"}
HEAVY = NOT_ON_A_DEVICE | {"aiohttp", "onnxruntime"}

_REPORT = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
_EVERY_MODULE = """
import importlib, pkgutil
import edge_agent
for module in pkgutil.walk_packages(edge_agent.__path__, "edge_agent."):
    importlib.import_module(module.name)
import penstock.runtime.onnx
"""


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that are loaded after ``code`` ran."""
    command = [sys.executable, "-c", code + _REPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_heavy_library() -> None:
    code = "from penstock.cli.main import command; command(['--help'], standalone_mode=False)"
    loaded = loaded_by(code)
    assert "penstock" in loaded
    assert loaded & (HEAVY | {"numpy", "grpc", "google", "rich", "asyncio"}) == set()


def test_importing_the_sdk_loads_only_what_a_client_needs() -> None:
    loaded = loaded_by("from penstock import Client, AsyncClient")
    assert loaded & (HEAVY | {"rich", "click", "compiler", "cloud_core", "edge_agent"}) == set()


def test_importing_the_package_loads_nothing() -> None:
    assert loaded_by("import penstock") & (HEAVY | {"numpy", "grpc", "msgspec"}) == set()


def test_an_agent_loads_nothing_of_the_compiler_or_the_core() -> None:
    loaded = loaded_by(f"exec({_EVERY_MODULE!r})")
    assert {"edge_agent", "onnxruntime", "aiohttp"} <= loaded
    assert loaded & (NOT_ON_A_DEVICE | {"compiler", "cloud_core"}) == set()


@pytest.mark.parametrize("module", ["compiler.commands.compile", "edge_agent.cli", "cloud_core.commands.core"])
def test_a_rooms_command_line_is_light(module: str) -> None:
    """``penstock ROOM --help`` and shell completion import the command's module only."""
    assert loaded_by(f"import {module}") & (HEAVY | {"uvloop", "prometheus_client"}) == set()


@pytest.mark.parametrize("module", ["penstock.runtime.onnx", "compiler.graph.onnx_libraries"])
def test_onnxruntime_tells_nobody_what_it_runs(module: str, tmp_path: Path) -> None:
    """Its builds send what happens to their maker, and keep files for that in the user's cache."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=60, env=environment)
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []
