"""``penstock agent run``, ``status``, ``unblock``, ``doctor``. Parses and prints; imports the agent only to run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from edge_agent import settings as agent_settings
from penstock.cli.output import format_table, output_option, print_fields, print_result, wrapped
from penstock.cli.patience import patiently, wait_option
from penstock.errors import PenstockError, Unavailable
from penstock.process.telemetry import setup_service_logging
from penstock.rest.connection import ask
from penstock.rest.status import error_from_http
from penstock.wire.outcomes import HEADINGS, OUTCOMES

_COUNTS = ("requests", *OUTCOMES)
_COLUMNS = ("model", "version", "phase", "mode", "threshold")


@click.group(
    epilog="""\b
Examples:
  penstock agent run
  penstock agent run --core grpc://core:8001 --registry http://core:8000 --label site=berlin
  penstock agent status
  penstock agent status -o json
  penstock agent doctor"""
)
def command() -> None:
    """Run the daemon on a device, or ask it how it is."""


@command.command(
    epilog="""\b
Examples:
  penstock agent run
  penstock agent run --config agent.toml --tcp 127.0.0.1:8080
  PENSTOCK_AGENT_CASCADE__AUDIT_SHARE=0.02 penstock agent run

Settings: file, then PENSTOCK_AGENT_* (sections with __), then flags; later ones win."""
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file (TOML).")
@click.option("--data-dir", help="Where models, state and outbox are kept.")
@click.option("--socket", help="Unix socket to serve on.")
@click.option("--tcp", help="Serve HTTP on HOST:PORT too (no authentication; port 0 takes a free one).")
@click.option("--core", help="Where the core speaks gRPC, grpc://HOST:PORT; over TLS grpcs://HOST.")
@click.option("--registry", help="OCI registry to pull artifacts from, http://HOST:PORT or https://HOST.")
@click.option("--device-id", help="Name of this device; generated once when not given.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="What operators select by; repeatable.")
@click.option("--log-level", help="debug, info, warning or error.")
@click.option("--log-format", help="text or json.")
def run(
    config: Path | None, labels: Sequence[str], log_level: str | None, log_format: str | None, **flags: str | None
) -> None:
    """Run the agent until SIGTERM: serve local models, escalate what is unsure, update itself."""
    given: dict[str, Any] = {**flags, "log.level": log_level, "log.format": log_format}
    if labels:
        given["labels"] = _labels(labels)
    settings = agent_settings.load(file=config, flags=given)
    setup_service_logging(settings.log)
    from edge_agent.agent import serve

    serve(settings)


@command.command(
    epilog="""\b
Examples:
  penstock agent status
  penstock agent status --wait
  penstock agent status --socket /run/penstock/agent.sock -o json"""
)
@click.option("--socket", "path", help="The agent's unix socket; the default agent's when not given.")
@wait_option("it answers and has reached its core")
@output_option
def status(path: str | None, waits: bool, output: str) -> None:
    """Ask a running agent how it is."""
    socket = Path(path or agent_settings.load().socket)
    document = patiently(lambda: fetch_status(socket), lambda found: bool(found["cloud"]["is_reachable"]), waits=waits)
    print_result(output, document, lambda: _print(document))


@command.command(
    epilog="""\b
Examples:
  penstock agent unblock digits
  penstock agent unblock digits --socket /run/penstock/agent.sock -o json"""
)
@click.argument("model")
@click.option("--socket", "path", help="The agent's unix socket; the default agent's when not given.")
@output_option
def unblock(model: str, path: str | None, output: str) -> None:
    """Let a running agent try again, now, what failed for MODEL."""
    socket = Path(path or agent_settings.load().socket)
    _ask(socket, "POST", f"/models/{quote(model, safe='')}/unblock")
    document = {"model": model, "unblocked": True}
    print_result(output, document, lambda: click.echo(f"{model}: what failed is tried again"))


@command.command(
    epilog="""\b
Examples:
  penstock agent doctor
  sudo -u penstock penstock agent doctor --config /etc/penstock/agent.toml
  penstock agent doctor -o json

Changes nothing, and may run beside the agent. Exit codes: 0 nothing failed (warnings may be left), 1 something failed,
2 wrong settings."""
)
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="Settings file (TOML) of the agent.")
@click.option("--data-dir", help="The agent's data directory.")
@click.option("--socket", help="The agent's unix socket.")
@output_option
def doctor(config: Path | None, output: str, **flags: str | None) -> None:
    """Check what an agent needs: settings, data directory, disk, core, registry, TLS, clock, trust, models."""
    from edge_agent.doctor import examine

    findings = examine(agent_settings.load(file=config, flags=flags), os.environ)
    rows = [(one.check, one.state, one.found) for one in findings]
    print_result(output, {"findings": findings}, lambda: click.echo(format_table(("check", "state", "found"), rows)))
    if any(one.state == "failed" for one in findings):
        click.get_current_context().exit(1)


def fetch_status(path: Path) -> dict[str, Any]:
    """Ask ``GET /status`` over a unix socket.

    Raises:
        Unavailable: no agent answers there.
    """
    body = _ask(path, "GET", "/status")
    try:
        document: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise PenstockError(f"{path} answers, but not as an agent: {error}") from error
    return document


def _ask(socket: Path, method: str, path: str) -> bytes:
    try:
        answer = ask(f"unix://{socket}", method, path)
    except Unavailable as error:
        raise Unavailable(f"no agent answers on {socket}: {error}; start one with 'penstock agent run'") from error
    if answer.status != 200:
        raise error_from_http(answer.status, answer.headers, answer.body)
    return answer.body


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"--label {pair!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def _print(document: dict[str, Any]) -> None:
    cloud, outbox, escalation = document["cloud"], document["outbox"], document["escalation"]
    reach = "reachable" if cloud["is_reachable"] else f"out of reach ({cloud['error'] or 'not asked yet'})"
    labels = " ".join(f"{key}={value}" for key, value in sorted(document["labels"].items()))
    print_fields(
        {
            "device": document["device_id"] + (f" ({labels})" if labels else ""),
            "target": document["target"],
            "socket": document["socket"],
            "tcp": document["tcp"] or "off",
            "cloud": f"{cloud['core']} {reach}",
            "escalated": f"{escalation['sent_rows']} rows, {escalation['sent_bytes']} bytes sent up",
            "outbox": f"{outbox['records']} records waiting, {outbox['dropped']} dropped{_lost(outbox)}",
        }
    )
    click.echo()
    if not document["models"]:
        click.echo(f"no models: {document.get('why_no_models') or 'none was assigned'}")
        return
    click.echo(format_table(_COLUMNS, [_row(model) for model in document["models"]]))
    for model in document["models"]:
        for line in _notes(model):
            click.echo(wrapped(f"{model['model']}: {line}", indent="  "))


def _lost(outbox: dict[str, Any]) -> str:
    """Say what may be missing after power cuts and kills; nothing of an agent that does not tell."""
    ends = outbox.get("unclean_ends", 0)
    return f"; {ends} unclean ends, at most {outbox['max_lost_s']:g} s of counts lost" if ends else ""


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    threshold = model["threshold"]
    return (
        model["model"],
        model["version"] or "-",
        model["phase"].lower(),
        model["mode"].lower() or "-",
        "-" if threshold is None else f"{threshold:.4f}",
    )


def _notes(model: dict[str, Any]) -> list[str]:
    """Say what does not fit into a table: counts, promise, where an update stands, and what is wrong."""
    counts = ", ".join(f"{model['counts'].get(name, '-')} {HEADINGS[name]}" for name in _COUNTS)
    notes = [counts, *([model["promise"]] if model["promise"] else [])]
    if model["desired"] and model["desired"] != model["version"]:
        progress = f", {model['fetched_bytes']} of {model['total_bytes']} bytes" if model["total_bytes"] else ""
        notes.append(f"wanted: {model['desired']} ({model['phase'].lower()}{progress})")
    if model.get("retry_in_s") is not None:
        notes.append(f"tried again in {model['retry_in_s']:.0f} s")
    wrong = dict.fromkeys((model["mode_why"], model["error"], model.get("damaged", ""), model.get("unwatched", "")))
    return notes + [text for text in wrong if text]
