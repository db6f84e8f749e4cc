"""``python -m examples.codecomplete``: the whole path with two language models, about a minute."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from . import prompts
from .demo import run

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "penstock" / "codecomplete"


@click.command()
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=_CACHE, help="To work in."
)
@click.option("--asked", default=prompts.ASKED, show_default=True, help="Held-out prompts a route.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
def main(directory: Path, asked: int, json_file: Path | None) -> None:
    """Compile, serve and ask by every route."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = run(directory, asked=asked, say=click.echo)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
