"""``penstock core reload``, ``check``, ``backup`` and ``restore``: what keeps a core running well."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from cloud_core.commands.asking import asked
from cloud_core.settings import ENV_PREFIX, CoreSettings
from cloud_core.settings import check as check_settings
from penstock.cli.core_option import core_option
from penstock.cli.output import output_option, print_fields, print_result, print_table
from penstock.process import config
from penstock.wording import size

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


def _settings(file: Path | None, data_dir: str | None) -> CoreSettings:
    flags = {"data_dir": data_dir}
    return config.load(CoreSettings, file=file, env=os.environ, env_prefix=ENV_PREFIX, flags=flags)


_CONFIG = click.option(
    "--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file (TOML) of the core."
)
_DATA_DIR = click.option("--data-dir", type=str, help="The core's data directory.  [default: penstock-core]")


@click.command(
    epilog="""\b
Examples:
  penstock core check --config /etc/penstock/core.toml
  penstock core check --data-dir /var/lib/penstock --deep
  sudo -u penstock penstock core check --config /etc/penstock/core.toml -o json

Changes nothing, and may run beside the core. --deep hashes every blob, and reads all of the registry for that.

Exit codes: 0 nothing failed (warnings may be left), 1 something failed, 2 wrong settings."""
)
@click.option("--deep", "is_deep", is_flag=True, help="Hash every blob, too.")
@_CONFIG
@_DATA_DIR
@output_option
def check(is_deep: bool, config: Path | None, data_dir: str | None, output: str) -> None:
    """Check what a core needs: settings, data directory, disk, ports, certificates, trust, database, blobs."""
    from cloud_core.checking import examine  # the database, too: not needed for --help

    findings = examine(check_settings(_settings(config, data_dir)), os.environ, is_deep=is_deep)
    rows = [(one.check, one.state, one.found) for one in findings]
    print_result(output, {"findings": findings}, lambda: print_table(["check", "state", "found"], rows))
    if any(one.state == "failed" for one in findings):
        click.get_current_context().exit(1)


@click.command(
    epilog="""\b
Examples:
  penstock core backup /backup/penstock --data-dir /var/lib/penstock
  penstock core backup /backup/penstock --config /etc/penstock/core.toml -o json

The core may run meanwhile. The database is copied as it is at one moment, then the blobs that it refers to; each is
hashed on its way. Into the same directory again, only blobs that are new are copied. A backup that is cut short leaves
the one before as it was. Keys of callers are in it as hashes; tokens of tenants are in the settings, not here.

Exit codes: 0 made, 1 not made, and why, 3 refused: the state is in PostgreSQL."""
)
@click.argument("to", metavar="DIRECTORY", type=click.Path(file_okay=False, path_type=Path))
@_CONFIG
@_DATA_DIR
@output_option
def backup(to: Path, config: Path | None, data_dir: str | None, output: str) -> None:
    """Copy state and blobs of a core, which may run, into DIRECTORY."""
    from cloud_core.backups import as_document, back_up

    made, new = back_up(_settings(config, data_dir), to)
    fields = {"backup": to, "made at": made.made_at, "blobs": f"{made.blobs}, {new} of them new",
              "size": size(made.size_bytes)}  # fmt: skip
    print_result(output, as_document(made, to, new), lambda: print_fields(fields))


@click.command(
    epilog="""\b
Examples:
  penstock core restore /backup/penstock --data-dir /var/lib/penstock
  penstock core restore /backup/penstock --data-dir /var/lib/penstock -o json

Everything is verified on its way. Cut short, run it again: no core starts in the directory before it was ended. What
devices delivered after the backup is counted again only where they still have it.

Exit codes: 0 put back, 1 not put back, and why, 3 refused: the directory has state."""
)
@click.argument("of", metavar="DIRECTORY", type=click.Path(file_okay=False, exists=True, path_type=Path))
@_CONFIG
@_DATA_DIR
@output_option
def restore(of: Path, config: Path | None, data_dir: str | None, output: str) -> None:
    """Put the backup in DIRECTORY back into a data directory that has no state."""
    from cloud_core.backups import as_document
    from cloud_core.backups import restore as put_back

    settings = _settings(config, data_dir)
    where, made = settings.data_dir, put_back(of, settings)
    fields = {"data directory": where, "as of": made.made_at, "blobs": made.blobs, "size": size(made.size_bytes)}
    print_result(output, as_document(made, of, 0) | {"data_dir": where}, lambda: print_fields(fields))
