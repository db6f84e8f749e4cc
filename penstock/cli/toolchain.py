"""``penstock toolchain``: the pinned environments of heavy backends: see, install, check and remove them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from penstock import wording
from penstock.cli.output import output_option, print_json, print_table, progress, shown

_STATE_WORDS = {
    "explicit": "named by {variable}",
    "own": "in this environment",
    "installed": "installed",
    "outdated": "outdated: install again",
    "missing": "not installed",
}

if TYPE_CHECKING:
    from penstock.toolchain.install import Installed


@click.group(
    epilog="""\b
Examples:
  penstock toolchain list
  penstock toolchain install torch
  penstock toolchain install optimum transformers5
  penstock toolchain doctor
  penstock toolchain remove torch --yes

Toolchains live below ~/.cache/penstock/toolchains, or where PENSTOCK_TOOLCHAINS says. pip's configuration (indexes,
proxies, PIP_* variables) is honoured. An interpreter of your own takes a toolchain's place when it is named:
PENSTOCK_TOOLCHAIN_TORCH=/opt/torch/bin/python. So does the environment that runs penstock, when it has the toolchain's
packages in the tested versions: pip install 'penstock[torch]'."""
)
def command() -> None:
    """See, install, check and remove the environments that heavy backends run in.

    PyTorch, Hugging Face's exporters, the LLM builder and TensorRT cannot live in one environment, nor with Penstock.
    Each has one of its own, with exact versions and hashes, and is called as a separate process.
    """


@command.command("list")
@output_option
def list_toolchains(output: str) -> None:
    """List the toolchains: what each is for, whether it is here, and how large it is."""
    from penstock.toolchain import locations, lock
    from penstock.toolchain.definitions import TOOLCHAINS

    rows = []
    for toolchain in TOOLCHAINS.values():
        locked, found = lock.lock_of(toolchain), locations.look(toolchain)
        rows.append({
            "name": toolchain.name,
            "purpose": toolchain.purpose,
            "state": found.state,
            "python": str(found.python or ""),
            "directory": str(found.directory),
            "variable": toolchain.variable,
            "packages": len(locked.packages),
            "download_bytes": locked.download_bytes,
            "disk_bytes": found.stamp.size_bytes if found.stamp else 0,
            "pins": dict(toolchain.pins),
            "note": toolchain.note,
        })  # fmt: skip
    if output == "json":
        print_json(rows)
        return
    cells = [
        (
            row["name"],
            _STATE_WORDS[str(row["state"])].format(**row),
            locations.size_words(int(str(row["download_bytes"]))) or "-",
            locations.size_words(int(str(row["disk_bytes"]))) or "-",
            row["purpose"],
        )
        for row in rows
    ]
    print_table(("name", "state", "download", "on disk", "for"), cells)
    for row in rows:
        if row["note"]:
            click.echo(f"\n{row['name']}: {row['note']}.")


@command.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Every toolchain that can be installed here, but for those that are for tests.",
)
@click.option("--force", is_flag=True, help="Install again even what is installed and current.")
@output_option
def install(names: tuple[str, ...], everything: bool, force: bool, output: str) -> None:
    """Install toolchains NAME...; one that is installed and current is left as it is.

    Says what will be fetched and how large it is, and shows progress. An interrupted installation leaves nothing
    behind; run it again.
    """
    from penstock.toolchain import locations
    from penstock.toolchain.definitions import find

    wanted = [name for name in _wanted(names, everything) if names or not find(name).only_by_name]
    results = [install_visibly(name, force=force) for name in wanted]
    if output == "json":
        print_json(results)
        return
    for done in results:
        verb = "is there and current" if done.was_there else "installed"
        click.echo(f"{done.name}: {verb}: {_packages(done.packages)}, {locations.size_words(done.size_bytes)}")


def install_visibly(name: str, *, force: bool = False) -> Installed:
    """Install one toolchain, saying what is fetched, how large it is, and how far it is.

    Raises:
        As :func:`penstock.toolchain.install.install`.
    """
    from penstock.toolchain import locations, lock
    from penstock.toolchain.definitions import find
    from penstock.toolchain.install import install as install_one

    toolchain = find(name)
    locked = lock.lock_of(toolchain)
    sizes = (
        f": {locations.size_words(locked.download_bytes)} to fetch, {locations.size_words(locked.disk_bytes)} on disk"
    )
    progress(
        f"toolchain {name} ({toolchain.purpose}): {_packages(len(locked.packages))}"
        + (sizes if locked.download_bytes else "")
        + f", into {locations.root() / name}"
    )
    with shown(f"toolchain {name}", _lines(name)) as report:
        return install_one(name, report=report, force=force)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@output_option
def doctor(names: tuple[str, ...], output: str) -> None:
    """Try the toolchains, all by default, and say for each whether it works here, and if not, why and what to do.

    Each is tried in a process of its own, within a time limit. Exit code 0 when every toolchain that is here works (one
    that is not here is no failure), 1 otherwise.
    """
    from penstock.toolchain.definitions import TOOLCHAINS, find
    from penstock.toolchain.doctor import diagnose

    wanted = [find(name).name for name in names] or list(TOOLCHAINS)
    found = []
    for name in wanted:
        if output != "json":
            progress(f"trying {name}")
        found.append(diagnose(name))
    if output == "json":
        print_json(found)
    else:
        for diagnosis in found:
            click.echo(f"{diagnosis.name}: {_VERDICT_WORDS[diagnosis.verdict]}")
            if diagnosis.python:
                click.echo(f"    interpreter: {diagnosis.python}")
            for line in (*diagnosis.findings, *diagnosis.problems):
                click.echo("    " + line.replace("\n", "\n    "))
    if any(diagnosis.verdict == "broken" for diagnosis in found):
        sys.exit(1)


_VERDICT_WORDS = {
    "works": "works",
    "broken": "DOES NOT WORK",
    "absent": "not installed",
    "impossible": "cannot run here",
}


@command.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Every toolchain that is installed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
def remove(names: tuple[str, ...], everything: bool, yes: bool, output: str) -> None:
    """Remove installed toolchains NAME... from the disk."""
    from penstock.toolchain import locations
    from penstock.toolchain.install import remove as remove_one
    from penstock.toolchain.install import size_of

    wanted = [name for name in _wanted(names, everything) if (locations.root() / name).exists()]
    size = sum(size_of(locations.root() / name) for name in wanted)
    if wanted and not yes:
        click.confirm(f"remove {', '.join(wanted)} ({locations.size_words(size)}) from {locations.root()}?", abort=True)
    removed = {name: remove_one(name) for name in wanted}
    if output == "json":
        print_json([{"name": name, "freed_bytes": freed} for name, freed in removed.items()])
    elif removed:
        for name, freed in removed.items():
            click.echo(f"{name}: removed, {wording.size(freed)} freed")
    else:
        click.echo("nothing to remove")


def _packages(count: int) -> str:
    return f"{count} package{'s' * (count != 1)}"


def _wanted(names: tuple[str, ...], everything: bool) -> list[str]:
    """Return the toolchains that a command line names.

    Raises:
        UsageError: neither names nor --all, or both. InvalidInput: an unknown name.
    """
    from penstock.toolchain import gpu
    from penstock.toolchain.definitions import TOOLCHAINS, find

    if bool(names) == everything:
        raise click.UsageError(f"name toolchains ({', '.join(TOOLCHAINS)}), or --all")
    if not everything:
        return [find(name).name for name in names]
    return [name for name, toolchain in TOOLCHAINS.items() if not toolchain.needs_gpu or gpu.driver_problem() is None]


def _lines(name: str) -> Callable[[float, str], None]:
    """Return what writes one line for each thing that pip does."""
    last = ""

    def say(share: float, note: str) -> None:
        nonlocal last
        if note != last:
            last = note
            progress(f"  {name} {share:4.0%}  {note}")

    return say
