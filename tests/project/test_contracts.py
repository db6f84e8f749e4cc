"""The layer, purity and one-importer rules of pyproject.toml hold, and can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def lint_imports(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LINT_IMPORTS), "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_every_contract_is_kept() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout


def test_a_broken_rule_is_found(tmp_path: Path) -> None:
    config = tmp_path / "contracts.toml"
    config.write_text(
        """
[tool.importlinter]
root_packages = ["penstock"]
include_external_packages = true

[[tool.importlinter.contracts]]
name = "nobody imports grpc"
type = "forbidden"
source_modules = ["penstock"]
forbidden_modules = ["grpc"]
"""
    )
    done = lint_imports("--config", str(config))
    assert done.returncode != 0
    assert "nobody imports grpc BROKEN" in done.stdout
