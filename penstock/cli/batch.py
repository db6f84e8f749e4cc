"""``penstock batch run``: every row of a file through a model, into another file."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli.core_option import core_option
from penstock.cli.output import path_and_format, path_option, print_fields, print_result, progress, shown
from penstock.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.batch.answerers import Answerer
    from penstock.batch.running import Done

_SAID_SHARE = 0.05


@click.group()
def command() -> None:
    """Run a model over the rows of a file."""


@command.command(
    epilog="""\b
Examples:
  penstock batch run wine --input wines.parquet --output answers.parquet
  penstock batch run wine:v2 --input wines.csv --output answers.csv --keep id --on-error row
  penstock batch run build/wine --input wines.parquet --output answers.parquet -o json

Stopped or killed, the same command goes on where it was: parts are kept beside the output until it is complete."""
)
@click.argument("model")
@click.option(
    "-i",
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Rows: .parquet, .csv or .npz, with a column for each of the model's, or for each input.",
)
@path_option("FILE", "Answers, a row for each row of the input and in its order: .parquet or .csv.", required=True)
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy a column of the input; repeat for several.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "row")),
    default="stop",
    show_default=True,
    help="A refused row stops the run, or is an entry in the column 'error'.",
)
@click.option("--version", default="", metavar="TAG|DIGEST", help="Version to ask; the default at the start otherwise.")
@core_option("grpc")
@click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where there are tenants."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds for a request, all tries together.",
)
@click.option("--variant", default="cloud", show_default=True, metavar="ROLE", help="Of an artifact on this machine.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of its engine; 0 measures how many help.")
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 4096),
    default=256,
    show_default=True,
    help="Most rows of a request; fewer where rows are large.",
)
@click.option(
    "--in-flight", type=click.IntRange(1, 64), default=4, show_default=True, help="Most requests under way at once."
)
@click.option("--overwrite", is_flag=True, help="Replace an output that is there, and parts of another run.")
def run(
    model: str,
    source: Path,
    outputs: tuple[str, ...],
    keep: tuple[str, ...],
    on_error: str,
    version: str,
    core: str,
    token: str,
    timeout: float,
    variant: str,
    threads: int,
    batch_rows: int,
    in_flight: int,
    overwrite: bool,
) -> None:
    """Ask MODEL for every row of a file: a model of a core, or the directory of an artifact on this machine.

    The columns of the input are matched by name. The version is pinned at the start, so that a default that moves
    mixes nothing.
    """
    output, form = path_and_format(outputs, "the file for the answers")
    if not output:
        raise click.UsageError("give the file for the answers by --output")
    from penstock.batch.answerers import Asked, of_layout, of_server
    from penstock.batch.running import Job, Options, run_job

    options = Options(
        keep=keep,
        on_error="row" if on_error == "row" else "stop",
        batch_rows=batch_rows,
        in_flight=in_flight,
        overwrite=overwrite,
    )
    # a directory that is only called as a model of the core is not meant
    is_path = model.startswith(("/", ".", "~"))
    is_layout = Path(model, "oci-layout").is_file() or (is_path and Path(model).is_dir())
    if is_path and not is_layout:
        raise InvalidInput(f"{model}: no such directory", field="model")
    if is_layout and version:
        raise click.UsageError("--version is for models of a core; a directory holds one version")
    name, _, tag = model.partition(":") if not is_layout else (model, "", "")
    if tag and version:
        raise click.UsageError(f"give the version by {name}:{tag} or by --version")

    def opened(pinned: str) -> AbstractAsyncContextManager[Answerer]:
        if is_layout:
            return of_layout(Path(model), variant, threads)
        return of_server(Asked(target=core, token=token, timeout_s=timeout), name, pinned)

    job = Job(source=source, output=Path(output), version=tag or version, options=options)
    with shown(f"asking {name}", _Steps()) as say:
        done = asyncio.run(run_job(job, opened, lambda rows, of: say(rows / max(of, 1), f"{rows} of {of} rows")))
    print_result(form, _document(done, output), lambda: print_fields(_document(done, output)))


class _Steps:
    """Says how far it is where nobody sees a bar: a line for every twentieth of the rows."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, share: float, note: str) -> None:
        if share >= self._said + _SAID_SHARE or share >= 1:
            self._said = share
            progress(f"{share:4.0%}  {note}")


def _document(done: Done, output: str) -> dict[str, object]:
    made = done.made
    return {
        "output": output,
        "model": made.run.model,
        "version": made.run.version,
        "rows": made.run.rows,
        "refused": made.refused,
        "resumed_rows": done.resumed_rows,
        "output_digest": made.output_digest,
    }
