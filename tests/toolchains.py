"""The ``toolchain`` fixture: a real toolchain, installed by the real installer, once for all sessions of a machine."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.errors import MissingToolchain
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from penstock.toolchain.install import install
from tests import forked_python

_TORCH = ("torch", "torch.onnx", "onnx", "onnxscript")
_CALL = importlib.import_module("penstock.toolchain.call")  # its package has a function of that name
IMPORTED: Mapping[str, tuple[str, ...]] = {
    "torch": (*_TORCH, "torch.export", "torch.onnx._internal.exporter._core"),
    "optimum": (*_TORCH, "transformers", "optimum.exporters.onnx", "optimum.exporters.tasks"),
    "transformers5": (*_TORCH, "transformers", "transformers.exporters.exporter_onnx"),
}
"""What runners of a toolchain import first, and the suite imports once; see ``tests.forked_python``."""


@pytest.fixture(scope="session")
def toolchain() -> Iterator[Callable[[str], str]]:
    """``toolchain("torch")`` makes sure that it is installed, and returns its name.

    It goes where users have it (or where ``PENSTOCK_TOOLCHAINS`` says), so that one installation serves every session
    and every test process: the installer's lock makes the others wait. A test of a toolchain that cannot be installed
    on this machine at all skips with the installer's reason. Runners that this process calls are forks of an
    interpreter that has imported their libraries; those of commands that tests start are processes as users have them.
    """
    forked: dict[str, Path] = {}
    require = _CALL.require

    def installed(name: str) -> str:
        if locations.look(find(name)).python is None:
            try:
                install(name)
            except MissingToolchain as error:
                pytest.skip(error.message)
        if name in IMPORTED and name not in forked:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pk-", dir="/tmp")))
            python = forked_python.interpreter(require(name), IMPORTED[name], directory, _CALL.environment(os.environ))
            forked[name] = stack.enter_context(python)
        return name

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        patched.setattr(_CALL, "require", lambda name: forked.get(name) or require(name))
        yield installed
