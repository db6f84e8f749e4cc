"""``penstock compile``: a recipe or a model in, an artifact directory out. Parses, calls the pipeline, prints; decides
nothing."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.commands import distill, shard
from penstock import wording
from penstock.cli.default_group import DefaultGroup
from penstock.cli.keys import key_option, signing
from penstock.cli.output import (
    is_interactive,
    path_and_format,
    path_option,
    print_fields,
    print_json,
    print_table,
    progress,
)
from penstock.errors import CalibrationError, MissingToolchain

if TYPE_CHECKING:
    from compiler.artifact.evaluation import Evaluation, Share, Speed
    from compiler.cache.steps import StepCache
    from compiler.pipeline.compilation import Compiled
    from compiler.progress import Watcher
    from compiler.recipe.recipes import Recipe


@click.group(
    "compile",
    cls=DefaultGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def command() -> None:
    """Turn models and examples into one certified artifact."""


@command.default(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock compile recipe.toml -o build/digits
  penstock compile recipe.toml -o build/digits --dry-run
  penstock compile recipe.toml --smoke
  penstock compile recipe.toml -o build/digits --budget 10m
  penstock compile model.onnx --target edge-x86-vnni --data d.npz -o build/m
  penstock compile recipe.toml -o build/digits -o json

Open build/digits/report.html to read what was measured and promised. Interrupt at any time: finished steps
are kept in ~/.cache/penstock/compile (PENSTOCK_CACHE), and the next run goes on from there.
Exit codes: 0 done, 1 failed, 2 wrong recipe or data, 3 refused (certificate, accuracy gate, DIR not ours),
130 interrupted.""",
)
@click.argument("model", metavar="RECIPE|MODEL")
@path_option("DIR", "Directory to write the artifact to.")
@click.option("--data", metavar="FILE|DIR|MODULE:FUNCTION", help="Examples, when there is no recipe.")
@click.option("--target", help="Device to compile for, when there is no recipe.  [default: host]")
@click.option("--precision", "precisions", multiple=True, help="Candidate to try, when there is no recipe; repeatable.")
@click.option("--task", help="What the model is for, such as classification or detection, when there is no recipe.")
@click.option("--output-name", help="Output that is scored, when there is no recipe.")
@click.option("--max-harm", type=float, help="Promise to certify, when there is no recipe.  [default: 0.02]")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Load a pickled model, which runs its author's code, when there is no recipe.",
)
@click.option(
    "--budget",
    "budget_s",
    metavar="TIME",
    callback=lambda context, parameter, value: _seconds(value),
    help="Try no further candidate after this time, e.g. 10m, and ship the best so far.",
)
@click.option("--dry-run", is_flag=True, help="Check what is quickly checked, print the plan, write nothing.")
@click.option("--smoke", is_flag=True, help="Run the whole recipe on few samples to find mistakes; write nothing.")
@click.option(
    "--without-certificate",
    is_flag=True,
    help="Pack even if certification is refused; agents then escalate everything.",
)
@click.option("--install-toolchains", is_flag=True, help="Install what is missing without asking.")
@key_option
@click.option("--no-cache", is_flag=True, help="Do every step again, and keep the new results.")
def build(
    model: str,
    outputs: tuple[str, ...],
    dry_run: bool,
    smoke: bool,
    without_certificate: bool,
    no_cache: bool,
    install_toolchains: bool,
    key: str,
    budget_s: float | None,
    **flags: Any,
) -> None:
    """Turn models and examples into one certified artifact.

    RECIPE is a TOML file that names models for the device and for the cloud, and examples. MODEL is an ONNX file, a
    Hugging Face directory, module:factory, ...: see docs/how-to/compile-a-model.md.

    Every candidate (precision, calibration) is measured on its target; the fastest one that keeps the promised accuracy
    ships, and the report says what became of each other one and why.
    """
    directory, output = _outputs(outputs, needs_directory=not smoke)
    from compiler.cache.steps import StepCache, default_root
    from compiler.pipeline import compilation, plan

    finish = None if dry_run or smoke else signing(key)  # a wrong key is found out before hours of work
    cache = StepCache(default_root(), reuse=not no_cache)
    done: list[Compiled] = []

    def attempt(watcher: Watcher) -> None:
        recipe = _recipe(model, flags, cache, watcher)
        if dry_run:
            _print_plan(plan.plan(recipe, directory), output)
        elif smoke:
            with tempfile.TemporaryDirectory(prefix="penstock-smoke-") as scratch:
                evaluation = compilation.smoke(recipe, Path(scratch), cache=cache, watcher=watcher)
            _print_smoke(evaluation, output)
        else:
            compiled = compilation.compile_recipe(
                recipe,
                directory,
                cache=cache,
                watcher=watcher,
                require_certificate=not without_certificate,
                budget_s=budget_s,
                finish=finish,
            )
            done.append(compiled)

    try:
        _with_toolchains(attempt, without_asking=install_toolchains)
    except CalibrationError as error:
        raise _with_advice(error) from error
    for compiled in done:  # after the live bar is off the screen
        _print_result(compiled, output)


def _with_toolchains(attempt: Callable[[Watcher], None], *, without_asking: bool) -> None:
    """Try; install a toolchain that is found missing, if the user wants it; try again. Finished steps are kept."""
    while True:
        try:
            with _watched() as watcher:
                attempt(watcher)
            return
        except MissingToolchain as error:
            if not error.toolchain or not (without_asking or is_interactive()):
                raise
            click.echo(error.message, err=True)
            if not without_asking and not click.confirm("Install it now?", default=True, err=True):
                raise
            from penstock.cli.toolchain import install_visibly

            install_visibly(error.toolchain)


@contextmanager
def _watched() -> Iterator[Watcher]:
    """Show a live bar on a terminal, lines elsewhere; say after an interruption how to continue."""
    from compiler.progress import Lines

    try:
        if is_interactive():
            from penstock.cli.live import LiveBar

            with LiveBar() as bar:
                yield bar
        else:
            yield Lines(progress)
    except KeyboardInterrupt:
        progress("interrupted; finished steps are kept, and the same command goes on from there")
        raise


def _recipe(model: str, flags: dict[str, Any], cache: StepCache, watcher: Watcher) -> Recipe:
    """Load the recipe in a file, or make one of the flags."""
    from compiler.pipeline import guessed_recipe
    from compiler.recipe import recipes

    given = [f"--{name.replace('_', '-').removesuffix('s')}" for name, value in flags.items() if value]
    if model.endswith(".toml"):
        if given:
            raise click.UsageError(f"{', '.join(sorted(given))}: the recipe says that; edit {model}")
        return recipes.load(Path(model))
    if not flags["data"]:
        raise click.UsageError(
            f"{model} is no recipe (.toml), so that --data has to say where examples are; or write a recipe with "
            f"'penstock compile init {model}'"
        )
    return guessed_recipe.recipe_of_flags(
        model, Path.cwd(), guessed_recipe.Flags(**flags), cache=cache, watcher=watcher
    )


@command.command(
    "init",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock compile init model.onnx
  penstock compile init model.onnx --data rows.csv
  penstock compile init bert-directory/ -o recipe.toml""",
)
@click.argument("model")
@click.option(
    "--data", default="", help="For [data] source; what is there is looked at for rows that repeat or belong together."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output without.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Load a pickled estimator, which runs its author's code, and write down its inputs, columns and labels.",
)
def init(model: str, data: str, output: Path | None, force: bool, allow_pickle: bool) -> None:
    """Write a commented recipe from what can be seen in MODEL."""
    from compiler.pipeline.first_recipe import recipe_for, relocated
    from compiler.sources.detection import detect
    from penstock.artifact.blobs import SHARED, disk_errors, write_atomically

    if str(output) in ("json", "table"):
        raise click.UsageError(f"-o {output}: a recipe is TOML; to write a file of that name, -o ./{output}")
    if output is None:
        click.echo(recipe_for(model, Path.cwd(), data=data, allow_pickle=allow_pickle), nl=False)
        return
    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already; choose another name, or --force")
    here, base = Path.cwd(), output.resolve().parent
    detect(model, here)  # what is not there is told as it was named, before a directory is made for its recipe
    with disk_errors(f"writing {output}"):
        base.mkdir(parents=True, exist_ok=True)  # a path that goes through it has to be one
        examples = relocated(data, here, base) if data else ""
        text = recipe_for(relocated(model, here, base), base, data=examples, allow_pickle=allow_pickle)
        write_atomically(output, text.encode(), mode=SHARED)
    progress(f"wrote {output}; next: penstock compile {output} -o build")


command.add_command(distill.command)
command.add_command(shard.command)


def _seconds(text: str | None) -> float | None:
    """Read a time such as 90, 90s, 10m or 1.5h."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise click.BadParameter(f"{text!r}: give a time above 0, such as 90s, 10m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _outputs(values: tuple[str, ...], *, needs_directory: bool) -> tuple[Path, str]:
    """Find the directory and the format in the values of ``-o``; ``./json`` is a directory called json."""
    directory, form = path_and_format(values, "a directory")
    if needs_directory and not directory:
        raise click.UsageError("give -o with a directory, and once more with 'json' to choose what is printed")
    return Path(directory or "."), form


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


def _print_smoke(evaluation: Evaluation, output: str) -> None:
    if output == "json":
        print_json({"smoke": "passed", "evaluation": evaluation})
        return
    _print_candidates(evaluation)
    click.echo("\nsmoke: every step ran on few samples; the figures above mean nothing")


def _print_result(compiled: Compiled, output: str) -> None:
    if output == "json":
        print_json(as_json(compiled))
        return
    evaluation = compiled.evaluation
    _print_candidates(evaluation)
    for name, change in evaluation.generation.get("perplexity", {}).items():
        if change is not None:
            click.echo(
                f"\n{name}: perplexity {change['before']:.2f} -> {change['after']:.2f} "
                f"({wording.change(change['increase']['value'])}); the cloud's is "
                f"{evaluation.generation['cloud_perplexity']:.2f}"
            )
    click.echo()
    _print_variants(evaluation)
    click.echo()
    kept = "  (nothing had changed since it was compiled before)" if compiled.was_kept else ""
    click.echo(f"{compiled.reference}  {compiled.digest}{kept}")
    for target in evaluation.targets:
        click.echo(f"{target.role}/{target.target}: {_promise_words(target)}")
    click.echo(f"report: {compiled.directory / 'report.html'}")


def _promise_words(target: Any) -> str:
    if target.cascade is None or (target.cascade.certificate is None and not target.cascade.refusal):
        return f"no certificate: {target.not_measured or 'this task is not certified'}"
    if target.cascade.certificate is None:
        return f"NO CERTIFICATE, agents will escalate every answer: {target.cascade.refusal}"
    words: str = target.cascade.certificate.promise()
    return words


def _print_candidates(evaluation: Evaluation) -> None:
    for target in evaluation.targets:
        rows = [
            [
                ("> " if line.ships else "  ") + line.name,
                "-" if line.quality is None else wording.percent(line.quality),
                "-" if line.drop is None else wording.points(line.drop.value),
                "-" if line.drop is None else wording.points(line.drop.bound),
                _latency(line.speed, "1", wording.milliseconds),
                _latency(line.speed, "32", wording.milliseconds),
                wording.size(line.size_bytes) if line.size_bytes else "-",
                line.verdict,
            ]
            for line in target.candidates
        ]
        title = f"{target.role}/{target.target}"
        print_table(
            [f"{title}", target.metric, "drop", "at most", "p50 ms x1", "p50 ms x32", "size", "verdict"],
            rows,
        )


def _latency(speed: Speed | None, batch: str, words: Any) -> str:
    if speed is None:
        return "not here"
    return words(speed.p50_ms[batch]) if batch in speed.p50_ms else "-"


def _print_variants(evaluation: Evaluation) -> None:
    def row(name: str, quality: Share | None, on_device: float | Share) -> list[str]:
        cells = (
            ["-", "", ""]
            if quality is None
            else [wording.percent(quality), wording.count(quality), wording.interval(quality)]
        )
        return [name, *cells, wording.percent(on_device)]

    rows = []
    for target in evaluation.targets:
        variant = target.variant
        rows.append(row(f"{variant.role}/{variant.target} {variant.precision}", variant.quality, 1))
        cascade = target.cascade
        if cascade is not None and cascade.figures is not None:
            name = f"cascade {variant.role}/{variant.target}"
            rows.append(row(name, cascade.figures.accuracy, cascade.figures.coverage))
    rows.append(row("cloud", evaluation.cloud.quality, 0))
    print_table(["on the test split", evaluation.targets[0].metric, "rows", "95% interval", "on device"], rows)


def as_json(compiled: Compiled) -> dict[str, Any]:
    """Return what ``-o json`` prints. ``certificate`` and ``accuracy`` are those of the first rung's first target."""
    evaluation, first = compiled.evaluation, compiled.evaluation.targets[0]
    cascade = first.cascade
    accuracy = {
        "edge": first.variant.quality.value,
        "fp32": first.parent_test.quality.value,
        "cloud": evaluation.cloud.quality.value,
    }
    if cascade is not None and cascade.figures is not None and cascade.figures.accuracy is not None:
        accuracy["cascade"] = cascade.figures.accuracy.value
    certificate = None if cascade is None else cascade.certificate
    return {
        "reference": compiled.reference,
        "digest": compiled.digest,
        "directory": compiled.directory,
        "report": compiled.directory / "report.html",
        "was_kept": compiled.was_kept,
        "promise": certificate.promise() if certificate else "",
        "refusal": "" if cascade is None else cascade.refusal,
        "certificate": certificate,
        "accuracy": accuracy,
        "evaluation": evaluation,
    }
