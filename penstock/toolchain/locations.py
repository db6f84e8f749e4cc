"""Where toolchains are, and which interpreter stands for one: an explicit one, our own, or an installed one.

An installed toolchain is a directory ``ROOT/NAME`` with a virtual environment and ``penstock-toolchain.json``, the
stamp that is written last: without it there is no toolchain. Reads the disk and the environment; changes neither.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from penstock import wording
from penstock.errors import ConfigError, MissingToolchain
from penstock.process.directories import cache_directory, expanded
from penstock.toolchain import gpu, lock
from penstock.toolchain.definitions import Toolchain, find

ROOT_VARIABLE = "PENSTOCK_TOOLCHAINS"
STAMP = "penstock-toolchain.json"
_MAX_STAMP_BYTES = 1024 * 1024
_ASK_TIMEOUT_S = 60.0

_VERSIONS_PROGRAM = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class Stamp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was installed, by which lock.

    Attributes:
        lock: the lock file's digest.
        python: the version of the interpreter that it was made with.
        packages: name to version, as installed.
        size_bytes: what the toolchain occupied when it was installed.
    """

    lock: str
    python: str
    packages: dict[str, str]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a toolchain stands on this machine.

    Attributes:
        state: ``explicit`` (an environment variable names an interpreter), ``own`` (the interpreter that runs Penstock
            has the packages), ``installed``, ``outdated`` (made by another lock, or its stamp is unreadable),
            ``missing``.
        python: the interpreter to use; None where there is none that may be used.
        directory: where Penstock installs it.
    """

    state: Literal["explicit", "own", "installed", "outdated", "missing"]
    python: Path | None
    directory: Path
    stamp: Stamp | None = None


def root() -> Path:
    """Return the directory that holds installed toolchains: ``PENSTOCK_TOOLCHAINS``, or one in the user's cache."""
    named = os.environ.get(ROOT_VARIABLE, "")
    if named:
        return expanded(named)
    return cache_directory(os.environ) / "toolchains"


def python_in(directory: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return directory / "bin" / "python"


def look(toolchain: Toolchain) -> Found:
    """Say where ``toolchain`` stands now; the explicit interpreter wins, then our own, then the installed one.

    Raises:
        ConfigError: the environment variable names something that is no program.
    """
    directory = root() / toolchain.name
    named = os.environ.get(toolchain.variable, "")
    if named:
        return Found(state="explicit", python=_explicit(toolchain.variable, named), directory=directory)
    if _own_has(toolchain):
        return Found(state="own", python=Path(sys.executable), directory=directory)
    stamp = read_stamp(directory)
    python = python_in(directory)
    if stamp is None:
        return Found(state="outdated" if directory.exists() else "missing", python=None, directory=directory)
    if stamp.lock != lock.lock_of(toolchain).digest or not python.is_file():
        return Found(state="outdated", python=None, directory=directory, stamp=stamp)
    return Found(state="installed", python=python, directory=directory, stamp=stamp)


def read_stamp(directory: Path) -> Stamp | None:
    """Read the stamp; None where there is none that can be read."""
    try:
        with (directory / STAMP).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_STAMP_BYTES), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None


def require(name: str) -> Path:
    """Return the interpreter of toolchain ``name``.

    Raises:
        InvalidInput: no such toolchain. ConfigError: the variable that names an interpreter names none.
        MissingToolchain: it is not installed, or by another version of the lock; the message says what to run.
    """
    toolchain = find(name)
    found = look(toolchain)
    if found.python is not None:
        return found.python
    if toolchain.needs_gpu and (reason := gpu.driver_problem()) is not None:
        raise MissingToolchain(f"toolchain {name} cannot be used here: {reason}")
    size = size_words(lock.lock_of(toolchain).download_bytes)
    is_old = found.state == "outdated"
    raise MissingToolchain(
        f"toolchain {name} ({toolchain.purpose}) is "
        + ("installed, but not as this version of Penstock needs it" if is_old else "not installed")
        + f": penstock toolchain install {name}"
        + (f" (downloads {size})" if size else ""),
        toolchain=name,
    )


def describe(name: str) -> dict[str, str]:
    """Return versions of the toolchain's top packages as they are installed, for lock documents and cache keys.

    Raises:
        As :func:`require`; MissingToolchain also when an explicit interpreter does not answer.
    """
    toolchain = find(name)
    python = require(name)
    found = look(toolchain)
    if found.state == "installed" and found.stamp is not None:
        versions: Mapping[str, str] = found.stamp.packages
    elif found.state == "own":
        versions = {package: importlib.metadata.version(package) for package in toolchain.pins}
    else:
        versions = versions_in(python, tuple(toolchain.pins))
    return {package: versions[package] for package in sorted(toolchain.pins) if package in versions}


@cache
def versions_in(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return versions that an interpreter has of ``packages``; those it lacks are left out.

    Raises:
        MissingToolchain: it cannot be run.
    """
    command = [str(python), "-I", "-c", _VERSIONS_PROGRAM, *packages]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=_ASK_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
        return msgspec.json.decode(done.stdout, type=dict[str, str])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise MissingToolchain(f"{python} does not run as a Python interpreter: {str(error)[:300]}") from error


def size_words(size_bytes: int) -> str:
    """Return ``190 MB``, ``1.2 GB``; "" for 0, which means not known."""
    return wording.size(size_bytes) if size_bytes > 0 else ""


def _explicit(variable: str, named: str) -> Path:
    python = expanded(named)
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ConfigError(f"{variable}={named}: no such program; set it to a Python interpreter, or unset it")
    return python


def _own_has(toolchain: Toolchain) -> bool:
    try:
        return all(
            lock.public_version(importlib.metadata.version(package)) == version
            for package, version in toolchain.pins.items()
        )
    except importlib.metadata.PackageNotFoundError:
        return False
