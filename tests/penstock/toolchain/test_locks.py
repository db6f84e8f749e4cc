"""The locks that ship: complete, hashed, and in step with the table and with the extras."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from penstock.errors import Internal
from penstock.toolchain import lock
from penstock.toolchain.definitions import TOOLCHAINS

ROOT = Path(__file__).resolve().parents[3]
LOCKED = [name for name, toolchain in TOOLCHAINS.items() if not toolchain.needs_gpu]


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "lock_toolchains.py"
    spec = importlib.util.spec_from_file_location("lock_toolchains", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.mark.parametrize("name", TOOLCHAINS)
def test_a_lock_has_the_pins_of_the_table(name: str) -> None:
    toolchain = TOOLCHAINS[name]
    packages = lock.lock_of(toolchain).packages
    assert {package: packages[lock.normalized(package)] for package in toolchain.pins} == dict(toolchain.pins)


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_is_pinned_with_hashes_and_the_sizes_are_known(name: str) -> None:
    locked = lock.lock_of(TOOLCHAINS[name])
    text = locked.path.read_text(encoding="utf-8").replace("\\\n", "")
    entries = [line for line in text.splitlines() if not line.startswith("#")]
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; \S+ \S+ \S+)?(\s+--hash=sha256:[0-9a-f]{64})+", entry), entry
    assert {"cp311-linux-x86_64", "cp314-linux-x86_64"} <= set(locked.environments)
    assert locked.download_bytes > 1_000_000
    assert locked.disk_bytes > locked.download_bytes


def test_linux_gets_the_cpu_build_of_torch_and_asks_for_it_first() -> None:
    lines = lock.lock_of(TOOLCHAINS["torch"]).path.read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if not line.startswith("#"))
    assert first.startswith('torch==2.13.0+cpu ; sys_platform != "darwin"')
    assert any(line.startswith('torch==2.13.0 ; sys_platform == "darwin"') for line in lines)
    assert not any(line.startswith(("nvidia-", "triton")) for line in lines)


def test_every_toolchain_is_an_extra_with_the_same_pins() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {name: extras.get(name) for name in TOOLCHAINS} == {
        name: None if toolchain.only_by_name else list(toolchain.requirements) for name, toolchain in TOOLCHAINS.items()
    }


def test_what_is_left_out_is_neither_asked_for_nor_missed() -> None:
    lines = [
        "numpy",
        'six>=1.16; python_version > "3.0"',
        "torchvision; python_version > '3'",
        'av; extra == "audio"',
        "a[b]>1",
    ]
    assert script._needs_here(lines, ("torchvision",)) == ["numpy", "six>=1.16", "a[b]>1"]
    packages = lock.lock_of(TOOLCHAINS["vllm"]).packages
    assert not set(TOOLCHAINS["vllm"].left_out) & set(packages)
    assert not [name for name in packages if name.startswith("nvidia-")]


def test_a_missing_lock_says_that_penstock_is_badly_installed(tmp_path: Path) -> None:
    with pytest.raises(Internal, match="pip install --force-reinstall"):
        lock.read(tmp_path / "none.txt")


def test_environments_in_words() -> None:
    tags = ("cp311-linux-x86_64", "cp312-linux-x86_64", "cp311-macos-arm64")
    assert lock.environment_words(tags) == "Python 3.11, 3.12 on linux-x86_64, macos-arm64"
    assert re.fullmatch(r"cp3\d+-(linux|macos)-\w+", lock.this_environment())


def test_a_package_that_another_environment_needs_is_noticed() -> None:
    old, new = (script.Environment(python=python, system="linux", machine="x86_64") for python in ("3.11", "3.12"))
    needs = {"torch": ['setuptools; python_version >= "3.12"', 'pytest; extra == "test"', "numpy>=2"], "numpy": []}
    extras: dict[str, set[str]] = {"torch": set(), "numpy": set()}
    versions = {"torch": "2.13.0+cpu", "numpy": "2.4.6"}
    assert list(script._unmet(needs, extras, versions, old)) == []
    assert list(script._unmet(needs, extras, versions, new)) == ["setuptools"]
    assert list(script._unmet(needs, {**extras, "torch": {"test"}}, versions, old)) == ["pytest"]
    assert list(script._unmet(needs, extras, {**versions, "numpy": "1.26"}, old)) == ["numpy>=2"]


def test_hashes_of_torchs_cpu_builds_are_found_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheels = {
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": "a",
        "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_aarch64.whl": "b",
    }
    (tmp_path / "wheels.json").write_text(json.dumps(wheels), encoding="utf-8")
    monkeypatch.setattr(script, "TORCH_WHEELS", tmp_path / "wheels.json")
    arm = script.Environment(python="3.11", system="linux", machine="aarch64")
    assert script._torch_hash("2.13.0+cpu", arm) == "b"
    with pytest.raises(RuntimeError, match="no hash of torch 2.13.0\\+cpu is known"):
        script._torch_hash("2.13.0+cpu", script.Environment(python="3.12", system="linux", machine="aarch64"))


def test_a_lock_is_written_with_one_line_for_each_build() -> None:
    linux = script.Environment(python="3.11", system="linux", machine="x86_64")
    mac = script.Environment(python="3.11", system="macos", machine="arm64")
    resolution = script.Resolution(
        {"numpy": "2.4.6", "torch": "2.13.0+cpu"},
        {linux: {"numpy": "n1", "torch": "t1"}, mac: {"numpy": "n2", "torch": "t2"}},
    )
    text = script._lock_text(TOOLCHAINS["torch"], resolution, {"download-bytes": 5})
    assert text.splitlines()[1:] == [
        "# environments: cp311-linux-x86_64 cp311-macos-arm64",
        "# download-bytes: 5",
        'torch==2.13.0+cpu ; sys_platform != "darwin" \\',
        "    --hash=sha256:t1",
        'torch==2.13.0 ; sys_platform == "darwin" \\',
        "    --hash=sha256:t2",
        "numpy==2.4.6 \\",
        "    --hash=sha256:n1 \\",
        "    --hash=sha256:n2",
    ]
