"""Trying a toolchain: every way in which it can be broken ends in words, within a time limit."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from penstock.errors import InvalidInput
from penstock.toolchain import definitions, gpu, locations
from penstock.toolchain.doctor import diagnose
from tests.penstock.toolchain.tiny import Tiny

Broken = Callable[[str], None]


@pytest.fixture(scope="module")
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it; its directory."""
    directory = tmp_path_factory.mktemp("own") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    return directory


@pytest.fixture
def with_module(tiny: Tiny, own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """``with_module(code)``: toolchain tiny is an environment of the user's, where ``import victim`` runs ``code``."""
    (site,) = own_environment.glob("lib/python*/site-packages")
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TINY", str(own_environment / "bin" / "python"))
    trying = dataclasses.replace(definitions.TOOLCHAINS["tiny"], imports=("json", "victim"))
    monkeypatch.setitem(definitions.TOOLCHAINS, "tiny", trying)  # type: ignore[misc]

    def write(code: str) -> None:
        (site / "victim.py").write_text(code, encoding="utf-8")

    return write


def load_probe() -> ModuleType:
    """The probe is a program; its functions are tried here as well."""
    path = Path(locations.__file__).parent / "programs" / "probe.py"
    spec = importlib.util.spec_from_file_location("probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


probe = load_probe()


def test_what_works_is_listed(with_module: Broken) -> None:
    with_module("__version__ = '1.2'\nprint('chatter')")
    found = diagnose("tiny")
    assert found.verdict == "works"
    assert "import victim: 1.2" in found.findings
    assert found.problems == ()


def test_versions_that_were_not_tested_are_said_and_no_failure(with_module: Broken) -> None:
    with_module("")
    found = diagnose("tiny")
    assert found.verdict == "works"
    assert found.findings[-1] == "tinypkg missing instead of 1.0, which was tested"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import libmissing", "import victim: ModuleNotFoundError: No module named 'libmissing'"),
        ("raise OSError('libx.so: cannot open shared object file')", "import victim: OSError: libx.so: cannot open"),
        ("raise SystemExit(1)", "import victim: SystemExit: 1"),
        ("import os; os.kill(os.getpid(), 11)", "import victim ended the process: killed by SIGSEGV"),
        ("import os; os._exit(7)", "import victim ended the process: exit status 7"),
    ],
    ids=["missing module", "missing library", "exit", "segfault", "silent end"],
)
def test_a_broken_import_says_where_and_what(with_module: Broken, code: str, words: str) -> None:
    with_module(code)
    found = diagnose("tiny")
    assert found.verdict == "broken"
    assert found.problems[0].startswith(words)
    assert found.findings[0].startswith("import json: ")


def test_a_probe_that_hangs_is_stopped(with_module: Broken) -> None:
    with_module("import time; time.sleep(600)")
    found = diagnose("tiny", timeout_s=1.5)
    assert found.verdict == "broken"
    assert "import victim took more than 1.5 s" in found.problems


def test_an_interpreter_that_is_no_python_is_broken(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TINY", "/bin/false")
    found = diagnose("tiny")
    assert found.verdict == "broken"
    assert found.problems[0] == "starting the interpreter ended the process: exit status 1"


def test_a_variable_that_names_nothing_is_broken_not_fatal(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TINY", "/nowhere/python")
    found = diagnose("tiny")
    assert (found.verdict, found.state) == ("broken", "explicit")
    assert "no such program" in found.problems[0]


def test_what_is_not_installed_says_how_to_and_is_no_failure(tiny: Tiny) -> None:
    found = diagnose("tiny")
    assert found.verdict == "absent"
    assert found.problems == ("not installed: penstock toolchain install tiny (downloads 1.0 kB)",)


def test_what_cannot_be_installed_here_says_why(tiny: Tiny) -> None:
    tiny.rewrite(lambda text: "# environments: cp39-linux-x86_64\n" + text.partition("\n")[2])
    found = diagnose("tiny")
    assert found.verdict == "impossible"
    assert "locked for Python 3.9" in found.problems[0]


def test_an_outdated_one_is_broken(tiny: Tiny) -> None:
    tiny.directory.mkdir(parents=True)
    found = diagnose("tiny")
    assert (found.verdict, found.state) == ("broken", "outdated")
    assert found.problems[0].endswith("is incomplete: penstock toolchain install tiny")


def test_an_unknown_toolchain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no toolchain 'tinny'"):
        diagnose("tinny")


def test_without_a_driver_tensorrt_is_impossible_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path))
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver")
    assert diagnose("tensorrt").verdict == "impossible"


def test_the_driverless_builder_error_is_put_into_words(
    own_environment: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site,) = own_environment.glob("lib/python*/site-packages")
    (site / "tensorrt.py").write_text(
        "class Logger:\n    ERROR = 1\n    def __init__(self, level): ...\n"
        "class Builder:\n    def __init__(self, logger): raise TypeError('pybind11::init(): factory gave nullptr')\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TENSORRT", str(own_environment / "bin" / "python"))
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver here")
    found = diagnose("tensorrt")
    assert found.verdict == "broken"
    assert "make a builder: no NVIDIA driver here" in found.problems


@pytest.mark.parametrize(("version", "fits"), [("10.16.1.11", True), ("11.4.0.106", False)])
def test_onnxruntime_and_tensorrt_must_be_of_one_major_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, fits: bool
) -> None:
    library = tmp_path / "libonnxruntime_providers_tensorrt.so"
    library.write_bytes(b"\x7fELF\0libcudart.so.12\0libnvinfer.so.10\0libnvonnxparser.so.10\0")
    monkeypatch.setattr(probe, "_provider_library", lambda: library)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if fits:
        assert probe._pair() == f"onnxruntime-gpu and TensorRT {version} fit together"
    else:
        with pytest.raises(RuntimeError, match=r"needs libnvinfer.so.10, and TensorRT 11.4.0.106 is installed"):
            probe._pair()


def test_a_mismatched_pair_in_our_own_environment_is_found_though_the_toolchain_is_absent(
    own_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site,) = own_environment.glob("lib/python*/site-packages")
    library = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
    for name, version, files in (("onnxruntime_gpu", "1.31.1", [library]), ("tensorrt", "11.4.0.106", [])):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files), encoding="utf-8")
    (site / library).parent.mkdir(parents=True)
    (site / library).write_bytes(b"\x7fELF\0libnvinfer.so.10\0")
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path))
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver")
    monkeypatch.setattr(sys, "executable", str(own_environment / "bin" / "python"))
    found = diagnose("tensorrt")
    assert found.verdict == "impossible"
    assert "needs libnvinfer.so.10, and TensorRT 11.4.0.106 is installed" in found.problems[-1]
    assert "install 'tensorrt==10.*'" in found.problems[-1]


def test_without_onnxruntime_gpu_there_is_no_pair_to_check() -> None:
    assert probe._pair() == "onnxruntime-gpu is not installed, not needed"
    assert probe.needed_major(b"no library") is None
