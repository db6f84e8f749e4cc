"""``penstock certify``: a packed artifact and new examples in, a new certificate beside the old ones out; or a check of
those it has. Parses, calls ``compiler.pipeline``, prints; decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock import wording
from penstock.artifact.certificates import Level, by_how_much
from penstock.cli.default_group import DefaultGroup
from penstock.cli.keys import is_signed, key_option, signing
from penstock.cli.output import output_option, print_result, print_table, progress
from penstock.errors import CalibrationError

if TYPE_CHECKING:
    from compiler.pipeline.evidence_check import Checked
    from compiler.pipeline.recertify import Outcome

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_layout = click.argument("artifact", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group("certify", cls=DefaultGroup, context_settings=_CONTEXT)
def command() -> None:
    """Certify a packed artifact on new examples."""


@command.default(
    "certify",
    context_settings=_CONTEXT,
    epilog="""\b
Examples:
  penstock certify build/digits --data new.npz
  penstock certify build/digits --data new.csv --max-harm 0.01 --max-harm 0.02
  penstock certify build/digits --data new.npz --choose-again -o json
  penstock certify verify build/digits

Exit codes: 0 done, 1 failed, 2 wrong data or settings, 3 refused (the message says how many examples are needed).""",
)
@_layout
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="New examples: .npz, .csv, .parquet, a folder of images, module:function, or a TOML file with [data].",
)
@click.option("--target", default="", help="Only the variants for this target.  [default: all that this machine runs]")
@click.option("--max-harm", type=float, multiple=True, help="Promised share; again for more levels, the default first.")
@click.option("--delta", type=float, help="Chance that the promise, all levels together, does not hold.")
@click.option("--harm", type=click.Choice(["labels", "disagreement"]), help="What counts as harm.")
@click.option("--labels", metavar="NAME", help="Array or column of the labels.  [default: guessed]")
@click.option(
    "--group-by", metavar="NAME", help="Array or column whose groups shall each keep the promise; '' for one over all."
)
@click.option(
    "--cluster-by",
    metavar="NAME",
    help="Array or column that says what examples belong to (a patient, a camera): the promise is then over these.",
)
@click.option(
    "--repeats",
    type=click.Choice(["natural", "copies"]),
    help="What equal examples are: draws like any others, or copies that count once.  [default: copies]",
)
@click.option("--choose-again", is_flag=True, help="Choose score and temperature again, on a third of the examples.")
@click.option(
    "--unchecked-cloud", is_flag=True, help="Certify also where the cloud is not shown to be better than guessing."
)
@key_option
@output_option
def certify(
    artifact: Path,
    data: str,
    target: str,
    max_harm: tuple[float, ...],
    delta: float | None,
    harm: Any,
    labels: str | None,
    group_by: str | None,
    cluster_by: str | None,
    repeats: Any,
    choose_again: bool,
    unchecked_cloud: bool,
    key: str,
    output: str,
) -> None:
    """Certify the edge variants of a packed artifact on new examples, without compiling it again.

    ARTIFACT is a directory that 'penstock compile' wrote. Its variants are run as they are; promise, score and
    temperature are those of the newest certificate unless they are given. The new certificate is added with its
    evidence: the older ones stay, and the newest is used. The examples must be new: not those that trained, tuned or
    certified the artifact before.
    """
    from compiler.pipeline import recertify
    from compiler.pipeline.new_examples import ExampleSource

    request = recertify.Request(
        source=ExampleSource(data=data, labels=labels, group_by=group_by, cluster_by=cluster_by, repeats=repeats),
        target=target,
        max_harm=max_harm,
        delta=delta,
        harm=harm,
        choose_again=choose_again,
        check_cloud=not unchecked_cloud,
    )
    sign = signing(key)  # a wrong key is found out before the examples are looked at
    outcomes = recertify.recertify(artifact, request, say=progress)
    if sign is not None:
        sign(artifact)
    elif any(outcome.certificate is not None for outcome in outcomes) and is_signed(artifact):
        progress(f"no signature covers what was certified now; next: penstock artifact sign {artifact} --key NAME")
    print_result(output, {"artifact": artifact, "variants": outcomes}, lambda: _print_outcomes(outcomes))
    refused = [outcome for outcome in outcomes if outcome.certificate is None]
    if refused:
        needed = [outcome.needed for outcome in refused if outcome.needed is not None]
        raise CalibrationError(
            "; ".join(f"{one.role}/{one.target} is refused: {one.refusal.rstrip('.')}" for one in refused)
            + ". The certificates that were there stay as they are",
            needed=max(needed, default=None),
        )


@command.command(context_settings=_CONTEXT)
@_layout
@output_option
@click.pass_context
def verify(ctx: click.Context, artifact: Path, output: str) -> None:
    """Recompute every certificate of ARTIFACT from its stored evidence. Exit code 1 when a figure differs."""
    from compiler.pipeline import evidence_check

    checked = evidence_check.check(artifact)
    document = {"artifact": artifact, "is_good": not _bad(checked), "certificates": checked}
    print_result(output, document, lambda: _print_checked(artifact, checked))
    if _bad(checked):
        ctx.exit(1)


def _bad(checked: list[Checked]) -> list[Checked]:
    return [one for one in checked if one.problems]


def _print_outcomes(outcomes: list[Outcome]) -> None:
    rows = [
        [f"{one.role}/{one.target}", *_cells(level)]
        for one in outcomes
        if one.certificate is not None
        for level in one.certificate.levels
    ]
    if rows:
        print_table(["variant", "max harm", "threshold", "on device", "interval", "harmful", "audit bound"], rows)
        click.echo()
    for one in outcomes:
        if one.certificate is None:
            continue
        for refused in one.certificate.refused:
            where = f"{one.role}/{one.target} at {wording.allowed(refused.max_harm)} points"
            click.echo(f"{where}: refused: {refused.reason}")
        for level in one.certificate.levels:
            for group in level.groups:
                where = f"{one.role}/{one.target} at {wording.allowed(level.max_harm)} points"
                click.echo(
                    f"{where}, {one.certificate.group_by} {group.name}: "
                    f"{wording.percent(group.coverage)} on device, {group.harm_count} of {group.n} "
                    f"harmful{by_how_much(group)}"
                )
        if one.certificate.rows:
            what = f"{one.certificate.n} {one.certificate.unit_name} of {one.certificate.rows} examples"
            click.echo(f"{one.role}/{one.target}: certified on {what}")
        click.echo(f"{one.role}/{one.target}: certificate {one.certificate.serial}, {one.digest}; {one.reason}")
        click.echo(one.certificate.promise())


def _cells(level: Level) -> list[str]:
    return [
        f"{wording.allowed(level.max_harm)} points",
        f"{level.threshold:.6g}",
        wording.percent(level.coverage),
        wording.between(level.coverage_low, level.coverage_high),
        f"{level.harm_count} of {level.n}",
        wording.bound(level.audit_max_harm),
    ]


def _print_checked(artifact: Path, checked: list[Checked]) -> None:
    for one in checked:
        said = "every figure recomputed" if not one.problems else "NOT as its evidence has it"
        click.echo(f"certificate {one.serial} {one.digest}: {said}")
        for problem in one.problems:
            click.echo(f"  {problem}")
        if one.opinion:
            click.echo(f"  {one.opinion}")
    bad = len(_bad(checked))
    if not checked:
        click.echo(f"{artifact}: no certificate; agents escalate every answer")
    else:
        click.echo(f"{artifact}: {f'{bad} of {len(checked)} certificates do not verify' if bad else 'good'}")
