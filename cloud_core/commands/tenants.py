"""``penstock core key`` and ``penstock core usage``: who may call a core, and what they used."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click
import msgspec

from cloud_core.commands.asking import asked, told
from penstock.cli.core_option import core_option
from penstock.cli.fleet.options import operator_options
from penstock.cli.output import output_option, print_fields, print_json, print_result, print_table

if TYPE_CHECKING:
    from penstock.rpc.fleet import Operator

_KEYS, _USAGE = "/v2/_penstock/keys", "/v2/_penstock/usage"
_MAX_KEYS = 1_000_000  # what a setting may allow; a core looks at its own
_COUNTS = ("requests", "failed", "rows", "bytes", "tokens", "device_s")


def _core_options(command: Callable[..., Any]) -> Callable[..., Any]:
    token = click.option(
        "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential of an admin."
    )
    return core_option("http")(token(command))


@click.group()
def key() -> None:
    """Make, list and revoke keys, by which callers of a core are known."""


@key.command(
    epilog="""\b
Examples:
  penstock core key create --data-dir /var/lib/penstock/core --tenant operators --role admin
  penstock core key create --tenant shop --note 'checkout service' --days 90
  penstock core key create --tenant kiosks --role device --device-id kiosk-7 -o json

A key is shown once, when it is made: the core keeps its hash. The core has to want credentials ([[tenants]],
auth.required or auth.oidc.issuer). With --data-dir no core may run there: that is for the first key of all.

Exit codes: 0 made, 1 there is no such directory, or the disk said no, 3 refused, 4 no core answers."""
)
@click.option("--tenant", required=True, help="Whose key; limits are those of its [[tenants]] entry, if it has one.")
@click.option(
    "--role",
    type=click.Choice(["client", "device", "observer", "admin"]),
    default="client",
    show_default=True,
    help="What it may do.",
)
@click.option("--device-id", default="", help="The only device that it may report for.")
@click.option("--note", default="", help="What it is for.")
@click.option(
    "--days", type=click.FloatRange(0, 36_500, min_open=True), help="How long it is valid.  [default: always]"
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Make it in a core's data directory, while that core does not run.",
)
@operator_options
@_core_options
@output_option
def create(data_dir: Path | None, by: Operator, core: str, token: str, output: str, **wanted: Any) -> None:
    """Make a key for a tenant."""
    if data_dir is not None:
        made = _made_offline(data_dir, by, wanted)
    else:
        body = msgspec.json.encode({**wanted, "who": by.who, "reason": by.reason})
        made = msgspec.json.decode(asked(core, "POST", _KEYS, token, body=body, says_no=201).body)
    print_result(output, made, lambda: _print_made(made))


@key.command(
    "list",
    epilog="""\b
Examples:
  penstock core key list
  penstock core key list -o json""",
)
@_core_options
@output_option
def list_keys(core: str, token: str, output: str) -> None:
    """List keys: whose they are, until when they are valid, and when each was last used."""
    found = told(core, _KEYS, token)
    print_result(output, found, lambda: _print_keys(found["keys"]))


@key.command(
    epilog="""\b
Examples:
  penstock core key revoke 1a2b3c4d --reason 'left the company'

Exit codes: 0 revoked, 1 no such key, 3 refused, 4 no core answers."""
)
@click.argument("id")
@operator_options
@_core_options
@output_option
def revoke(id: str, by: Operator, core: str, token: str, output: str) -> None:
    """Revoke the key with this ID (a part of the key that is no secret): the next request with it is refused."""
    path = f"{_KEYS}/{quote(_id_of(id), safe='')}?{urlencode({'who': by.who, 'reason': by.reason})}"
    gone = msgspec.json.decode(asked(core, "DELETE", path, token).body)
    print_result(output, gone, lambda: click.echo(f"revoked {gone['id']} of {gone['tenant']}"))


@click.command(
    epilog="""\b
Examples:
  penstock core usage
  penstock core usage --since 2026-11-01 --until 2026-11-30 --together -o csv > november.csv
  penstock core usage --tenant shop -o json

Days begin at midnight UTC. device_s are seconds of engines, shared among the rows of a batch; language models are
counted in tokens."""
)
@click.option("--since", metavar="DAY", default="", help="The first day, as 2026-11-30.  [default: 30 days ago]")
@click.option("--until", metavar="DAY", default="", help="The last day.  [default: today]")
@click.option("--tenant", default="", help="One tenant only.")
@click.option("--together", is_flag=True, help="One row for all days.")
@_core_options
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="Output format.",
)
def usage(since: str, until: str, tenant: str, together: bool, core: str, token: str, output: str) -> None:
    """Show what tenants used of which models: requests, rows, bytes, tokens and seconds of devices, by day."""
    query = {"since": since, "until": until, "tenant": tenant, "by": "all" if together else "day"}
    found = told(core, f"{_USAGE}?{urlencode({name: value for name, value in query.items() if value})}", token)
    head = [*([] if together else ["day"]), "tenant", "model", *_COUNTS]
    rows = [[one[name] for name in head] for one in found["usage"]]
    if output == "json":
        print_json(found)
    elif output == "csv":
        _print_csv(head, rows)
    elif rows:
        print_table(head, [[_shown(cell) for cell in row] for row in rows])
    else:
        click.echo(f"nothing was used from {found['since']} to {found['until']}")


def _made_offline(data_dir: Path, by: Operator, wanted: dict[str, Any]) -> dict[str, Any]:
    from cloud_core import first_key  # a database: not needed to ask a core

    return first_key.create(data_dir, wanted, who=by.who, reason=by.reason, max_keys=_MAX_KEYS)


def _id_of(text: str) -> str:
    """Return the id in what was given; whoever pastes the whole key means that one."""
    parts = text.split("_")
    return parts[1] if len(parts) >= 3 and parts[0] == "penstock" else text


def _print_made(made: dict[str, Any]) -> None:
    names = ("id", "tenant", "role", "device_id", "note", "expires_at")
    print_fields({name.replace("_", " "): made[name] for name in names if made[name]})
    click.echo(f"\n{made['key']}\n\nThis is the only time that it is shown.")


def _print_keys(keys: Sequence[dict[str, Any]]) -> None:
    if not keys:
        click.echo("no keys; 'penstock core key create' makes one")
        return
    names = ("id", "tenant", "role", "device_id", "note", "created_at", "expires_at", "last_used_at")
    heads = [name.removesuffix("_at").replace("_", " ") for name in names]
    print_table(heads, [[str(one[name] or "-") for name in names] for one in keys])


def _print_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[_inert(cell) for cell in row] for row in rows])


def _inert(cell: Any) -> Any:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def _shown(cell: Any) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
