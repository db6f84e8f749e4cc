"""``penstock fleet``: plan, start, watch and stop rollouts, over gRPC to a core."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.fleet import devices
from penstock.cli.fleet.follow import (
    EXIT_WORDS,
    exit_code_of,
    finish,
    finish_going_back,
    follow,
    is_decided,
    is_over,
    show,
)
from penstock.cli.fleet.options import Core, core_options, operator_options, wait_options
from penstock.cli.fleet.plan import plan_options, plan_request, removal_request
from penstock.cli.output import output_option, print_result, progress
from penstock.errors import Conflict, NotFound

if TYPE_CHECKING:
    from penstock.rpc.fleet import FleetClient, Operator
    from penstock.rpc.pb import fleet_pb2

_END = f"until it is over or paused. Exit code: {EXIT_WORDS}"
_BACK = "until devices run what they should; 1 when only silent ones are missing"


@click.group(
    epilog="""\b
Examples:
  penstock fleet devices
  penstock fleet apply digits:v1 --at-once --yes --wait     # the first version
  penstock fleet plan digits:v2 --wave 0.1 --wave 1 --bake 60
  penstock fleet apply digits-v2-1 --wait --reason 'better on sevens'
  penstock fleet status --watch
  penstock fleet pause
  penstock fleet resume --accept cam-17
  penstock fleet abort digits-v2-1 --keep
  penstock fleet undo digits-v2-1 --wait
  penstock fleet history

\b
Without a rollout's name, the newest one that fits is meant; a plan that was not
applied hides none. Exit codes of 'apply', 'remove' and 'resume' with --wait, and
of 'status --exit-code': 0 succeeded, 5 stopped by its gate, 6 paused (an operator
has to look), 7 aborted or undone, 8 not over yet ('status' without --watch). Of
all: 1 failed, 2 wrong usage, 3 refused, 4 no core answers or --timeout is over."""
)
def command() -> None:
    """Plan, start, watch and stop rollouts over many devices.

    Everything that changes what devices run is a plan: a first version, a new version, a new certificate for the same
    version, a removal. What is only pushed reaches no device. Who did what, when and why is in 'history'.
    """


for found in (devices.devices, devices.forget, devices.evidence, devices.trust, devices.history):
    command.add_command(found)


@command.command()
@click.argument("reference")
@plan_options
@operator_options
@core_options
@output_option
def plan(reference: str, core: Core, by: Operator, output: str, **options: Any) -> None:
    """Freeze a plan to roll REFERENCE (model:tag or model@digest) out, with the newest certificate of each variant.

    Prints exactly what 'apply' will run, what would stop it, and what its tests can see. A version that devices run
    already is planned again for a new certificate.
    """
    from penstock.cli.fleet.view import plan_text
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        made = client.plan(plan_request(reference, options, by))
    print_result(output, as_data(made), lambda: click.echo(plan_text(made)))
    if output != "json":
        progress(f"\nrun it with: penstock fleet apply {made.rollout_id}")


@command.command()
@core_options
@output_option
def plans(core: Core, output: str) -> None:
    """List plans that were not applied."""
    from penstock.cli.fleet.view import plans_text
    from penstock.rpc.fleet import as_data, state_name

    with core.client() as client:
        found = [one for one in client.rollouts() if state_name(one) == "PLANNED"]
    print_result(output, [as_data(one) for one in found], lambda: click.echo(plans_text(found)))


@command.command()
@click.argument("names", metavar="PLAN...", nargs=-1, required=True)
@operator_options
@core_options
@output_option
def delete(names: tuple[str, ...], core: Core, by: Operator, output: str) -> None:
    """Delete plans that were not applied. A rollout that ever ran stays in the history."""
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        gone = [client.delete(name, by) for name in names]
    print_result(output, [as_data(one) for one in gone], lambda: click.echo(f"deleted: {', '.join(names)}"))


@command.command()
@click.argument("name", metavar="ROLLOUT|REFERENCE")
@click.option("--plan-digest", default="", help="Refuse unless the plan is the one with this digest.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@wait_options(_END)
@plan_options
@operator_options
@core_options
@output_option
def apply(
    name: str, plan_digest: str, yes: bool, wait: bool, timeout_s: float, core: Core, by: Operator, output: str,
    **options: Any,
) -> None:  # fmt: skip
    """Run a plan, or plan REFERENCE and run that after asking.

    With --wait, a rollout that runs already is followed to its end.
    """
    with core.client() as client:
        if ":" in name or "@" in name:
            made = client.plan(plan_request(name, options, by))
            started = _run(client, made, by, is_confirmed=yes)
        else:
            running = _applied_before(client, name, plan_digest) if wait else None
            started = running or client.apply(name, plan_digest, by)
        finish(client, started, output, wait=wait, timeout_s=timeout_s)


@command.command()
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@wait_options(_END)
@plan_options
@operator_options
@core_options
@output_option
def remove(
    model: str, yes: bool, wait: bool, timeout_s: float, core: Core, by: Operator, output: str, **options: Any
) -> None:
    """Plan to take MODEL off its devices, and run that after asking. 'undo' brings it back.

    A device stops answering for it and deletes it. Artifacts stay in the registry, and the core goes on serving it.
    """
    with core.client() as client:
        started = _run(client, client.plan(removal_request(model, options, by)), by, is_confirmed=yes)
        finish(client, started, output, wait=wait, timeout_s=timeout_s)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--all", "show_all", is_flag=True, help="List all rollouts.")
@click.option("--watch", is_flag=True, help="Follow until it is over; with --exit-code also until it is paused.")
@click.option("--exit-code", "wants_exit_code", is_flag=True, help="Let the exit code say how it stands.")
@core_options
@output_option
def status(rollout: str, show_all: bool, watch: bool, wants_exit_code: bool, core: Core, output: str) -> None:
    """Show a rollout: devices, evidence, and where it stands and why."""
    from penstock.cli.fleet.view import rollouts_text
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        if show_all:
            found = client.rollouts()
            print_result(output, [as_data(one) for one in found], lambda: click.echo(rollouts_text(found)))
            return
        shown = client.rollout(rollout)
        if watch:
            shown = follow(client, shown, output, until=is_decided if wants_exit_code else is_over)
        show(shown, output)
    if wants_exit_code:
        click.get_current_context().exit(exit_code_of(shown))


@command.command()
@click.argument("rollout", required=False, default="")
@operator_options
@core_options
@output_option
def pause(rollout: str, core: Core, by: Operator, output: str) -> None:
    """Release no further wave; the gates go on watching."""
    with core.client() as client:
        show(client.pause(rollout, by), output)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--accept", multiple=True, metavar="DEVICE", help="Go on without this device; repeat for more.")
@click.option("--accept-all", is_flag=True, help="Go on without all that failed or were not reached.")
@wait_options(_END)
@operator_options
@core_options
@output_option
def resume(
    rollout: str, accept: tuple[str, ...], accept_all: bool, wait: bool, timeout_s: float, core: Core, by: Operator,
    output: str,
) -> None:  # fmt: skip
    """Go on with a paused rollout.

    Refused while more devices failed than is tolerated: it names them, and goes on without those that you accept. A
    device that was not reached is waited for, unless you accept that, too.
    """
    with core.client() as client:
        resumed = client.resume(rollout, by, accept=accept, accept_all=accept_all)
        finish(client, resumed, output, wait=wait, timeout_s=timeout_s)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--keep", is_flag=True, help="Move nothing any more: each device stays on the version that it runs.")
@wait_options(_BACK)
@operator_options
@core_options
@output_option
def abort(rollout: str, keep: bool, wait: bool, timeout_s: float, core: Core, by: Operator, output: str) -> None:
    """End a rollout now, without gates; devices go back unless --keep."""
    with core.client() as client:
        finish_going_back(client, client.abort(rollout, by, keep=keep), output, wait=wait, timeout_s=timeout_s)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; wants the rollout's name.")
@wait_options(_BACK)
@operator_options
@core_options
@output_option
def undo(rollout: str, yes: bool, wait: bool, timeout_s: float, core: Core, by: Operator, output: str) -> None:
    """Bring every device of a rollout back to what it ran before, without gates.

    Says first what it takes back, and asks. Where nobody can answer, the rollout has to be named, so that a second
    'undo' does not take back a second one.
    """
    from penstock.cli.fleet.view import undo_text

    with core.client() as client:
        named = client.rollout(rollout, action="undo")
        found = named.plan.rollout_id
        progress(undo_text(named))
        is_asked = sys.stdin.isatty() and not (yes and rollout)
        if not rollout and (yes or not sys.stdin.isatty()):
            raise click.UsageError(f"name the rollout to take back: penstock fleet undo {found} --yes")
        if is_asked:
            click.confirm("\nTake it back?", abort=True, err=True)
        finish_going_back(client, client.undo(found, by), output, wait=wait, timeout_s=timeout_s)


def _applied_before(client: FleetClient, name: str, plan_digest: str) -> fleet_pb2.Rollout | None:
    """Return a rollout that was applied already, to be followed; None for a plan.

    Raises:
        Conflict: it is not the plan that was asked for.
    """
    from penstock.rpc.fleet import state_name

    try:
        found = client.rollout(name)
    except NotFound:
        return None  # applying it says so
    if state_name(found) == "PLANNED":
        return None
    if plan_digest not in ("", found.plan.plan_digest):
        raise Conflict(f"{name} has digest {found.plan.plan_digest}, not {plan_digest}")
    progress(f"{name} was applied before; following it")
    return found


def _run(client: FleetClient, made: fleet_pb2.RolloutPlan, by: Operator, *, is_confirmed: bool) -> fleet_pb2.Rollout:
    """Run a plan that was just made, after asking. One that does not run leaves nothing behind."""
    if not is_confirmed:
        _confirm(client, made, by)
    try:
        return client.apply(made.rollout_id, made.plan_digest, by)
    except Conflict:
        client.delete(made.rollout_id, by)
        raise


def _confirm(client: FleetClient, made: fleet_pb2.RolloutPlan, by: Operator) -> None:
    from penstock.cli.fleet.view import plan_text

    click.echo(plan_text(made), err=True)
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"nobody is here to confirm; run 'penstock fleet apply {made.rollout_id}', or give --yes next time"
        )
    if not click.confirm("\nRun this plan?", err=True):
        client.delete(made.rollout_id, by)
        progress(f"plan {made.rollout_id} was not run, and is deleted")
        raise click.Abort
