"""``penstock core models``, ``split``, ``shadow``, ``pin``, ``versions`` and more: what operators say of models."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from cloud_core.commands.asking import asked, told
from penstock.cli.core_option import core_option
from penstock.cli.fleet.options import operator_options
from penstock.cli.output import output_option, print_fields, print_json, print_table

if TYPE_CHECKING:
    from penstock.rpc.fleet import Operator

_PATH = "/v2/_penstock/models"
_LOAD_TIMEOUT_S = 3600.0  # the core's own limit (serving.traffic.load_s) is shorter
_ARM = re.compile(r"(?P<version>[^=]+)=(?P<percent>\d+(?:\.\d+)?)%?")
_CODES = "Exit codes: 0 done, 1 no such model or version, 2 wrong usage, 3 refused, 4 no core answers, or not loaded."


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    token = click.option(
        "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where the core has tenants."
    )
    return core_option("http")(token(output_option(command)))


def _says(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add who and why, and pass on ``say``: it tells the core and prints what the core then says of the model."""

    @functools.wraps(command)
    def call(*, by: Operator, core: str, token: str, output: str, **others: Any) -> None:
        def say(model: str, verb: str, **said: Any) -> None:
            body = msgspec.json.encode({"who": by.who, "reason": by.reason, **said})
            path = f"{_PATH}/{quote(model, safe='')}/{verb}"
            answer = asked(core, "POST", path, token, body=body, timeout_s=_LOAD_TIMEOUT_S)
            _print(msgspec.json.decode(answer.body, type=dict[str, Any]), output)

        command(say=say, **others)

    return operator_options(_options(call))


@click.command(
    epilog="""\b
Examples:
  penstock core models
  penstock core models digits
  penstock core models digits -o json"""
)
@click.argument("model", required=False, default="")
@_options
def models(model: str, core: str, token: str, output: str) -> None:
    """Show which versions of MODEL, or of all models, are served, which is the default, and who gets which."""
    if model:
        _print(told(core, f"{_PATH}/{quote(model, safe='')}", token), output)
        return
    document = told(core, _PATH, token)
    if output == "json":
        print_json(document)
        return
    rows = [row for one in document["models"] for row in _rows(one)]
    if rows:
        print_table(["model", "version", "state", "traffic", "notes"], rows)
    else:
        click.echo("no models yet; push one with 'penstock artifact push' or 'penstock core push'")


@click.command(
    epilog=f"""\b
Examples:
  penstock core split digits v2=10
  penstock core split digits v2=20 v3=20 --sticky tenant --reason 'which student is better'
  penstock core split digits v2 --steps 5,25,50,100 --min-requests 1000 --bake 600
  penstock core split digits v2=5 --sticky header      # callers send x-sticky-key
  penstock core split digits --advance
  penstock core split digits --end

\b
Requests that name a version are never moved. The default version gets what no version is given. Each version has to
keep within the limits, by sequential tests that may be looked at after every request; one that does not loses its
traffic, and everything goes to the default version again. With --steps the only version goes on to the next step
each time that it was shown to be good; at 100 it becomes the default. What is slow is found out from the default
version unless --slow says it.

{_CODES}"""
)
@click.argument("model")
@click.argument("arms", metavar="[VERSION=PERCENT]...", nargs=-1)
@click.option(
    "--sticky", default="", metavar="KEY", help="Keep a caller with one version: tenant, header, parameter:NAME."
)
@click.option("--steps", default="", metavar="P,P,...", help="Percentages that the only version goes through.")
@click.option("--bake", "bake_s", type=float, help="Shortest time of a step, in seconds.  [default: 60]")
@click.option("--min-requests", type=int, help="That a version answers before it may pass.  [default: 500]")
@click.option("--max-errors", "max_error_rate", type=float, help="Tolerated share of failed requests.  [default: 0.01]")
@click.option("--max-slow", "max_slow_rate", type=float, help="Tolerated share of slow requests.  [default: 0.1]")
@click.option("--slow", "slow_s", type=float, help="What is slow, in seconds.")
@click.option(
    "--max-disagreement",
    type=float,
    help="Tolerated share of shadowed rows that are answered otherwise.  [default: 0.1]",
)
@click.option("--alpha", type=float, help="Chance to stop versions that keep within the limits.  [default: 0.05]")
@click.option("--advance", is_flag=True, help="Take the next step now, whatever the tests say.")
@click.option("--end", is_flag=True, help="End the split: everything goes to the default version.")
@_says
def split(
    say: Callable[..., None],
    model: str,
    arms: Sequence[str],
    sticky: str,
    steps: str,
    advance: bool,
    end: bool,
    **gate: float | None,
) -> None:
    """Divide the requests of MODEL that name no version, by weights; watch each version, and go on or back."""
    limits = {name: value for name, value in gate.items() if value is not None}
    if advance or end:
        if advance == end or arms or steps or limits:
            raise click.UsageError("--advance and --end each stand alone")
        say(model, "advance" if advance else "end")
        return
    if not arms:
        raise click.UsageError("which versions? Such as v2=10; 'penstock core models MODEL' shows what there is")
    percents = _numbers(steps)
    if percents and len(arms) == 1 and "=" not in arms[0]:
        arms = (f"{arms[0]}={percents[0]:g}",)
    found = [_ARM.fullmatch(arm) for arm in arms]
    if not all(found):
        raise click.UsageError("each version has its percentage, such as v2=10")
    divided = [{"version": one["version"], "percent": float(one["percent"])} for one in found if one]
    say(model, "split", arms=divided, sticky=sticky, steps=percents, gate=limits)


@click.command(
    epilog=f"""\b
Examples:
  penstock core shadow digits v2
  penstock core shadow digits v2 --share 0.5 --reason 'before the canary'
  penstock core shadow digits --end

\b
Callers have their answers before a copy is made of anything, and notice nothing. Copies are bounded in rows and
bytes (serving.traffic.shadow_max_rows, shadow_max_bytes); what has no room is left out and counted. Rows that a
split's version answers otherwise than the default count against it.

{_CODES}"""
)
@click.argument("model")
@click.argument("version", required=False, default="")
@click.option("--share", type=float, default=0.1, show_default=True, help="Share of the answered requests.")
@click.option("--end", is_flag=True, help="End the shadow: nothing is copied any more.")
@_says
def shadow(say: Callable[..., None], model: str, version: str, share: float, end: bool) -> None:
    """Copy a share of the answered requests of MODEL to VERSION, and count how often it answers the same."""
    if end == bool(version):
        raise click.UsageError("name a version, or --end")
    say(model, "shadow", version=version, share=share)


@click.command(
    epilog=f"""\b
Examples:
  penstock core pin digits v2
  penstock core pin digits v2 --off

{_CODES}"""
)
@click.argument("model")
@click.argument("version")
@click.option("--off", is_flag=True, help="Let it go when room is needed.")
@_says
def pin(say: Callable[..., None], model: str, version: str, off: bool) -> None:
    """Keep VERSION of MODEL in memory, whatever else is asked for. Default versions need no pin."""
    say(model, "pin", version=version, is_pinned=not off)


@click.command(
    epilog=f"""\b
Examples:
  penstock core versions digits latest 2
  penstock core versions digits v1 v3
  penstock core versions digits all
  penstock core versions digits --as-set

\b
The default version, and those that a split, a shadow or a pin names, are served besides. The settings say what
holds for models of which nothing is said (serving.traffic.versions).

{_CODES}"""
)
@click.argument("model")
@click.argument("policy", metavar="all|latest N|VERSION...", nargs=-1)
@click.option("--as-set", is_flag=True, help="Go back to what the core's settings say.")
@_says
def versions(say: Callable[..., None], model: str, policy: Sequence[str], as_set: bool) -> None:
    """Say which versions of MODEL are served."""
    if as_set == bool(policy):
        raise click.UsageError("say all, latest N or which versions; or --as-set")
    say(model, "versions", versions=" ".join(policy))


@click.command(
    epilog=f"""\b
Examples:
  penstock core load digits v2
  penstock core load digits

{_CODES}"""
)
@click.argument("model")
@click.argument("version", required=False, default="")
@_says
def load(say: Callable[..., None], model: str, version: str) -> None:
    """Load VERSION of MODEL, or whatever of it was unloaded, and wait until it answers."""
    say(model, "load", version=version)


@click.command(
    epilog=f"""\b
Examples:
  penstock core unload digits v1
  penstock core unload digits --reason 'no longer sold'

{_CODES}"""
)
@click.argument("model")
@click.argument("version", required=False, default="")
@_says
def unload(say: Callable[..., None], model: str, version: str) -> None:
    """Take VERSION of MODEL, or all its versions, out of memory; they stay out until somebody loads them.

    What was admitted is answered first. The registry keeps them.
    """
    say(model, "unload", version=version)


def _numbers(text: str) -> list[float]:
    try:
        return [float(one) for one in text.replace("%", "").split(",") if one]
    except ValueError:
        raise click.UsageError(f"--steps: {text!r} is no list of percentages such as 5,25,50,100") from None


def _print(document: Mapping[str, Any], output: str) -> None:
    if output == "json":
        print_json(document)
        return
    print_fields({"model": document["model"], "default": document["default"], "served": document["versions"]})
    click.echo()
    print_table(["version", "state", "traffic", "notes"], [row[1:] for row in _rows(document)])
    split_ = document["split"]
    if split_:
        click.echo()
        steps = ", ".join(f"{one:g}%" for one in split_["steps"]) or "none"
        fields = {"split by": split_["sticky"] or "chance", "steps": steps}
        for name, verdict in document["verdicts"].items():
            fields[f"{name} ({verdict['verdict']})"] = verdict["reason"]
        print_fields(fields)
    shadow_ = document["shadow"]
    if shadow_:
        click.echo(f"\n{shadow_['share']:.0%} of the answered requests are copied to {shadow_['name']}")
        rows = [(arm, *counts["shadow"].values()) for arm, counts in document["arms"].items() if "shadow" in counts]
        if rows:
            print_table(["arm", "agreed", "disagreed", "failed", "left out"], rows)
    if document["notes"]:
        click.echo()
        print_table(["when", "who", "what", "why"], [_note(one) for one in document["notes"][-10:]])


def _rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Write a line for each version."""
    found: list[tuple[str, ...]] = []
    for state in document["states"]:
        name = state["version"]
        percent = state.get("percent")
        facts = [
            "default" if state.get("is_default") else "",
            "pinned" if name in document["pins"] else "",
            "shadow" if (document["shadow"] or {}).get("name") == name else "",
            "not certified" if state.get("is_certified") is False else "",
            state["reason"],
        ]
        traffic = "-" if percent is None else f"{percent:g}%"
        if percent is None and state.get("is_default"):
            traffic = "100%"
        found.append((document["model"], name, state["state"], traffic, "; ".join(filter(None, facts)) or "-"))
    return found


def _note(note: Mapping[str, Any]) -> tuple[str, str, str, str]:
    when = datetime.fromtimestamp(note["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    return when, note["who"], note["text"], note["reason"] or "-"
