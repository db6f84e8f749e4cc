"""``penstock demo``: find the digits example (in a checkout or in the installed wheel) and run it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import click

from penstock.errors import ConfigError


@click.command(
    name="demo",
    epilog="""\b
Examples:
  penstock demo
  penstock demo --json figures.json
  penstock demo --keep          # leave the core and the agents running, and print what to try next""",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option("--keep", is_flag=True, help="Leave everything running and print what to try next.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Working directory; models and artifacts in it are reused.  [default: ~/.cache/penstock/demo]",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the split, the training and the traffic.")
def command(json_file: Path | None, keep: bool, directory: Path | None, seed: int) -> None:
    """Run the whole path on real data and end with a verdict.

    Trains a teacher and a student on scikit-learn's handwritten digits, compiles and certifies them, starts a core
    and three agents, measures the cascade, cuts the cloud, rolls out a better version and stops a bad one.
    Exits 0 when every claim held, 1 otherwise.
    """
    demo = _example()
    if json_file is not None and not json_file.absolute().parent.is_dir():  # now, not after the run
        raise ConfigError(f"--json: {json_file.parent} is not a directory")
    raise SystemExit(demo.run(json_file=json_file, keep=keep, directory=directory, seed=seed))


def _example() -> ModuleType:
    try:
        return importlib.import_module("penstock._examples.digits.demo")  # the wheel carries it there
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("penstock._examples"):
            raise
    return importlib.import_module("examples.digits.demo")
