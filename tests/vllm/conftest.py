"""Tests with a real vLLM, which take a quarter of an hour: ``make test-vllm`` runs them, ``make test`` does not.

They skip themselves where the toolchain ``vllm`` is not installed. One vLLM runs at a time.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from penstock.toolchain import locations
from penstock.toolchain.definitions import find

collect_ignore_glob = [] if os.environ.get("PENSTOCK_TEST_VLLM") else ["test_*.py"]


@pytest.fixture(scope="session")
def interpreter() -> Path:
    """The Python that has vLLM."""
    python = locations.look(find("vllm")).python
    if python is None:
        pytest.skip("toolchain vllm is not installed: penstock toolchain install vllm, or set PENSTOCK_TOOLCHAIN_VLLM")
    return python


@pytest.fixture(scope="session")
def models(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of tiny models, and what transformers answers with one of them."""
    out = tmp_path_factory.mktemp("models")
    program = Path(__file__).with_name("make_models.py")
    subprocess.run([interpreter, program, out], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return out
