"""``penstock demo``: find an example (the digits also in the installed wheel, others in a checkout) and run it."""

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
  penstock demo --example codecomplete   # two language models; in a checkout
  penstock demo --keep          # leave the core and the agents running, and print what to try next""",
)
@click.option(
    "--example",
    type=click.Choice(["digits", "codecomplete"]),
    default="digits",
    show_default=True,
    help="Classes of handwritten digits, or texts of two language models.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
@click.option("--keep", is_flag=True, help="Leave everything running and print what to try next.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Working directory; models and artifacts in it are reused.  [default: below ~/.cache/penstock]",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the split, the training and the traffic.")
def command(example: str, json_file: Path | None, keep: bool, directory: Path | None, seed: int) -> None:
    """Run the whole path on real data and end with a verdict.

    Trains a teacher and a student on scikit-learn's handwritten digits, compiles and certifies them, starts a core
    and three agents, measures the cascade, cuts the cloud, rolls out a better version and stops a bad one.

    With --example codecomplete, two small language models complete names of Python by every route: on the device, in
    the cloud, as a certified cascade, and with drafts that the larger one verifies.

    Exits 0 when every claim held, 1 otherwise.
    """
    is_digits = example == "digits"
    if not is_digits and (keep or seed):
        raise ConfigError(f"--{'keep' if keep else 'seed'}: of the example {example} nothing stays, and it has no seed")
    demo = _digits() if is_digits else _of_checkout(example)
    if json_file is not None and not json_file.absolute().parent.is_dir():  # now, not after the run
        raise ConfigError(f"--json: {json_file.parent} is not a directory")
    if not is_digits:
        raise SystemExit(demo.finish(directory, json_file=json_file, say=click.echo))
    raise SystemExit(demo.run(json_file=json_file, keep=keep, directory=directory, seed=seed))


def _of_checkout(example: str) -> ModuleType:
    try:
        return importlib.import_module(f"examples.{example}.demo")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("examples"):
            raise
    raise ConfigError(f"--example {example}: its models are no part of the wheel; run it at the root of a checkout")


def _digits() -> ModuleType:
    try:
        return importlib.import_module("penstock._examples.digits.demo")  # the wheel carries it there
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("penstock._examples"):
            raise
    return importlib.import_module("examples.digits.demo")
