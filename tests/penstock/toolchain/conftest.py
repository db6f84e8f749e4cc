"""The fixture ``tiny``: a toolchain of one pure-Python wheel, made here, on an index of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.toolchain import definitions, lock
from penstock.toolchain.definitions import Toolchain
from tests.penstock.toolchain.tiny import Tiny, make_wheel


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A toolchain of one package, and a pip that sees no index but its wheels."""
    wheels, locks, root = tmp_path / "wheels", tmp_path / "locks", tmp_path / "toolchains"
    wheels.mkdir()
    locks.mkdir()
    digest = make_wheel(wheels, "tinypkg", "1.0")
    header = f"# environments: {lock.this_environment()}\n# download-bytes: 1000\n# disk-bytes: 2000\n"
    (locks / "tiny.txt").write_text(f"{header}tinypkg==1.0 \\\n    --hash=sha256:{digest}\n", encoding="utf-8")
    toolchain = Toolchain(name="tiny", purpose="tests", requirements=("tinypkg==1.0",), imports=("tinypkg",))
    monkeypatch.setitem(definitions.TOOLCHAINS, "tiny", toolchain)  # type: ignore[misc]
    monkeypatch.setattr(lock, "LOCKS", locks)
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(root))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return Tiny(wheels=wheels, root=root, lock_file=locks / "tiny.txt")
