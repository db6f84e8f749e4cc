"""``penstock fleet`` on devices: what they run, what their audits say, and what operators did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from penstock.cli.fleet.options import Core, core_options, operator_options
from penstock.cli.fleet.plan import labels
from penstock.cli.output import output_option, print_result

if TYPE_CHECKING:
    from penstock.rpc.fleet import Operator


@click.command(
    epilog="""\b
Examples:
  penstock fleet devices --selector site=lab
  penstock fleet devices --by version
  penstock fleet devices --by label:site -o json
  penstock fleet devices --limit 50 --after cam-0050"""
)
@click.option("--selector", multiple=True, metavar="LABEL=VALUE", help="Only devices with this label; repeat.")
@click.option("--by", default="", metavar="WHAT", help="Count them by version, wave, phase, target or label:NAME.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Devices to list.")
@click.option("--after", default="", metavar="DEVICE", help="List those behind this one.")
@click.option("--wide", is_flag=True, help="Also show agent, target, labels and what waits in the outbox.")
@core_options
@output_option
def devices(selector: tuple[str, ...], by: str, limit: int, after: str, wide: bool, core: Core, output: str) -> None:
    """List devices: what they run since when, how they are, when they were last heard.

    Or count them, with --by. JSON is a list of devices; with --by, of groups.
    """
    from penstock.cli.fleet.device_view import devices_text, groups_text
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        if by:
            groups = client.groups(by, labels(selector))
            print_result(output, [as_data(one) for one in groups], lambda: click.echo(groups_text(by, groups)))
            return
        page = client.page(labels(selector), after=after, limit=min(limit, 1000))
        while page.next_after and len(page.devices) < limit:
            more = client.page(labels(selector), after=page.next_after, limit=min(limit - len(page.devices), 1000))
            page.devices.extend(more.devices)
            page.next_after = more.next_after
    print_result(
        output, [as_data(device) for device in page.devices], lambda: click.echo(devices_text(page, is_wide=wide))
    )


@click.command()
@click.argument("device")
@operator_options
@core_options
@output_option
def forget(device: str, core: Core, by: Operator, output: str) -> None:
    """Forget DEVICE, which is gone: what it ran, what it delivered, and what it was told.

    Refused while it still reports, or while a rollout is about it. One that comes back is a new device.
    """
    with core.client() as client:
        client.forget(device, by)
    print_result(output, {"device_id": device}, lambda: click.echo(f"{device} is forgotten"))


@click.command()
@core_options
@output_option
def evidence(core: Core, output: str) -> None:
    """Show what the audits of all devices say about each certificate in use."""
    from penstock.cli.fleet.device_view import promises_text
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        found = client.promises()
    print_result(output, [as_data(one) for one in found], lambda: click.echo(promises_text(found)))


@click.command(
    epilog="""\b
Examples:
  penstock fleet trust cam-17 --reason 'lens was dirty, cleaned'
  penstock fleet trust cam-17 --model digits -o json

Exit codes: 0 recorded, 1 no such device or nothing to trust on it, 4 no core answers."""
)
@click.argument("device")
@click.option("--model", default="", help="Only this model.  [default: all that run there under a certificate]")
@operator_options
@core_options
@output_option
def trust(device: str, model: str, core: Core, by: Operator, output: str) -> None:
    """Let DEVICE keep answers again after its audit found more harm than was certified.

    For when you looked and know why. Its audit begins again without evidence, with the next heartbeat. A new
    certificate does the same by plan: 'penstock fleet apply' of the version that runs.
    """
    from penstock.cli.fleet.device_view import trusted_text
    from penstock.rpc.fleet import as_data
    from penstock.rpc.pb import fleet_pb2

    asked = fleet_pb2.TrustDeviceRequest(device_id=device, model=model, who=by.who, reason=by.reason)
    with core.client() as client:
        found = client.trust(asked)
    print_result(output, as_data(found), lambda: click.echo(trusted_text(found)))


@click.command(
    epilog="""\b
Examples:
  penstock fleet history
  penstock fleet history digits-v2-1
  penstock fleet history -o json"""
)
@click.argument("rollout", required=False, default="")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Newest entries to list.")
@core_options
@output_option
def history(rollout: str, limit: int, core: Core, output: str) -> None:
    """List what operators did: when, who, what and why. Of a ROLLOUT, also the steps that its gates took."""
    from penstock.cli.fleet.device_view import actions_text, events_text
    from penstock.rpc.fleet import as_data

    with core.client() as client:
        if rollout:
            events = list(client.rollout(rollout).events)[-limit:]
            print_result(output, [as_data(one) for one in events], lambda: click.echo(events_text(events)))
            return
        found = client.actions()[-limit:]
    print_result(output, [as_data(one) for one in found], lambda: click.echo(actions_text(found)))
