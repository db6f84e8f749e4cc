"""``penstock core top``, ``slo``, ``drift`` and ``explain``: what a running core tells of its requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from cloud_core.commands.asking import told
from penstock.cli.core_option import core_option
from penstock.cli.output import output_option, print_json, print_result, print_table
from penstock.wording import percent

_TRAFFIC, _SLO, _EXPLAIN = "/v2/_penstock/traffic", "/v2/_penstock/slo", "/v2/_penstock/explain"
_DRIFT = "/v2/_penstock/drift"
_HEAD = ("model", "version", "state", "req/s", "rows/s", "failed", "p50 ms", "p99 ms", "waiting", "running")
_CLEAR = "\x1b[H\x1b[2J"


def _core_options(command: Callable[..., Any]) -> Callable[..., Any]:
    token = click.option(
        "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
    )
    return core_option("http")(token(output_option(command)))


@click.command(
    epilog="""\b
Examples:
  penstock core top
  penstock core top --every 5
  penstock core top --once -o json

Rates are of the time between two looks; times in queue and run are since the core began. Where stdout is no terminal,
a table is printed at each look, and nothing is cleared. Ends with Ctrl-C."""
)
@click.option("--every", "every_s", type=click.FloatRange(0.2, 3600.0), default=2.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Look once, and print what was counted since the core began.")
@_core_options
def top(every_s: float, once: bool, core: str, token: str, output: str) -> None:
    """Watch what a running core answers: requests and rows a second, what fails, what waits."""
    before, looked_at = told(core, _TRAFFIC, token), time.perf_counter()
    if once or output == "json":
        print_result(output, before, lambda: _print_top(before, None, 0.0))
        return
    try:
        while True:
            time.sleep(every_s)
            now, at = told(core, _TRAFFIC, token), time.perf_counter()
            if sys.stdout.isatty():
                click.echo(_CLEAR, nl=False)
            _print_top(now, before, at - looked_at)
            before, looked_at = now, at
    except KeyboardInterrupt:
        return


@click.command(
    epilog="""\b
Examples:
  penstock core slo
  penstock core slo -o json

Exit codes: 0 nothing burns too fast, 3 an allowance does, 4 no core answers. Promises are in the core's settings:
[observing.slo.NAME]."""
)
@_core_options
def slo(core: str, token: str, output: str) -> None:
    """Show how models do by what they promise: what was good, and how fast the rest is used up."""
    found = told(core, _SLO, token)
    print_result(output, found, lambda: _print_slo(found))
    if any(one["alarms"] for one in found["models"]):
        click.get_current_context().exit(3)


@click.command(
    epilog="""\b
Examples:
  penstock core drift
  penstock core drift digits --all
  penstock core drift -o json

Exit codes: 0 nothing has shifted, 3 something has, 4 no core answers. Rows are followed where the core's settings say
observing.drift.is_on = true."""
)
@click.argument("model", default="")
@click.option("--all", "shows_all", is_flag=True, help="Show every column, not only the ten that are furthest off.")
@_core_options
def drift(model: str, shows_all: bool, core: str, token: str, output: str) -> None:
    """Show whether inputs, scores and predictions of MODEL, or of all models, are distributed as they were."""
    found = told(core, _DRIFT, token)
    for name in ("versions", "events"):
        found[name] = [one for one in found[name] if model in ("", one["model"])]
    print_result(output, found, lambda: _print_drift(found, None if shows_all else 10))
    if any(one["shifted"] for one in found["versions"]):
        click.get_current_context().exit(3)


@click.command(
    epilog="""\b
Examples:
  penstock core explain
  penstock core explain digits -o json"""
)
@click.argument("model", default="")
@_core_options
def explain(model: str, core: str, token: str, output: str) -> None:
    """Show why requests for MODEL, or for all models, were refused or failed, and why batches were closed."""
    found = told(core, _EXPLAIN, token)
    for name in ("batches", "refused", "last"):
        if model and found[name] is not None:
            found[name] = [one for one in found[name] if one["model"] == model]
    if output == "json":
        print_json(found)
        return
    _print_refusals(found)
    click.echo()
    _print_batches(found)


def _print_top(now: Mapping[str, Any], before: Mapping[str, Any] | None, took_s: float) -> None:
    refused = ", ".join(f"{code} {count}" for code, count in sorted(now["refused"].items())) or "none"
    click.echo(
        f"ready {'yes' if now['ready'] else 'no'}   in flight {now['inflight']}   "
        f"loop {1e3 * now['loop_lag_s']:.1f} ms late   refused at the door: {refused}"
    )
    was = {} if before is None else {(m["model"], m["version"]): m for m in before["models"]}
    rows = []
    for one in now["models"]:
        old = was.get((one["model"], one["version"]), {"requests": 0, "rows": 0, "failed": 0})
        rates = [
            "-" if before is None else f"{max(0, one[name] - old[name]) / took_s:.1f}" for name in ("requests", "rows")
        ]
        rows.append(
            (
                one["model"],
                one["version"],
                one["state"].lower(),
                *rates,
                str(one["failed"]),
                _ms(one["p50_s"]),
                _ms(one["p99_s"]),
                str(one["waiting_rows"]),
                str(one["running_rows"]),
            )
        )
    if rows:
        print_table(list(_HEAD), rows)
    else:
        click.echo("no models yet; push one with 'penstock artifact push'")


def _print_slo(found: Mapping[str, Any]) -> None:
    if not found["is_on"]:
        click.echo("nothing is promised; promises are in the core's settings, in [observing.slo.NAME]")
        return
    if not found["models"]:
        click.echo("no requests yet for a model that promises something")
        return
    rows = []
    for one in found["models"]:
        promises = one["objectives"]
        for objective, words in (
            ("answered", f"{100 * promises['answered']:g}% answered"),
            ("fast", f"{100 * promises['fast']:g}% within {1e3 * promises['latency_s']:g} ms"),
        ):
            burning = [b for b in one["burning"] if b["objective"] == objective]
            good = [_good(b) for b in burning[-1:]]
            rates = ["-" if b["rate"] is None else f"{b['rate']:.1f}" for b in burning]
            burns = [a for a in one["alarms"] if a["objective"] == objective]
            rows.append((one["model"], words, *good, *rates, "burns too fast" if burns else "-"))
    print_table(["model", "promise", "good, 6 h", "burn 5 min", "30 min", "1 h", "6 h", "alarm"], rows)


def _print_drift(found: Mapping[str, Any], most: int | None) -> None:
    if not found["is_on"]:
        click.echo("rows are not followed; set observing.drift.is_on = true")
        return
    if not found["versions"]:
        click.echo("no rows yet")
        return
    for one in found["versions"]:
        click.echo(f"{one['model']} {one['version']}: {one['rows']} rows, compared with {one['reference']}")
        shifted = set(one["shifted"])
        rows = [
            (f["feature"], f"{f['psi']:.3f}", f"{f['kl']:.3f}", "shifted" if f["feature"] in shifted else "-")
            for f in one["features"][:most]
        ]
        if rows:
            print_table(["feature", "psi", "kl", "verdict"], rows)


def _print_refusals(found: Mapping[str, Any]) -> None:
    if found["refused"] is None:
        click.echo("refusals are not kept: observing.last_refusals is 0")
        return
    if not found["refused"]:
        click.echo("nothing was refused since the core began")
        return
    print_table(["model", "code", "requests"], _cells(found["refused"], ("model", "code", "requests")))
    click.echo("\nthe last ones, newest first:")
    last = [{**one, "at": one["at"][:19]} for one in found["last"]]
    print_table(["at", "model", "tenant", "code", "why"], _cells(last, ("at", "model", "tenant", "code", "why")))


def _print_batches(found: Mapping[str, Any]) -> None:
    if found["batches"] is None:
        click.echo("why batches are closed is not counted; set observing.batch_reasons = true")
        return
    if not found["batches"]:
        click.echo("no batch has run yet")
        return
    rows = [
        (one["model"], str(one["batches"]), f"{one['rows'] / one['batches']:.1f}", one["reason"],
         found["meanings"].get(one["reason"], ""))
        for one in found["batches"]
    ]  # fmt: skip
    print_table(["model", "batches", "rows each", "closed by", "which means"], rows)


def _cells(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(str(one[name]) or "-" for name in names) for one in found]


def _good(one: Mapping[str, Any]) -> str:
    return "-" if not one["of"] else percent(1 - one["bad"] / one["of"])


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f}"
