"""The ``toolchain`` fixture: a real toolchain, installed by the real installer, once for all sessions of a machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.errors import MissingToolchain
from penstock.toolchain import locations
from penstock.toolchain.definitions import find
from penstock.toolchain.install import install


@pytest.fixture(scope="session")
def toolchain() -> Callable[[str], str]:
    """``toolchain("torch")`` makes sure that it is installed, and returns its name.

    It goes where users have it (or where ``PENSTOCK_TOOLCHAINS`` says), so that one installation serves every session
    and every test process: the installer's lock makes the others wait. A test of a toolchain that cannot be installed
    on this machine at all skips with the installer's reason.
    """

    def installed(name: str) -> str:
        if locations.look(find(name)).python is None:
            try:
                install(name)
            except MissingToolchain as error:
                pytest.skip(error.message)
        return name

    return installed
