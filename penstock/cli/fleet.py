"""``penstock fleet``: plan, start, watch and stop rollouts, over gRPC to a core."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.fleet_plan import labels, plan_options, plan_request, removal_request
from penstock.cli.output import is_interactive, output_option, print_result, progress
from penstock.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from penstock.rpc.fleet import FleetClient
    from penstock.rpc.pb import fleet_pb2

EXIT_STOPPED = 3
_POLL_S = 0.5
_UNREACHABLE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    target: str
    token: str


def _core_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--core`` and ``--token``, passed on as one value, ``core``."""

    @functools.wraps(function)
    def call(*, core: str, token: str, **others: Any) -> Any:
        return function(core=_Core(target=core, token=token), **others)

    call = click.option(
        "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
    )(call)
    return click.option(
        "--core",
        envvar="PENSTOCK_CORE",
        default="grpc://127.0.0.1:8001",
        show_default=True,
        show_envvar=True,
        metavar="TARGET",
        help="The core.",
    )(call)


@click.group(
    epilog="""\b
Examples:
  penstock fleet devices
  penstock fleet apply digits:v1 --at-once --yes --wait     # the first version
  penstock fleet plan digits:v2 --wave 0.34 --wave 1 --bake 60
  penstock fleet apply digits-v2-1 --wait
  penstock fleet apply digits:v2 --yes --wait
  penstock fleet status --watch
  penstock fleet abort digits-v2-1 --keep
  penstock fleet undo
  penstock fleet remove digits --wait
  penstock fleet trust cam-17 --reason 'lens was dirty, cleaned'

Without a rollout's name, the newest one that fits is meant."""
)
def command() -> None:
    """Plan, start, watch and stop rollouts over many devices.

    Everything that changes what devices run is a plan: a first version, a new version, a new certificate for the same
    version, a removal. What is only pushed reaches no device.
    """


@command.command()
@click.option("--selector", multiple=True, metavar="LABEL=VALUE", help="Only devices with this label; repeat.")
@_core_options
@output_option
def devices(selector: tuple[str, ...], core: _Core, output: str) -> None:
    """List devices: what they run, how they are, when they were last heard."""
    from penstock.cli.fleet_view import devices_text
    from penstock.rpc.fleet import as_data

    with _client(core) as client:
        found = client.devices(labels(selector))
    print_result(output, [as_data(device) for device in found], lambda: click.echo(devices_text(found)))


@command.command()
@_core_options
@output_option
def evidence(core: _Core, output: str) -> None:
    """Show what the audits of all devices say about each certificate in use."""
    from penstock.cli.fleet_view import promises_text
    from penstock.rpc.fleet import as_data

    with _client(core) as client:
        found = client.promises()
    print_result(output, [as_data(one) for one in found], lambda: click.echo(promises_text(found)))


@command.command(
    epilog="""\b
Examples:
  penstock fleet trust cam-17 --reason 'lens was dirty, cleaned'
  penstock fleet trust cam-17 --model digits -o json

Exit codes: 0 recorded, 1 no such device or nothing to trust on it, 4 no core answers."""
)
@click.argument("device")
@click.option("--model", default="", help="Only this model.  [default: all that run there under a certificate]")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--who", default=lambda: os.environ.get("USER", ""), help="Who, for the record.  [default: your login]")
@_core_options
@output_option
def trust(device: str, model: str, reason: str, who: str, core: _Core, output: str) -> None:
    """Let DEVICE keep answers again after its audit found more harm than was certified.

    For when you looked and know why. Its audit begins again without evidence, with the next heartbeat. A new
    certificate does the same by plan: 'penstock fleet apply' of the version that runs.
    """
    from penstock.cli.fleet_view import trusted_text
    from penstock.rpc.fleet import as_data
    from penstock.rpc.pb import fleet_pb2

    asked = fleet_pb2.TrustDeviceRequest(device_id=device, model=model, who=who, reason=reason)
    with _client(core) as client:
        found = client.trust(asked)
    print_result(output, as_data(found), lambda: click.echo(trusted_text(found)))


@command.command()
@_core_options
@output_option
def actions(core: _Core, output: str) -> None:
    """List what operators did beside rollouts: who, when and why."""
    from penstock.cli.fleet_view import actions_text
    from penstock.rpc.fleet import as_data

    with _client(core) as client:
        found = client.actions()
    print_result(output, [as_data(one) for one in found], lambda: click.echo(actions_text(found)))


@command.command()
@click.argument("reference")
@plan_options
@_core_options
@output_option
def plan(reference: str, core: _Core, output: str, **options: Any) -> None:
    """Freeze a plan to roll REFERENCE (model:tag or model@digest) out, with the newest certificate of each variant.

    Prints exactly what 'apply' will run. A version that devices run already is planned again for a new certificate.
    """
    with _client(core) as client:
        _show_plan(client.plan(plan_request(reference, options)), output)


@command.command()
@click.argument("name", metavar="ROLLOUT|REFERENCE")
@click.option("--plan-digest", default="", help="Refuse unless the plan is the one with this digest.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Follow to the end: exit 0 when it succeeded, 3 when it was stopped.")
@click.option("--timeout", type=float, default=0.0, metavar="S", help="With --wait: give up watching after this long.")
@plan_options
@_core_options
@output_option
def apply(
    name: str, plan_digest: str, yes: bool, wait: bool, timeout: float, core: _Core, output: str, **options: Any
) -> None:
    """Run a plan, or plan REFERENCE and run that after asking."""
    with _client(core) as client:
        if ":" in name or "@" in name:
            made = client.plan(plan_request(name, options))
            name, plan_digest = made.rollout_id, made.plan_digest
            if not yes:
                _confirm(made)
        _finish(client, client.apply(name, plan_digest), output, wait=wait, timeout_s=timeout)


@command.command()
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Follow to the end: exit 0 when it succeeded, 3 when it was stopped.")
@click.option("--timeout", type=float, default=0.0, metavar="S", help="With --wait: give up watching after this long.")
@plan_options
@_core_options
@output_option
def remove(model: str, yes: bool, wait: bool, timeout: float, core: _Core, output: str, **options: Any) -> None:
    """Plan to take MODEL off its devices, and run that after asking. 'undo' brings it back.

    A device stops answering for it and deletes it. Artifacts stay in the registry, and the core goes on serving it.
    """
    with _client(core) as client:
        made = client.plan(removal_request(model, options))
        if not yes:
            _confirm(made)
        _finish(client, client.apply(made.rollout_id, made.plan_digest), output, wait=wait, timeout_s=timeout)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--all", "show_all", is_flag=True, help="List all rollouts.")
@click.option("--watch", is_flag=True, help="Follow until it is over.")
@_core_options
@output_option
def status(rollout: str, show_all: bool, watch: bool, core: _Core, output: str) -> None:
    """Show a rollout: devices, evidence, and where it stands and why."""
    from penstock.cli.fleet_view import rollouts_text
    from penstock.rpc.fleet import as_data

    with _client(core) as client:
        if show_all:
            found = client.rollouts()
            print_result(output, [as_data(one) for one in found], lambda: click.echo(rollouts_text(found)))
            return
        shown = client.rollout(rollout)
        if watch:
            shown = _follow(client, shown, timeout_s=0.0)
        _show(shown, output)


@command.command()
@click.argument("rollout", required=False, default="")
@_core_options
@output_option
def pause(rollout: str, core: _Core, output: str) -> None:
    """Release no further wave; the gates go on watching."""
    with _client(core) as client:
        _show(client.pause(rollout), output)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--wait", is_flag=True, help="Follow to the end, as with 'apply --wait'.")
@_core_options
@output_option
def resume(rollout: str, wait: bool, core: _Core, output: str) -> None:
    """Go on with a paused rollout; failures seen so far are accepted."""
    with _client(core) as client:
        _finish(client, client.resume(rollout), output, wait=wait, timeout_s=0.0)


@command.command()
@click.argument("rollout", required=False, default="")
@click.option("--keep", is_flag=True, help="Leave updated devices on the new version.")
@_core_options
@output_option
def abort(rollout: str, keep: bool, core: _Core, output: str) -> None:
    """End a rollout now, without gates; devices go back unless --keep."""
    with _client(core) as client:
        _show(client.abort(rollout, keep=keep), output)


@command.command()
@click.argument("rollout", required=False, default="")
@_core_options
@output_option
def undo(rollout: str, core: _Core, output: str) -> None:
    """Bring every device of a rollout back to what it ran before, without gates."""
    with _client(core) as client:
        _show(client.undo(rollout), output)


def _client(core: _Core) -> FleetClient:
    from penstock.rpc.fleet import FleetClient

    return FleetClient(core.target, token=core.token)


def _confirm(made: fleet_pb2.RolloutPlan) -> None:
    from penstock.cli.fleet_view import plan_text

    click.echo(plan_text(made), err=True)
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"nobody is here to confirm; run 'penstock fleet apply {made.rollout_id}', or give --yes next time"
        )
    click.confirm("\nRun this plan?", abort=True, err=True)


def _show_plan(made: fleet_pb2.RolloutPlan, output: str) -> None:
    from penstock.cli.fleet_view import plan_text
    from penstock.rpc.fleet import as_data

    print_result(output, as_data(made), lambda: click.echo(plan_text(made)))
    if output != "json":
        progress(f"\nrun it with: penstock fleet apply {made.rollout_id}")


def _show(rollout: fleet_pb2.Rollout, output: str) -> None:
    from penstock.cli.fleet_view import rollout_text
    from penstock.rpc.fleet import as_data

    print_result(output, as_data(rollout), lambda: click.echo(rollout_text(rollout)))


def _finish(client: FleetClient, rollout: fleet_pb2.Rollout, output: str, *, wait: bool, timeout_s: float) -> None:
    from penstock.rpc.fleet import state_name

    if wait:
        rollout = _follow(client, rollout, timeout_s=timeout_s)
    _show(rollout, output)
    if wait and state_name(rollout) != "SUCCEEDED":
        sys.exit(EXIT_STOPPED)


def _follow(client: FleetClient, rollout: fleet_pb2.Rollout, *, timeout_s: float) -> fleet_pb2.Rollout:
    """Show progress on stderr until the rollout is over; a core that restarts meanwhile is waited for.

    Raises:
        DeadlineExceeded: ``timeout_s`` is over (0: never). Unavailable: the core was out of reach for a minute.
    """
    from penstock.rpc.fleet import ACTIVE_STATES, state_name

    name, started = rollout.plan.rollout_id, time.monotonic()
    heard = started
    with _Screen() as screen:
        screen.show(rollout)
        while state_name(rollout) in ACTIVE_STATES:
            if timeout_s and time.monotonic() - started > timeout_s:
                raise DeadlineExceeded(f"rollout {name} is not over after {timeout_s:g} s; it goes on")
            time.sleep(_POLL_S)
            try:
                rollout = client.rollout(name)
            except (Unavailable, DeadlineExceeded):
                if time.monotonic() - heard > _UNREACHABLE_S:
                    raise
                continue
            heard = time.monotonic()
            screen.show(rollout)
    return rollout


@dataclass(slots=True)
class _Screen:
    """Live table on a terminal, a line for each change elsewhere."""

    live: Any = None
    last: object = None
    told: str = ""  # the newest event that was printed

    def __enter__(self) -> _Screen:
        if is_interactive():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def show(self, rollout: fleet_pb2.Rollout) -> None:
        from penstock.cli.fleet_view import events_after, progress_line, rollout_text, situation

        if self.live is not None:
            from rich.text import Text

            self.live.update(Text(rollout_text(rollout)), refresh=True)
        elif situation(rollout) != self.last:
            for event in events_after(rollout, self.told):
                progress(f"          {event}")
            self.told = rollout.events[-1] if rollout.events else ""
            self.last = situation(rollout)
            progress(progress_line(rollout))
