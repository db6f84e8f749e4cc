"""Reading a lock file: every package of a toolchain with its exact version and hashes, and what it is good for.

A lock is a pip requirements file with hashes. Comment lines ``# name: value`` at its head say which environments it
covers and how large it is. Decides nothing and installs nothing.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from penstock.errors import Internal
from penstock.toolchain.definitions import Toolchain

LOCKS = Path(__file__).parent / "locks"

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.+_!-]+)")
_HEADER = re.compile(r"^# ([a-z-]+): (.*)$")
_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One lock file.

    Attributes:
        digest: ``sha256:<hex>`` of the file: an installed toolchain is current when its stamp names this one.
        packages: normalized name to version, without the build's mark (``2.13.0`` for ``2.13.0+cpu``).
        environments: tags such as ``cp311-linux-x86_64`` for which every package has hashes; empty: not checked.
        download_bytes: about what an installation fetches; 0 where it is not known.
        disk_bytes: about what an installation occupies; 0 where it is not known.
    """

    path: Path
    digest: str
    packages: Mapping[str, str]
    environments: tuple[str, ...]
    download_bytes: int
    disk_bytes: int


def lock_of(toolchain: Toolchain) -> Lock:
    """Return the lock that this version of Penstock ships for a toolchain.

    Raises:
        Internal: the file is missing: Penstock itself is badly installed.
    """
    return read(LOCKS / f"{toolchain.name}.txt")


@cache
def read(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        Internal: no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Internal(
            f"{path}: {error.strerror}; it is a part of Penstock: pip install --force-reinstall --no-deps penstock"
        ) from error
    lines = data.decode("utf-8").splitlines()
    header = {found[1]: found[2] for line in lines if (found := _HEADER.match(line))}
    return Lock(
        path=path,
        digest="sha256:" + hashlib.sha256(data).hexdigest(),
        packages=dict(_packages(lines)),
        environments=tuple(header.get("environments", "").split()),
        download_bytes=int(header.get("download-bytes", 0)),
        disk_bytes=int(header.get("disk-bytes", 0)),
    )


def normalized(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return _SEPARATORS.sub("-", name).lower()


def public_version(version: str) -> str:
    """Remove the local part that tells builds of one version apart: ``2.13.0`` for ``2.13.0+cpu``."""
    return version.partition("+")[0]


def this_environment() -> str:
    """Return the running interpreter's tag, e.g. ``cp311-linux-x86_64``."""
    system = {"darwin": "macos"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    kind = "cp" if sys.implementation.name == "cpython" else sys.implementation.name
    return f"{kind}{sys.version_info.major}{sys.version_info.minor}-{system}-{machine}"


def environment_words(tags: Sequence[str]) -> str:
    """Return ``Python 3.11, 3.12 on linux-x86_64, macos-arm64`` for the tags of a lock."""
    parts = [tag.partition("-") for tag in tags]
    pythons = dict.fromkeys(f"{python[2]}.{python[3:]}" for python, _, _ in parts)
    systems = dict.fromkeys(system for _, _, system in parts)
    return f"Python {', '.join(pythons)} on {', '.join(systems)}"


def _packages(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if found := _REQUIREMENT.match(line):
            yield normalized(found[1]), public_version(found[2])
