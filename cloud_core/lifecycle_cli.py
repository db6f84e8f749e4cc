"""``penstock core reload`` and its kin: what keeps a core running well."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from cloud_core.asking import asked
from penstock.cli.core_option import core_option
from penstock.cli.output import output_option, print_result, print_table

_RELOAD_TIMEOUT_S = 30.0
_TOKEN = click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
)


@click.command(
    epilog="""\b
Examples:
  penstock core reload
  kill -HUP "$(pidof -s penstock)"
  penstock core reload --core http://127.0.0.1:8000 -o json

\b
Taken on at once: [[tenants]] with their rates and rights, log.level, observing.slo, serving.traffic.versions, load_s,
look_s and max_notes, serving.drain_s and lame_duck_s. Everything else waits for a restart, and is listed as such.
Settings that cannot be read, or contradict each other, change nothing. SIGHUP does the same; the log has the list.

Exit codes: 0 read, 2 the settings are wrong and the old ones stay, 3 refused, 4 no core answers."""
)
@core_option("http")
@_TOKEN
@output_option
def reload(core: str, token: str, output: str) -> None:
    """Have a running core read its settings again, and say what changed."""
    answer = asked(core, "POST", "/v2/_penstock/reload", token, timeout_s=_RELOAD_TIMEOUT_S)
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    print_result(output, found, lambda: _print_changes(found["changes"]))


def _print_changes(changes: list[dict[str, Any]]) -> None:
    if not changes:
        click.echo("nothing changed")
        return
    rows = [
        (one["setting"], one["before"], one["after"], "applied" if one["is_live"] else "waits for a restart")
        for one in changes
    ]
    print_table(["setting", "before", "after", "now"], rows)
