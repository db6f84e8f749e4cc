"""Options of a plan on the command line, and the requests that they make. Asks nothing of a core."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from penstock.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.rpc.fleet import Operator
    from penstock.rpc.pb import fleet_pb2


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add options of a plan: which devices, in which order, and what a wave must show. What is left out takes the
    core's default.
    """
    for option in (
        click.option(
            "--at-once", is_flag=True, help="One wave, no bake, no audited rows: for a first version or a test bench."
        ),
        click.option("--max-wave", type=float, metavar="S", help="Pause when a wave takes longer."),
        click.option(
            "--max-silence", type=float, metavar="S", help="A device that was told and is silent for longer failed."
        ),
        click.option(
            "--max-unreached-rate", type=float, metavar="SHARE", help="Devices that a wave may pass without, if off."
        ),
        click.option(
            "--max-unreached", type=float, metavar="S", help="How long a wave waits for devices that are off."
        ),
        click.option(
            "--stop-when-all-revert/--no-stop-when-all-revert",
            default=None,
            help="Stop, or hold, when every device of a wave went back by itself, as a canary of one may.",
        ),
        click.option("--max-failure-rate", type=float, metavar="SHARE", help="Failed updates tolerated."),
        click.option("--alpha", type=float, help="Chance that a good version is stopped by its tests."),
        click.option("--power", type=float, metavar="CHANCE", help="... with this chance."),
        click.option(
            "--detectable-ratio", type=float, metavar="TIMES", help="Audited rows have to see so much more harm ..."
        ),
        click.option(
            "--min-audited",
            type=click.IntRange(min=0),
            metavar="ROWS",
            help="Audited rows a wave needs to pass; as many as the two below ask for, when left out.",
        ),
        click.option("--bake", type=float, metavar="S", help="Shortest time a wave runs."),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Order of the devices."),
        click.option(
            "--wave", "waves", type=float, multiple=True, metavar="SHARE", help="Cumulative share; repeat, end with 1."
        ),
        click.option("--device", "devices", multiple=True, metavar="ID", help="Only this device; repeat for more."),
        click.option("--selector", multiple=True, metavar="LABEL=VALUE", help="Only devices with this label; repeat."),
    ):
        function = option(function)
    return function


def plan_request(reference: str, options: dict[str, Any], by: Operator) -> fleet_pb2.PlanRolloutRequest:
    """Build the request to plan a rollout of ``model:version``.

    Raises:
        InvalidInput: it is not that, or not a device id.
    """
    from penstock.artifact.manifests import check_model_name
    from penstock.artifact.references import split_reference
    from penstock.rpc.pb import fleet_pb2

    model, version = split_reference(reference)
    check_model_name(model)  # a namespace is of registries; a fleet knows models
    if not version:
        raise InvalidInput(f"{reference}: name the version to roll out, as in {model}:v2", field="reference")
    return fleet_pb2.PlanRolloutRequest(model=model, version=version, who=by.who, reason=by.reason, **_how(options))


def removal_request(model: str, options: dict[str, Any], by: Operator) -> fleet_pb2.PlanRolloutRequest:
    """Build the request to plan the removal of a model.

    Raises:
        InvalidInput: not the name of a model alone.
    """
    from penstock.artifact.manifests import check_model_name
    from penstock.rpc.pb import fleet_pb2

    if ":" in model or "@" in model:
        raise InvalidInput(f"{model}: name the model alone; a removal is of all its versions", field="model")
    return fleet_pb2.PlanRolloutRequest(
        model=check_model_name(model), is_removal=True, who=by.who, reason=by.reason, **_how(options)
    )


def _how(options: dict[str, Any]) -> dict[str, Any]:
    """Return which devices, in which order, and what a wave must show."""
    from penstock.rpc.pb import fleet_pb2
    from penstock.wire.device_ids import check_device_id

    if options["at_once"]:
        given = [name for name in ("waves", "bake", "min_audited") if options[name] not in (None, ())]
        if given:
            flag = "--" + {"waves": "wave"}.get(given[0], given[0]).replace("_", "-")
            raise click.UsageError(f"--at-once means one wave that passes when its devices run it; drop it, or {flag}")
        options = {**options, "waves": (1.0,), "bake": 0.0, "min_audited": 0}
    return {
        "selector": labels(options["selector"]),
        "device_ids": [check_device_id(name) for name in options["devices"]],
        "waves": options["waves"],
        "seed": options["seed"],
        "gate": fleet_pb2.GateSettings(
            alpha=options["alpha"],
            max_failure_rate=options["max_failure_rate"],
            min_audited=options["min_audited"],
            bake_s=options["bake"],
            max_silence_s=options["max_silence"],
            max_wave_s=options["max_wave"],
            max_unreached_s=options["max_unreached"],
            max_unreached_rate=options["max_unreached_rate"],
            detectable_ratio=options["detectable_ratio"],
            power=options["power"],
            stops_when_all_revert=options["stop_when_all_revert"],
        ),
    }


def labels(selector: tuple[str, ...]) -> dict[str, str]:
    """Read ``LABEL=VALUE`` selectors.

    Raises:
        InvalidInput: it is not that.
    """
    found = {}
    for text in selector:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidInput(f"selector: {text!r} is not LABEL=VALUE", field="selector")
        found[name] = value
    return found
