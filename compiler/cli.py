"""``penstock compile``: a recipe in, an artifact directory out. Parses, calls the pipeline, prints; decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.output import print_fields, print_json, print_table, progress
from penstock.errors import CalibrationError

if TYPE_CHECKING:
    from compiler.pipeline import Compiled
    from compiler.recipe import Recipe

_FORMATS = ("table", "json")


@click.command(
    "compile",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock compile recipe.toml -o build/digits
  penstock compile recipe.toml -o build/digits -o json
  penstock compile recipe.toml -o build/digits --dry-run

Open build/digits/report.html to read what was promised and measured.
Exit codes: 0 done, 1 failed, 2 wrong recipe or data, 3 refused (certificate, accuracy gate, DIR not ours).""",
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "outputs",
    metavar="DIR|json",
    multiple=True,
    required=True,
    help="Directory to write the artifact to. Give it again as 'json' (or 'table') to choose what is printed.",
)
@click.option("--dry-run", is_flag=True, help="Check recipe, models and data, print the plan, write nothing.")
@click.option(
    "--without-certificate",
    is_flag=True,
    help="Pack even if certification is refused; agents then escalate everything.",
)
def command(recipe: Path, outputs: tuple[str, ...], dry_run: bool, without_certificate: bool) -> None:
    """Quantize, calibrate, certify and pack a model into one artifact.

    RECIPE is a TOML file that names a small model for the device, a large one for the cloud, and examples.
    """
    directory, output = _outputs(outputs)
    from compiler import pipeline
    from compiler import recipe as recipes

    parsed = recipes.load(recipe)
    if dry_run:
        _print_plan(pipeline.plan(parsed, directory), output)
        return
    try:
        compiled = pipeline.compile_recipe(parsed, directory, require_certificate=not without_certificate, say=progress)
    except CalibrationError as error:
        raise _with_advice(error) from error
    _print_result(compiled, parsed, output)


def _outputs(values: tuple[str, ...]) -> tuple[Path, str]:
    """The directory and the format among the values of ``-o``; ``./json`` is a directory called json."""
    formats = [value for value in values if value in _FORMATS]
    directories = [value for value in values if value not in _FORMATS]
    if len(directories) != 1 or len(formats) > 1:
        raise click.UsageError("give -o once with a directory, and at most once more with 'json' or 'table'")
    return Path(directories[0]), formats[0] if formats else "table"


def _with_advice(error: CalibrationError) -> CalibrationError:
    return CalibrationError(
        f"refused: {error.message.rstrip('.')}. Nothing was written; --without-certificate packs it anyway, and agents "
        "then escalate every answer",
        needed=error.needed,
    )


def _print_plan(steps: list[tuple[str, str]], output: str) -> None:
    if output == "json":
        print_json([{"step": name, "does": text} for name, text in steps])
    else:
        print_fields(dict(steps))


def _print_result(compiled: Compiled, recipe: Recipe, output: str) -> None:
    if output == "json":
        print_json(as_json(compiled))
        return
    from compiler.report import milliseconds, size

    evaluation = compiled.evaluation
    rows = [
        [
            figures.name,
            "-" if figures.accuracy is None else f"{figures.accuracy.value:.1%}",
            "100.0%" if figures.role == "edge" else "0.0%",
            f"{figures.agreement_cloud.value:.1%}",
            milliseconds(figures.latency_p50_ms["1"]),
            milliseconds(figures.latency_p50_ms["32"]),
            size(figures.size_bytes),
        ]
        for figures in evaluation.variants
    ]
    if evaluation.cascade is not None:
        accuracy = evaluation.cascade.accuracy
        shown = "-" if accuracy is None else f"{accuracy.value:.1%}"
        rows.append(["cascade", shown, f"{evaluation.cascade.coverage.value:.1%}", "", "", "", ""])
    print_table(["", "accuracy", "on device", "as teacher", "p50 ms x1", "p50 ms x32", "size"], rows)
    click.echo()
    click.echo(f"{recipe.reference}  {compiled.digest}")
    if evaluation.certificate is not None:
        click.echo(evaluation.certificate.promise())
    else:
        click.echo(f"NO CERTIFICATE, agents will escalate every answer: {evaluation.refusal}")


def as_json(compiled: Compiled) -> dict[str, Any]:
    """What ``-o json`` prints."""
    evaluation = compiled.evaluation
    accuracies = {v.name: v.accuracy.value for v in evaluation.variants if v.accuracy is not None}
    names = {"edge": evaluation.variants[-2].name, "fp32": evaluation.variants[0].name}
    accuracy = {role: accuracies.get(name) for role, name in (*names.items(), ("cloud", evaluation.variants[-1].name))}
    if evaluation.cascade is not None and evaluation.cascade.accuracy is not None:
        accuracy["cascade"] = evaluation.cascade.accuracy.value
    return {
        "reference": compiled.reference,
        "digest": compiled.digest,
        "directory": compiled.directory,
        "report": compiled.directory / "report.html",
        "promise": evaluation.certificate.promise() if evaluation.certificate else "",
        "refusal": evaluation.refusal,
        "certificate_digest": compiled.certificate_digest,
        "certificate": evaluation.certificate,
        "accuracy": accuracy,
        "evaluation": evaluation,
    }
