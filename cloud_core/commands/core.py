"""``penstock core``: run the core, or ask a running one how it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cloud_core.commands import lifecycle as lifecycle_cli
from cloud_core.commands.asking import asked
from cloud_core.commands.push import push
from cloud_core.commands.seeing import drift, explain, slo, top
from cloud_core.commands.tenants import key, usage
from cloud_core.commands.traffic import load, models, pin, shadow, split, unload, versions
from cloud_core.settings import ENV_PREFIX, CoreSettings, check
from penstock.cli.core_option import core_option
from penstock.cli.fleet.options import Core, core_options, operator_options
from penstock.cli.output import output_option, print_fields, print_json, print_result, print_table
from penstock.cli.patience import patiently, wait_option
from penstock.errors import InUse, Unavailable
from penstock.process import config
from penstock.process.service_manager import service_manager, watched
from penstock.process.supervision import reloaded_on_hangup, stop_on_signals
from penstock.process.telemetry import flush_log, setup_service_logging
from penstock.rest.exchange import Answer
from penstock.wording import size

if TYPE_CHECKING:
    from penstock.rpc.fleet import Operator

_GC_TIMEOUT_S = 600.0  # a registry of many large blobs is looked through, and each is unlinked


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run the cloud core: gRPC and HTTP inference, registry, fleet."""


@command.command(
    epilog="""\b
Examples:
  penstock core serve
  penstock core serve --data-dir /var/lib/penstock --http-port 8000 --grpc-port 8001
  penstock core serve --config core.toml
  PENSTOCK_CORE_HTTP__PORT=9000 penstock core serve

\b
A core.toml:
  data_dir = "/var/lib/penstock"
  [http]
  host = "0.0.0.0"
  [grpc]
  host = "0.0.0.0"
  [serving]
  max_loaded_models = 8
  [[tenants]]
  name = "shop"
  token = "a long random secret"
  rate_rows_per_s = 1000

Settings: file, then environment (PENSTOCK_CORE_SECTION__KEY), then flags; the last one wins. Without tenants the core
listens on loopback only, unless allow_anonymous is set. SIGTERM drains: readiness fails, admitted work finishes.
SIGHUP reads the settings again, as 'penstock core reload' does."""
)
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Settings file (TOML).")
@click.option("--data-dir", type=str, help="State and artifacts; one core at a time.  [default: penstock-core]")
@click.option("--http-host", type=str, help="Address of HTTP.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="Port of HTTP; 0 takes a free one.  [default: 8000]")
@click.option("--grpc-host", type=str, help="Address of gRPC.  [default: 127.0.0.1]")
@click.option("--grpc-port", type=int, help="Port of gRPC; 0 takes a free one.  [default: 8001]")
@click.option("--allow-anonymous/--no-allow-anonymous", default=None, help="Let everybody in on any address.")
@click.option("--drain-s", type=float, help="How long admitted work may take to finish after SIGTERM.  [default: 10]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
def serve(config_file: Path | None, **flags: Any) -> None:
    """Serve models, keep artifacts, steer the fleet.

    Prints 'ready http=HOST:PORT grpc=HOST:PORT' to stderr, and writes the same to endpoints.json in the data
    directory, once requests are admitted.
    """

    def read() -> CoreSettings:
        return config.load(CoreSettings, file=config_file, env=os.environ, env_prefix=ENV_PREFIX, flags=_dotted(flags))

    settings = check(read())
    setup_service_logging(settings.log)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        is_clean = runner.run(_serve(settings, read))
    if not is_clean:
        # a thread still runs a batch, or hangs in one; the interpreter would wait for it without end
        flush_log(settings.log.flush_s)
        os._exit(1)


@command.command(
    epilog="""\b
Examples:
  penstock core status
  penstock core serve & penstock core status --wait
  penstock core status --core http://127.0.0.1:8000 -o json"""
)
@core_option("http")
@click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
)
@wait_option("requests are admitted")
@output_option
def status(core: str, token: str, waits: bool, output: str) -> None:
    """Show whether a core is ready, and which model versions it serves."""

    def ask_all() -> dict[str, Any]:
        listed = _models(asked(core, "POST", "/v2/repository/index", token))
        return {"live": _is_well(core, "live"), "ready": _is_well(core, "ready"), "models": listed}

    report = patiently(ask_all, lambda found: bool(found["ready"]), waits=waits)
    listed = report["models"]
    if output == "json":
        print_json(report)
        return
    print_fields({"core": core, "live": _yes(report["live"]), "ready": _yes(report["ready"])})
    rows = [
        (m["name"], m["version"], m["state"], "yes" if m["is_default"] else "-", m["reason"] or "-") for m in listed
    ]
    if rows:
        click.echo()
        print_table(["model", "version", "state", "default", "reason"], rows)
    else:
        click.echo("\nno models yet; push one with 'penstock artifact push'")


@command.command(
    epilog="""\b
Examples:
  penstock core default digits v2
  penstock core default digits v2 --core grpc://127.0.0.1:8001 --reason 'v1 mislabels sevens' -o json

Exit codes: 0 moved, 1 no such model or version, 3 refused because devices run the model, 4 no core answers."""
)
@click.argument("model")
@click.argument("version")
@operator_options
@core_options
@output_option
def default(model: str, version: str, by: Operator, core: Core, output: str) -> None:
    """Make VERSION of MODEL what the core serves to callers that name none, where no device runs the model.

    Where devices do, 'penstock fleet apply' moves the default together with them. Who did it, when and why is recorded.
    """
    from penstock.rpc.fleet import as_data
    from penstock.rpc.pb import fleet_pb2

    request = fleet_pb2.SetDefaultRequest(model=model, version=version, who=by.who, reason=by.reason)
    with core.client() as client:
        moved = client.set_default(request)
    print_result(output, as_data(moved), lambda: print_fields(as_data(moved)))


@command.command(
    epilog="""\b
Examples:
  penstock core gc --dry-run
  penstock core gc
  penstock core gc --core http://127.0.0.1:8000 -o json

\b
What goes: blobs that no manifest refers to, when no push has sent or looked for them for registry.orphan_ttl_s;
uploads that were left alone for registry.upload_ttl_s; temporary files that a killed process left. Pushes and
inferences go on meanwhile. Versions go by deleting their manifests; what only they refer to is garbage then.

Exit codes: 0 removed, or nothing to remove, 1 something could not be removed, 3 refused, 4 no core answers."""
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Show what would be removed, and remove nothing.")
@core_option("http")
@click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
)
@output_option
def gc(is_dry_run: bool, core: str, token: str, output: str) -> None:
    """Remove what nothing refers to from the registry of a running core, to free space on its disk."""
    path = f"/v2/_penstock/registry/gc?dry_run={str(is_dry_run).lower()}"
    answer = asked(core, "POST", path, token, timeout_s=_GC_TIMEOUT_S)
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    print_result(output, found, lambda: _print_garbage(found))
    if found["failed"]:
        click.get_current_context().exit(1)


for _verb in (top, slo, drift, explain, key, usage, models, split, shadow, pin, versions, load, unload, push):
    command.add_command(_verb)
for _verb in (lifecycle_cli.check, lifecycle_cli.reload, lifecycle_cli.backup, lifecycle_cli.restore):
    command.add_command(_verb)


async def _serve(settings: CoreSettings, read: Callable[[], CoreSettings]) -> bool:
    from cloud_core import app  # the whole service: not needed for --help

    stop = asyncio.Event()
    with stop_on_signals(stop):
        manager = service_manager()
        try:
            core = await app.Core.start(settings, read, stop)
        except InUse:
            if stop.is_set():  # told to end while it stood by
                return True
            raise
        try:
            async with watched(manager), reloaded_on_hangup(core.reloading.reload):
                manager.ready(f"serving http at {core.http_port}, grpc at {core.grpc_port}")
                await core.serve(stop)
                manager.stopping()
        finally:
            is_clean = await core.stop()
    return is_clean


def _dotted(flags: dict[str, Any]) -> dict[str, Any]:
    """Turn ``http_port`` into ``http.port``; names of top-level settings stay."""
    moved = {"drain_s": "serving.drain_s", "log_level": "log.level", "log_format": "log.format"}
    for section in ("http", "grpc"):
        moved |= {f"{section}_host": f"{section}.host", f"{section}_port": f"{section}.port"}
    return {moved.get(name, name): value for name, value in flags.items()}


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not made for every platform; asyncio's own loop is only slower
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _is_well(base: str, probe: str) -> bool:
    return asked(base, "GET", f"/v2/health/{probe}", "", says_no=503).status == 200


def _models(answer: Answer) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(answer.body, type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise Unavailable(f"what answers there is no core: {error}") from None


def _print_garbage(found: dict[str, Any]) -> None:
    rows = [(one["kind"], one["name"], size(one["size_bytes"]), _age(one["age_s"])) for one in found["items"]]
    if rows:
        print_table(["kind", "name", "size", "untouched"], rows)
        click.echo()
    removed, young = found["removed"], found["young"]
    left_out = sum(total["count"] for total in removed.values()) - len(rows)
    if left_out:
        click.echo(f"and {left_out} more")
    print_fields(
        {
            "would remove" if found["is_dry_run"] else "removed": _counted(removed),
            "too young": f"{_counted(young)}; kept for {_age(found['limits']['orphan_ttl_s'])}, uploads for "
            f"{_age(found['limits']['upload_ttl_s'])}",
        }
    )
    for one in found["failed"]:
        click.echo(f"not removed: {one['name']}: {one['reason']}", err=True)


def _counted(totals: dict[str, Any]) -> str:
    """Say ``2 blobs, 1 upload, 3.5 MB``."""
    counts = {kind: total["count"] for kind, total in totals.items() if total["count"]}
    if not counts:
        return "nothing"
    names = {"temporary": "temporary file"}
    parts = [f"{n} {names.get(kind, kind)}{'' if n == 1 else 's'}" for kind, n in counts.items()]
    return ", ".join([*parts, size(sum(total["size_bytes"] for total in totals.values()))])


def _age(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _yes(value: object) -> str:
    return "yes" if value else "no"
