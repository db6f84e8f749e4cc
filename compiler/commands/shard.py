"""``penstock compile shard``: one ONNX graph cut into pipeline stages. Parses, applies the pass, prints."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from penstock.cli.output import path_and_format, path_option, print_json, print_table, progress
from penstock.errors import Conflict
from penstock.wording import size

_STAGES_FILE = "stages.json"


@click.command(
    "shard",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock compile shard model.onnx --stages 2 -o stages
  penstock compile shard model.onnx --stages 3 --memory-mib 800 --memory-mib 800 --memory-mib 1600 -o stages

The chain of the stages is bit-equal to the whole model: that is checked before anything is written.
Exit codes: 0 done, 1 no division fits, 2 wrong model or options, 3 DIR is there already.""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--stages", type=click.IntRange(min=2), default=2, show_default=True, help="Devices in a line.")
@click.option(
    "--memory-mib", type=float, multiple=True, help="Memory of a device; once for all, or once for each, in order."
)
@path_option("DIR", "Directory for the stages.", required=True)
def command(model: Path, stages: int, memory_mib: tuple[float, ...], outputs: tuple[str, ...]) -> None:
    """Cut the ONNX file MODEL into stages for devices in a line, by memory and least crossing bytes.

    Writes one ONNX file a stage, and stages.json with what each takes, gives and weighs.
    """
    from compiler.passes import shard
    from compiler.passes.job import PassJob
    from compiler.recipe import targets
    from penstock.artifact.blobs import as_the_umask_says, disk_errors

    directory, form = path_and_format(outputs, "a directory")
    if not directory:
        raise click.UsageError("give -o with a directory, too")
    out = Path(directory).resolve()
    if out.exists():
        raise Conflict(f"{out} exists; choose another directory, or remove this one")
    with disk_errors(f"writing {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        options: dict[str, Any] = {"stages": stages, "memory_mib": memory_mib}
        job = PassJob(source=model.resolve(), out=scratch, target=targets.resolve(targets.HOST), options=options)
        result = shard.run(job)
        with disk_errors(f"writing {out}"):
            as_the_umask_says(scratch)
            scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(result.summary)
    _print(json.loads((out / _STAGES_FILE).read_bytes()), out, form)


def _print(document: dict[str, Any], out: Path, output: str) -> None:
    if output == "json":
        print_json({"directory": out, **document})
        return
    rows = [
        [
            stage["file"],
            size(stage["weightBytes"]),
            size(stage["memoryBytes"]),
            ", ".join(port["name"] for port in stage["inputs"]),
            ", ".join(stage["outputs"]),
        ]
        for stage in document["stages"]
    ]
    print_table(["stage", "weights", "memory", "takes", "gives"], rows)
