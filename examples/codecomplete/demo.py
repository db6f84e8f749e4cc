"""One model on a device, a larger one in a core: compile, serve, and ask held-out prompts by every route.

Everything goes through the public faces: ``penstock`` commands as processes, and completions over HTTP. Routes take
turns prompt by prompt, so that whatever else the machine does slows each alike.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.certificate.binomial import clopper_pearson
from compiler.measure.gate import paired_drop
from compiler.recipe import recipes
from examples.digits.processes import Daemon, penstock, penstock_json, wait_for
from examples.digits.stage import Claim
from penstock.cli.output import format_table
from penstock.errors import StorageError
from penstock.process.directories import cache_directory
from penstock.rest.connection import ask

from . import drafting, prompts
from .asking import MODEL, Asker, Completion, Meter

HERE = Path(__file__).parent
RECIPE = HERE / "recipe.toml"
# A demonstration has seconds where a fleet has hours; and audits, a share of kept answers that is asked of the cloud
# too, would count as bytes and passes of answers that nobody waits for.
AGENT_CONFIG = """
[cascade]
audit_share = 0.0

[escalation]
text_url = "{url}"

[heartbeat]
interval_s = 0.25
max_s = 0.5

[update]
probation_s = 0.5
"""
_CHUNK_TOKENS = 64  # of a prompt, in one pass; a server's default
_TIES = 0.01  # of answers: where two tokens are as likely, one run over several may choose another than single steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What one way of answering gave; figures are of a request where nothing else is said.

    Drafts are verified in one process with nothing between the two models; their time is the engines' alone.

    Attributes:
        differs: share of answers that are not the cloud's, with its 95% interval.
        right: share of names that stand there in the file.
        loss: by how much fewer are right than of the cloud's, a share with its 95% interval.
        on_device: share of requests that the device answered.
        cloud_passes: runs of the cloud's model: over prompts, and then for each token.
        gap_ms: from one part of an answer to the next, the median; NaN where answers came whole.
        bytes_up: NaN where nothing is sent, since both models are in one process.
    """

    differs: tuple[float, float, float]
    right: float
    loss: tuple[float, float, float]
    on_device: float
    cloud_tokens: float
    cloud_passes: float
    first_ms: tuple[float, float]
    gap_ms: float
    bytes_up: float


def run(directory: Path, *, asked: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all of it, and return the figures.

    Raises:
        DemoError: a step could not be carried out. RuntimeError: an answer failed.
    """
    rows = prompts.held_out()[:asked]
    out = directory / "artifact"
    say("1. Compile: measure both models, choose a score, certify")
    compiled = penstock_json("compile", RECIPE, "-o", out)
    say(f"   {compiled['promise']}")
    runtime = Path(tempfile.mkdtemp(prefix="penstock-"))  # a unix socket's path has to be short
    daemons: list[Daemon] = []
    try:
        say("2. Start a core and an agent")
        core = _start_core(runtime, daemons)
        penstock("artifact", "push", out, "--registry", core["http"])
        meter = Meter(core["http"])
        agent = _start_agent(runtime, core, meter.url, daemons)
        say(f"3. Ask {len(rows)} held-out prompts by each route, in turns")
        said, bytes_up = _ask(rows, agent=agent, meter=meter)
    finally:
        for daemon in reversed(daemons):
            daemon.stop()
        shutil.rmtree(runtime, ignore_errors=True)
    drafted = _drafted(rows)
    said["drafts"] = list(drafted.answers)
    bytes_up["drafts"] = math.nan
    routes = {name: _route(answers, said["cloud only"], rows, bytes_up[name]) for name, answers in said.items()}
    routes["drafts"] = replace(routes["drafts"], cloud_passes=drafted.passes / len(rows))
    say(table(routes))
    say(f"(drafts: {drafted.accepted} of {drafted.drafted} drafted tokens accepted, in one process without a network)")
    claims = _claims(routes, compiled["certificate"]["max_harm"])
    for claim in claims:
        say(f"  {'ok  ' if claim.holds else 'FAIL'} {claim.text}: {claim.evidence}")
    return {
        "promise": compiled["promise"],
        "certificate": compiled["certificate"],
        "asked": len(rows),
        "routes": {name: asdict(route) for name, route in routes.items()},
        "answers": {name: [one.text for one in answers] for name, answers in said.items()},
        "drafts": {name: getattr(drafted, name) for name in ("drafted", "accepted", "passes")},
        "claims": [asdict(claim) for claim in claims],
    }


def finish(
    directory: Path | None, *, asked: int = prompts.ASKED, json_file: Path | None, say: Callable[[str], None]
) -> int:
    """Run all of it, write the figures, and return the exit code: 0 when every claim held.

    Args:
        directory: to work in; None for one below the user's cache.

    Raises:
        StorageError: the directory cannot be made. DemoError: as :func:`run`.
    """
    directory = directory or cache_directory(os.environ) / "codecomplete"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--dir: creating {directory}: {error.strerror}") from error
    began = time.monotonic()
    figures = run(directory, asked=asked, say=say)
    held = all(claim["holds"] for claim in figures["claims"])
    say(f"Verdict: {'every claim held' if held else 'NOT every claim held'} ({time.monotonic() - began:.1f} s)")
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if held else 1


def _claims(routes: Mapping[str, Route], promised: float) -> list[Claim]:
    cascade, cloud, drafts = routes["cascade"], routes["cloud only"], routes["drafts"]
    share, low, high = cascade.differs
    return [
        Claim(
            text="the cascade differs from the cloud no more often than promised",
            holds=low <= promised,  # so few prompts contradict a promise only by their interval
            evidence=f"{share:.1%} measured (95% interval {low:.1%} to {high:.1%}), {promised:.0%} promised",
        ),
        Claim(
            text="answers stay on the device",
            holds=cascade.on_device > 0,
            evidence=f"{cascade.on_device:.0%} of them; {cascade.cloud_tokens:.1f} cloud tokens a request instead of "
            f"{cloud.cloud_tokens:.1f}",
        ),
        Claim(
            text="drafts give the cloud's own answers in fewer passes",
            holds=drafts.differs[0] <= _TIES and drafts.cloud_passes < cloud.cloud_passes,
            evidence=f"{1 - drafts.differs[0]:.0%} are equal, {drafts.cloud_passes:.1f} passes a request instead of "
            f"{cloud.cloud_passes:.1f}",
        ),
    ]


def table(routes: Mapping[str, Route]) -> str:
    """Return the figures as lines for people."""
    header = ["", "differs", "right", "lost, points", "on device", "cloud tokens", "passes", "first p50", "p95 ms",
              "next p50", "bytes up"]  # fmt: skip
    lines = [
        [
            name,
            f"{route.differs[0]:.0%} ({route.differs[1]:.0%} to {route.differs[2]:.0%})",
            f"{route.right:.0%}",
            f"{100 * route.loss[0]:+.1f} ({100 * route.loss[1]:+.1f} to {100 * route.loss[2]:+.1f})",
            f"{route.on_device:.0%}",
            f"{route.cloud_tokens:.1f}",
            f"{route.cloud_passes:.1f}",
            f"{route.first_ms[0]:.1f}",
            f"{route.first_ms[1]:.1f}",
            "whole" if math.isnan(route.gap_ms) else f"{route.gap_ms:.2f}",
            "none sent" if math.isnan(route.bytes_up) else f"{route.bytes_up:.0f}",
        ]
        for name, route in routes.items()
    ]
    return str(format_table(header, lines))


def _start_core(runtime: Path, daemons: list[Daemon]) -> dict[str, str]:
    data = runtime / "core"
    data.mkdir()
    arguments = ["core", "serve", "--data-dir", str(data), "--http-port", "0", "--grpc-port", "0"]
    daemons.append(Daemon(name="core", arguments=arguments, data_dir=data, log=runtime / "core.log"))
    endpoints = daemons[-1].start()
    return {"http": f"http://{endpoints['http']}", "grpc": f"grpc://{endpoints['grpc']}"}


def _start_agent(runtime: Path, core: Mapping[str, str], text_url: str, daemons: list[Daemon]) -> str:
    """Start an agent, bring the model to it, and return its socket's URL."""
    data, config, path = runtime / "laptop", runtime / "laptop.toml", runtime / "a.sock"
    data.mkdir()
    config.write_text(AGENT_CONFIG.format(url=text_url))
    arguments = [
        *("agent", "run", "--config", str(config), "--device-id", "laptop", "--data-dir", str(data)),
        *("--socket", str(path), "--core", core["grpc"], "--registry", core["http"]),
    ]
    daemons.append(Daemon(name="agent", arguments=arguments, data_dir=data, log=runtime / "agent.log"))
    daemons[-1].start()
    wait_for("the agent known", lambda: len(penstock_json("fleet", "devices", "--core", core["grpc"])) == 1)
    penstock("fleet", "apply", f"{MODEL}:v1", "--at-once", "--yes", "--wait", "--core", core["grpc"])

    def is_committed() -> bool:
        models = json.loads(ask(f"unix://{path}", "GET", "/status").body)["models"]
        return any(one["model"] == MODEL and one["phase"] == "COMMITTED" for one in models)

    wait_for(f"the agent serving {MODEL}", is_committed)
    return f"unix://{path}"


def _ask(
    rows: Sequence[Mapping[str, str]], *, agent: str, meter: Meter
) -> tuple[dict[str, list[Completion]], dict[str, float]]:
    """Ask every prompt by every route, in another order each time; return answers and bytes that went up, by route."""
    device, cloud = Asker(agent), Asker(meter.url)
    routes: dict[str, Callable[[str], Completion]] = {
        "edge only": lambda prompt: device.ask(prompt, local_only=True),
        "cloud only": cloud.ask,
        "cascade": device.ask,
    }
    warm = rows[0]["prompt"][:40]
    for route in routes.values():  # opens connections
        route(warm)
    said: dict[str, list[Completion]] = {name: [] for name in routes}
    bytes_up = dict.fromkeys(routes, 0.0)
    names = list(routes)
    for number, row in enumerate(rows):
        for name in names[number % 3 :] + names[: number % 3]:
            before = meter.bytes_up
            said[name].append(routes[name](row["prompt"]))
            bytes_up[name] += meter.bytes_up - before
    for asker in (device, cloud):
        asker.close()
    meter.close()
    return said, bytes_up


def _route(
    answers: Sequence[Completion], cloud: Sequence[Completion], rows: Sequence[Mapping[str, str]], bytes_up: float
) -> Route:
    n = len(answers)
    other = sum(one.text != theirs.text for one, theirs in zip(answers, cloud, strict=True))
    right, theirs = (
        np.array([one.text == row["answer"] for one, row in zip(some, rows, strict=True)]) for some in (answers, cloud)
    )
    lost = paired_drop(theirs, right)
    clouds = [one for one in answers if one.is_clouds]
    passes = sum(math.ceil(one.prompt_tokens / _CHUNK_TOKENS) + one.tokens - 1 for one in clouds)
    first_ms = 1e3 * np.array([one.first_s for one in answers])
    gaps = [gap for one in answers for gap in one.gaps_s if one.gaps_s]
    return Route(
        differs=(other / n, *clopper_pearson(other, n, 0.05)),
        right=float(right.mean()),
        loss=(lost.value, lost.low, lost.high),
        on_device=1 - len(clouds) / n,
        cloud_tokens=sum(one.tokens for one in clouds) / n,
        cloud_passes=passes / n,
        first_ms=(float(np.percentile(first_ms, 50)), float(np.percentile(first_ms, 95))),
        gap_ms=1e3 * float(np.median(gaps)) if gaps else math.nan,
        bytes_up=bytes_up / n,
    )


def _drafted(rows: Sequence[Mapping[str, str]]) -> drafting.Drafted:
    recipe = recipes.load(RECIPE)
    assert recipe.cloud is not None
    return drafting.draft(
        HERE / recipe.rungs[0].section.model,
        HERE / recipe.cloud.model,
        [row["prompt"] for row in rows],
        stop=recipe.generation.stop,
        max_new_tokens=recipe.generation.max_new_tokens,
    )
