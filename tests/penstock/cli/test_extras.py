"""Every command of a bare install names the extra that brings what it lacks, in one line and without a traceback."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.cli.main import _missing

# what the base install brings; everything else is hidden, as it is where 'pip install penstock' was all
_BARE = """
import importlib.metadata, re, runpy, sys

name = lambda requirement: re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()
base = {name(r) for r in importlib.metadata.requires("penstock") if "extra ==" not in r}
extra = {name(r) for r in importlib.metadata.requires("penstock") if "extra ==" in r} - base
modules = {module for module, dists in importlib.metadata.packages_distributions().items()
           if {dist.lower() for dist in dists} & extra and not {dist.lower() for dist in dists} & base}

class Hidden:
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in modules:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

sys.meta_path.insert(0, Hidden())
sys.argv = ["penstock", *sys.argv[1:]]
runpy.run_module("penstock", run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])), path)
    np.savez(path.with_name("data.npz"), x=np.zeros((8, 2), np.float32), y=np.zeros(8, np.int64))
    return path


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("demo", "demo"),
        ("agent run", "agent"),
        ("core serve", "core"),
        ("compile MODEL --data DATA -o out", "compile"),
        ("compile init MODEL -o recipe.toml", "compile"),
        ("keys generate release", "sign"),
    ],
)
def test_a_command_names_the_extra_that_it_needs(arguments: str, extra: str, model: Path, tmp_path: Path) -> None:
    words = arguments.replace("MODEL", str(model)).replace("DATA", str(model.with_name("data.npz"))).split()
    done = subprocess.run(
        [sys.executable, "-c", _BARE, *words],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"is not installed: pip install 'penstock[{extra}]'" in last
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "nothing had begun"


def test_a_device_needs_no_library_that_draws_on_terminals() -> None:
    required = importlib.metadata.requires("penstock") or []
    base = {line.split(">")[0] for line in required if "extra ==" not in line}
    agent = {line.split(">")[0] for line in required if "extra == 'agent'" in line}
    assert {"click", "numpy"} <= base
    assert "onnxruntime" in agent
    assert "rich" not in base | agent


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("artifact", "onnxruntime", "agent"),  # not of the command's own extra, 'sign'
        ("agent", "prometheus_client", "agent"),
        ("core", "grpc_health", "core"),  # a package of another name
        ("compile", "onnx", "compile"),
    ],
)
def test_the_extra_that_is_named_brings_the_library(command: str, module: str, extra: str) -> None:
    absent = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert f"pip install 'penstock[{extra}]'" in str(_missing(command, absent))


def test_what_is_broken_or_ours_is_no_missing_library() -> None:
    for error in (ImportError("undefined symbol", name="onnx"), ModuleNotFoundError("none", name="penstock.nothing")):
        assert _missing("compile", error) is error
