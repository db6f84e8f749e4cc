"""``python -m examples.codecomplete``: the whole path with two language models, about a minute."""

from __future__ import annotations

from pathlib import Path

import click

from . import prompts
from .demo import finish


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), help="To work in.")
@click.option("--asked", default=prompts.ASKED, show_default=True, help="Held-out prompts a route.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures here.")
def main(directory: Path | None, asked: int, json_file: Path | None) -> None:
    """Compile, serve and ask by every route."""
    raise SystemExit(finish(directory, asked=asked, json_file=json_file, say=click.echo))


if __name__ == "__main__":
    main()
