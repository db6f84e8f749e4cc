"""``penstock compile distill``: a student from a teacher. Parses, prepares, prints; decides nothing."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock import wording
from penstock.cli.output import path_and_format, path_option, print_fields, print_result, print_table, progress, shown
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from compiler.distill.student import Request, Student
    from compiler.progress import Progress

_MAX_UNFINISHED = 16  # interrupted runs whose checkpoints are kept
_LINE_EVERY_S = 5.0


@click.command(
    "distill",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock compile distill recipe.toml -o student.onnx
  penstock compile distill --teacher teacher.onnx --student net.py:make --data d.npz -o student.onnx
  penstock compile distill --teacher grpc://core:8001/digits --student net.py:make --data d.npz -o student.onnx
  penstock compile distill --teacher ./bert --student layers:2 --data tokens.npz -o student.onnx
  penstock compile distill recipe.toml --defer gatekeeper --epochs 90 -o student.onnx -o json

\b
A factory is a function without arguments that returns a torch module:
  def make():
      return torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
The student takes the teacher's inputs, by name where its forward names them so, and gives one score a class.

\b
A data file holds arrays x_train and y_train (or x_fit and y_fit, or x and y): x is the teacher's input, y are labels,
which may be left out. Rows that are also in x_tune, x_certify or x_test are not learned from.

\b
Interrupt at any time: the teacher's answers and a checkpoint are kept (PENSTOCK_CACHE, else ~/.cache/penstock), and the
same command goes on from there and ends with the same file. Training runs in a toolchain: penstock toolchain list.
Exit codes: 0 done, 1 failed, 2 wrong settings or data, 3 too little data, 4 core out of reach, 130 interrupted.""",
)
@click.argument("recipe", required=False, type=click.Path(path_type=Path))
@path_option("FILE", "The student, FILE.onnx; its account goes to FILE.json.")
@click.option(
    "--teacher", metavar="MODEL", help="ONNX file, Hugging Face directory, torch factory, or grpc://host:port/model."
)
@click.option("--student", metavar="MODEL", help="file.py:factory, module:factory, config.json, or layers:K.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE.npz", help="Examples, when there is no recipe.")
@click.option("--labels", metavar="NAME", help="Array of labels, when there is no recipe; '' for none.  [default: y]")
@click.option("--split", metavar="NAME", help="Split that trains.  [default: train, else fit]")
@click.option("--output-name", metavar="NAME", help="The teacher's output, where it has several.")
@click.option("--output-kind", help="logits or probabilities, when there is no recipe.  [default: logits]")
@click.option("--epochs", type=int, help="Passes over the rows, at most.  [default: 60]")
@click.option("--batch-size", type=int, help="Rows in a step.  [default: 64]")
@click.option(
    "--lr", type=float, help="Highest learning rate.  [default: 0.003 factory, 0.0003 config, 0.00005 layers]"
)
@click.option("--temperature", type=float, help="Softens teacher and student.  [default: 2]")
@click.option("--alpha", type=float, help="Weight of the labels, 0 to 1.  [default: 0.3 with labels, 0 without]")
@click.option("--defer", help="How training ends: none, labels or gatekeeper.  [default: none]")
@click.option("--defer-weight", type=float, help="Of being sure where it is right, for gatekeeper.  [default: 0.5]")
@click.option("--patience", type=int, help="Epochs without progress before it stops; 0 never.  [default: 10]")
@click.option("--validation", type=float, help="Share of the rows that judges.  [default: 0.15]")
@click.option("--seed", type=int, help="Same seed, same file.  [default: 0]")
@click.option("--threads", type=int, help="Part of the result.  [default: 1; all above a million parameters]")
@click.option("--max-seconds", type=float, help="Take the best student after so long.  [default: 86400]")
@click.option("--checkpoint-s", type=float, help="Seconds between checkpoints.  [default: 30]")
@click.option("--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential for the core.")
def command(recipe: Path | None, outputs: tuple[str, ...], **flags: Any) -> None:
    """Train a small student on the answers of a large teacher.

    The student comes from a factory, from a Hugging Face config, or from every K-th layer of the teacher. It learns the
    teacher's softened answers, and labels where there are any, and is exported with the teacher's inputs and output.
    """
    out, form = _outputs(outputs)
    _check_flags(recipe, flags)
    work = _work(recipe, out, flags)
    try:
        with shown("distilling", _lines()) as report, _request(recipe, flags, out, work, report) as request:
            student = _made(request, out)
    except KeyboardInterrupt:
        progress("interrupted: run the same command again to go on from the last checkpoint")
        raise click.Abort from None
    shutil.rmtree(work, ignore_errors=True)
    print_result(form, {"student": student.path, "metrics": student.metrics}, lambda: _print(student))


def _outputs(values: tuple[str, ...]) -> tuple[Path, str]:
    path, form = path_and_format(values, "a file, student.onnx")
    if not path.endswith(".onnx"):
        raise click.UsageError("give -o with a file, student.onnx, and once more with 'json' to choose what is printed")
    return Path(path), form


def _check_flags(recipe: Path | None, flags: dict[str, Any]) -> None:
    if recipe is not None:
        given = [name for name in ("data", "labels", "output_name", "output_kind") if flags[name] is not None]
        if given:
            raise click.UsageError(f"--{given[0].replace('_', '-')} is for use without a recipe, which says it itself")
        return
    missing = [f"--{name}" for name in ("teacher", "student", "data") if flags[name] is None]
    if missing:
        raise click.UsageError(f"give a recipe, or {', '.join(missing)}")
    if flags["output_kind"] not in (None, "logits", "probabilities"):
        raise click.UsageError(f"--output-kind: {flags['output_kind']!r} is neither logits nor probabilities")


def _work(recipe: Path | None, out: Path, flags: dict[str, Any]) -> Path:
    """Make a directory that the same command finds again; those of long forgotten runs go."""
    from compiler.cache.steps import default_root
    from penstock.artifact.blobs import disk_errors

    named = [
        str(recipe.absolute()) if recipe else "",
        str(out.absolute()),
        *(f"{k}={v}" for k, v in sorted(flags.items())),
    ]
    root = default_root() / "distill" / "unfinished"
    work = root / hashlib.sha256("\n".join(named).encode()).hexdigest()[:40]
    with disk_errors(f"creating {work}"):
        work.mkdir(parents=True, exist_ok=True)
        others = sorted((path for path in root.iterdir() if path != work), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - _MAX_UNFINISHED)]:
        shutil.rmtree(path, ignore_errors=True)
    return work


def _request(
    recipe: Path | None, flags: dict[str, Any], out: Path, work: Path, report: Progress
) -> AbstractContextManager[Request]:
    from compiler.distill import prepare
    from compiler.recipe.distill_section import DistillSection, settled

    own = {name: value for name, value in flags.items() if name in DistillSection.__struct_fields__}
    if recipe is not None:
        return prepare.from_recipe(recipe, own, out=out, work=work, token=flags["token"], progress=report)
    plain = prepare.Plain(
        teacher=flags["teacher"],
        data=flags["data"],
        labels=flags["labels"],
        output=flags["output_name"] or "",
        output_kind=flags["output_kind"] or "logits",
        section=settled(None, flags=own),
    )
    return prepare.from_flags(plain, out=out, work=work, token=flags["token"], progress=report)


def _made(request: Request, out: Path) -> Student:
    from compiler.distill.student import make_student, write_metrics

    if out.is_dir():
        raise ConfigError(f"-o {out}: a directory is there; name a file")
    student = make_student(request)
    write_metrics(student, out.with_suffix(".json"))
    return student


def _lines() -> Callable[[float, str], None]:
    """Return what writes a line now and then, and when something else begins."""
    began = said_at = time.monotonic()
    doing = ""

    def say(share: float, note: str) -> None:
        nonlocal said_at, doing
        now, kind = time.monotonic(), note.partition(":")[0]
        if now - said_at >= _LINE_EVERY_S or kind != doing:
            said_at, doing = now, kind
            progress(f"{share:4.0%}  {note}{_left(share, now - began)}")

    return say


def _left(share: float, took_s: float) -> str:
    seconds = took_s * (1 - share) / max(share, 0.05)
    if share < 0.05 or seconds < 1:
        return ""
    return f", about {seconds:.0f} s left" if seconds < 120 else f", about {seconds / 60:.0f} min left"


def _print(student: Student) -> None:
    found, figures = student.metrics, student.metrics.validation
    every = max(1, len(found.curve) // 10)
    shown = [epoch for index, epoch in enumerate(found.curve, 1) if index % every == 0 or index == found.best_epoch]
    rows = [
        [
            epoch.phase,
            epoch.epoch,
            f"{epoch.train_loss:.4f}",
            f"{epoch.validation_loss:.4f}",
            wording.percent(epoch.correct),
        ]
        for epoch in shown
    ]
    print_table(["phase", "epoch", "loss", "validation", "right"], rows)
    click.echo()
    fields: dict[str, object] = {
        "student": f"{student.path}  {found.size_bytes:,} bytes, {found.parameters:,} parameters",
        "digest": found.digest,
        "training": f"{found.train_rows} rows, best epoch {found.best_epoch} of {found.epochs} ({found.stop})",
        "agreement": f"{wording.percent(figures.agreement)} as the teacher on {figures.rows} validation rows",
    }
    if figures.accuracy is not None and figures.teacher_accuracy is not None:
        fields["accuracy"] = f"{wording.percent(figures.accuracy)}, teacher {wording.percent(figures.teacher_accuracy)}"
    fields["calibration"] = (
        f"error {figures.calibration_error:.3f}, {figures.calibrated_error:.3f} at temperature {figures.temperature:g}"
    )
    fields["could keep"] = ", ".join(
        f"{wording.percent(share)} at {wording.allowed(float(harm))} points of harm"
        for harm, share in figures.coverage_at_harm.items()
    )
    sizes = ", ".join(map(str, found.batches))
    fields["export"] = f"differs from torch by {found.largest_difference:g} at most, batches of {sizes}"
    print_fields(fields)
    for note in found.notes:
        click.echo(f"note: {note}")
