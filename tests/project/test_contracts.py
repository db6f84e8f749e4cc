"""The layer, purity and one-importer rules of pyproject.toml hold, and each of them can fail.

A rule that nothing can break says nothing. So every case makes one wrong import in a copy of the packages, one that a
hurried author would make, and sees ``lint-imports`` name it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("penstock", "compiler", "edge_agent", "cloud_core")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERED = [package for contract in CONTRACTS if contract.get("exhaustive") for package in contract["containers"]]
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and their contracts."""
    copy = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def lint_imports(tree: Path) -> tuple[bool, str]:
    """Whether every contract is kept in ``tree``, and what was said, on one line."""
    # the command puts its working directory first on sys.path: the copy's packages are read, not the installed ones
    done = subprocess.run(
        [str(LINT_IMPORTS), "--no-cache"], cwd=tree, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode == 0, " ".join((done.stdout + done.stderr).split())


@contextmanager
def changed(path: Path, addition: str) -> Iterator[None]:
    """Add text to a file, or make the file; afterwards all is as it was."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes((before or b"") + addition.encode())
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def file_of(tree: Path, module: str) -> Path:
    """The file of a module or of a package."""
    path = tree.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_contract_is_kept(tree: Path) -> None:
    kept, said = lint_imports(tree)
    assert kept, said


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        # against the layers
        ("edge_agent.identity", "edge_agent.serving.dataplane"),
        ("edge_agent.updates.store", "edge_agent.updates.updater"),
        ("edge_agent.serving.hosting", "edge_agent.serving.dataplane"),
        ("compiler.recipe.recipes", "compiler.pipeline.candidates"),
        ("penstock.wire.addresses", "penstock.artifact.layout"),
        ("penstock.artifact.manifests", "penstock.artifact.overview"),
        ("penstock.registry.connection", "penstock.registry.transfer"),
        ("cloud_core.policy.rollouts.gates", "cloud_core.settings"),
        ("cloud_core.state", "cloud_core.fleet.service"),
        # across the rooms
        ("penstock.wire.addresses", "edge_agent.settings"),
        ("edge_agent.settings", "cloud_core.settings"),
        ("edge_agent.settings", "compiler.recipe.recipes"),
        # a command past the composition root
        ("edge_agent.cli", "edge_agent.serving.dataplane"),
        ("cloud_core.commands.core", "cloud_core.serving.dataplane"),
        # a policy that would not be pure, by itself or through what it imports
        ("penstock.policy.batching", "time"),
        ("edge_agent.policy.cascade", "penstock.process.telemetry"),
        # a library in a second place
        ("penstock.sdk.client", "click"),
        ("penstock.artifact.layout", "onnxruntime"),
        ("compiler.recipe.recipes", "onnx"),
        ("edge_agent.updates.store", "sqlite3"),
        ("penstock.registry.client", "aiohttp"),
        ("edge_agent.identity", "grpc"),
        ("edge_agent.identity", "cryptography"),
        ("cloud_core.settings", "prometheus_client"),
        ("compiler.commands.compile", "jinja2"),
        ("compiler.data.dataset", "pyarrow"),
    ],
)
def test_a_wrong_import_is_found(tree: Path, importer: str, imported: str) -> None:
    path = file_of(tree, importer)
    assert path.exists(), "a case without its module shows nothing"
    if imported.startswith(PACKAGES):
        assert file_of(tree, imported).exists(), "a case without its module shows nothing"
    with changed(path, f"\nimport {imported}\n"):
        kept, said = lint_imports(tree)
    assert not kept
    assert f"{importer} -> {imported} (l." in said


def test_every_package_has_exhaustive_layers() -> None:
    assert set(PACKAGES) <= set(LAYERED)


def test_a_module_without_a_place_is_found_in_each_of_them(tree: Path) -> None:
    with ExitStack() as stack:
        for package in LAYERED:
            path = tree.joinpath(*package.split("."), "newcomer.py")
            stack.enter_context(changed(path, '"""A module that no layer names."""\n'))
        kept, said = lint_imports(tree)
    assert not kept
    assert [package for package in LAYERED if f"{package}.newcomer" not in said] == []
