"""``penstock version``: what runs here, read from package metadata; no library is imported for it."""

from __future__ import annotations

import importlib.metadata
import platform
import re

import click

from penstock.cli.output import output_option, print_json, print_table
from penstock.toolchain.definitions import TOOLCHAINS

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)")
_EXTRA = re.compile(r"extra == ['\"]([^'\"]+)['\"]")
_NOT_FOR_USERS = frozenset({"dev", "all", "demo", *TOOLCHAINS})  # toolchains have a command of their own


@click.command(
    epilog="""\b
Examples:
  penstock version
  penstock version -o json"""
)
@output_option
def command(output: str) -> None:
    """Print versions of Penstock and of what it runs on."""
    libraries = {name: (_installed(name), extra) for name, extra in declared_libraries().items()}
    if output == "json":
        print_json(
            {
                "penstock": importlib.metadata.version("penstock"),
                "python": platform.python_version(),
                "platform": platform.platform(),
                "libraries": {name: version for name, (version, _) in libraries.items()},
            }
        )
        return
    rows = [
        ("penstock", importlib.metadata.version("penstock"), ""),
        ("python", platform.python_version(), platform.platform()),
    ]
    for name, (version, extra) in libraries.items():
        absent = f"not installed; pip install 'penstock[{extra}]'"
        rows.append((name, version or "-", "" if version else absent))
    print_table(("what", "version", "note"), rows)


def declared_libraries() -> dict[str, str]:
    """Return libraries that Penstock declares, with the smallest extra that brings each ("" for the base install)."""
    needs: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("penstock") or []:
        name = _REQUIREMENT.match(requirement)
        extra = _EXTRA.search(requirement)
        if name is not None and name.group(1) != "penstock":
            needs.setdefault(extra.group(1) if extra else "", []).append(name.group(1))
    base = dict.fromkeys(needs.pop("", []), "")
    smallest_first = sorted(needs, key=lambda extra: (len(needs[extra]), extra))
    brought = {
        name: extra for extra in reversed(smallest_first) if extra not in _NOT_FOR_USERS for name in needs[extra]
    }
    return {**base, **dict(sorted(brought.items()))}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
