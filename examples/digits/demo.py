"""The whole path on real data, in one command: compile -> core -> agents -> certified cascade -> rollout -> verdict.

Everything here goes through the public faces: ``penstock`` commands as subprocesses, the SDK, and what agents answer to
``GET /status``. Each step adds claims; the demo exits non-zero if one of them does not hold.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.certificate.binomial import clopper_pearson
from penstock.cli.output import format_table
from penstock.errors import StorageError
from penstock.process.directories import cache_directory

from . import data, train
from .outages import cut_the_cloud, cut_the_power
from .processes import DemoError, penstock, penstock_json, wait_for
from .stage import AGENTS, Demo, heading, runs, say, start_agent, start_core
from .traffic import MODEL, Answers, Background, stream

WAVES = ("--wave", "0.3", "--wave", "1.0", "--bake", "1", "--min-audited", "60", "--max-wave", "40")


def run(*, json_file: Path | None = None, keep: bool = False, directory: Path | None = None, seed: int = 0) -> int:
    """Run all steps; returns the exit code: 0 when every claim held."""
    data.load(seed)  # what is not installed is said before anything begins
    directory = directory or cache_directory(os.environ) / "demo"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--dir: creating {directory}: {error.strerror}") from error
    # unix socket paths are limited to about 100 characters, so sockets and state live in a short place of their own
    demo = Demo(directory=directory, runtime=Path(tempfile.mkdtemp(prefix="penstock-")), seed=seed)
    finished = False
    try:
        for step in (_train, _compile, _start, _measure, cut_the_cloud, _roll_out_better, _roll_out_bad, cut_the_power):
            step(demo)
        finished = True
    except DemoError as error:
        demo.claim("the demo ran to its end", False, str(error))
    except KeyboardInterrupt:
        demo.claim("the demo ran to its end", False, "interrupted")
    finally:
        if not (keep and finished):
            _stop(demo)
    code = _verdict(demo, json_file)
    if keep and finished:
        _what_next(demo)
    return code


# --- the steps ---------------------------------------------------------------------------------------------------


def _train(demo: Demo) -> None:
    with heading(1, "Train a teacher for the cloud and students for the device on 1,797 real handwritten digits"):
        trained = train.train(demo.directory / "models", seed=demo.seed)
        for name, accuracy in trained.accuracy.items():
            say(f"  {name:<12} {accuracy:6.1%} on held-out digits")
        demo.figures["training"] = dict(trained.accuracy)


def _compile(demo: Demo) -> None:
    with heading(2, "Compile: quantize, calibrate, certify, pack"):
        result = _compile_version(demo, "v1")
        say(f"  promise: {result['promise']}")
        say(f"  report:  {demo.directory / 'v1' / 'report.html'}")
        demo.figures["compile"] = {"v1": result}


def _compile_version(demo: Demo, version: str) -> dict[str, Any]:
    recipe = demo.directory / "models" / f"{version}.toml"
    result: dict[str, Any] = penstock_json("compile", recipe, "-o", demo.directory / version)
    return result


def _start(demo: Demo) -> None:
    with heading(3, "Start a core and three agents; they pull what they should run"):
        core_dir = demo.runtime / "core"
        start_core(demo, core_dir, http_port="0", grpc_port="0")
        penstock("artifact", "push", demo.directory / "v1", "--registry", demo.core_http)
        for name in AGENTS:
            start_agent(demo, name)
        wait_for(
            "agents known", lambda: len(penstock_json("fleet", "devices", "--core", demo.core_grpc)) == len(AGENTS)
        )
        penstock("fleet", "apply", f"{MODEL}:v1", "--at-once", "--yes", "--wait", "--core", demo.core_grpc)
        for name in AGENTS:
            wait_for(f"{name} serving {MODEL}", lambda name=name: runs(demo, name, "v1"))  # type: ignore[misc]
        say(f"  core   {demo.core_http}  {demo.core_grpc}")
        for name in AGENTS:
            say(f"  agent  {demo.socket(name)}  {MODEL}:v1, every digest verified, golden inputs replayed")


def _measure(demo: Demo) -> None:
    with heading(4, "Stream the held-out test digits: edge only, cloud only, cascade"):
        x, y = train.test_split(demo.directory / "models")
        agent = demo.socket(AGENTS[0])
        edge = stream(agent, x, parameters={"local_only": True})
        cloud = stream(demo.core_grpc, x)
        before = demo.status(AGENTS[0])
        cascade = stream(agent, x)
        after = demo.status(AGENTS[0])
        demo.sent_rows[AGENTS[0]] = 2 * (len(x) + 1)
        request_bytes = train.request_bytes(x[:1])
        sent_up = _escalated_bytes(after) - _escalated_bytes(before)
        rows = [
            _row("edge only", edge, y, 1.0, 0),
            _row("cloud only", cloud, y, 0.0, request_bytes * len(x)),
            _row("cascade", cascade, y, float(np.mean(cascade.kept())), sent_up),
        ]
        say(format_table(["", "accuracy", "on device", "p50 ms", "p99 ms", "bytes up"], rows))
        say("  (one row a request; bytes up of the cascade include the audit, here a quarter of all rows)")
        _check_harm(demo, edge, cloud, cascade, y)
        demo.figures["cascade"] = {
            row[0]: dict(zip(("accuracy", "on_device", "p50_ms", "p99_ms", "bytes_up"), row[1:], strict=True))
            for row in rows
        }


def _row(name: str, answers: Answers, y: NDArray[np.int64], share: float, sent_up: int) -> list[str]:
    return [
        name,
        f"{answers.accuracy(y):.1%}",
        f"{share:.1%}",
        f"{answers.percentile_ms(50):.2f}",
        f"{answers.percentile_ms(99):.2f}",
        f"{sent_up:,}",
    ]


def _check_harm(demo: Demo, edge: Answers, cloud: Answers, cascade: Answers, y: NDArray[np.int64]) -> None:
    promised = demo.figures["compile"]["v1"]["certificate"]["max_harm"]
    harm = float(np.mean(cascade.kept() & (edge.predictions != y) & (cloud.predictions == y)))
    drop = cloud.accuracy(y) - cascade.accuracy(y)
    demo.figures["harm"] = {"promised": promised, "measured": harm, "accuracy_drop": drop}
    say()
    low, high = clopper_pearson(round(harm * len(y)), len(y), 0.05)
    evidence = f"{harm:.2%} measured (95% interval {low:.2%} to {high:.2%}), {promised:.0%} promised"
    # 447 digits measure a harm of one point give or take half a point: the interval is what can contradict the promise
    demo.claim("measured harm does not exceed the promise", low <= promised, evidence)
    demo.claim(
        "the cascade beats the device alone",
        cascade.accuracy(y) > edge.accuracy(y),
        f"{cascade.accuracy(y):.1%} against {edge.accuracy(y):.1%}",
    )
    kept = float(np.mean(cascade.kept()))
    demo.claim("most answers never leave the device", kept >= 0.5, f"{kept:.1%} answered on the device")


def _escalated_bytes(status: dict[str, Any]) -> int:
    return int(status["escalation"]["sent_bytes"])


def _roll_out_better(demo: Demo) -> None:
    with heading(6, "Roll out v2, a better student, in waves"):
        rollout, traffic = _roll_out(demo, "v2")
        demo.figures["rollout_v2"] = rollout
        on_v2 = [name for name in AGENTS if runs(demo, name, "v2")]
        demo.claim("v2 reached every device", len(on_v2) == len(AGENTS), f"{rollout['status']}")
        _claim_no_failures(demo, traffic, "the update")


def _roll_out_bad(demo: Demo) -> None:
    with heading(7, "Roll out v3: fine on paper, but its training digits were inverted"):
        rollout, traffic = _roll_out(demo, "v3")
        demo.figures["rollout_v3"] = rollout
        released = [wave["is_released"] for wave in rollout["waves"]]
        demo.claim("the gate stopped v3", rollout["state"] == "STOPPED_BY_GATE", rollout["status"])
        demo.claim(
            "only the first wave ever ran it", released == [True, False], f"waves released: {sum(released)} of 2"
        )
        wait_for("devices back on v2", lambda: all(runs(demo, name, "v2") for name in AGENTS))
        demo.claim("every device is back on v2", True, ", ".join(f"{n} {MODEL}:v2" for n in AGENTS))
        _claim_no_failures(demo, traffic, "the stop")


def _roll_out(demo: Demo, version: str) -> tuple[dict[str, Any], Background]:
    result = _compile_version(demo, version)
    demo.figures["compile"][version] = result
    say(f"  on paper: student {result['accuracy']['edge']:.1%}, harm at most {result['certificate']['max_harm']:.0%}")
    penstock("artifact", "push", demo.directory / version, "--registry", demo.core_http)
    x, _ = train.test_split(demo.directory / "models")
    targets = tuple(demo.socket(name) for name in AGENTS)
    core = ("--core", demo.core_grpc)
    with Background(targets, x, demo.seed) as traffic:
        plan = penstock_json("fleet", "plan", f"{MODEL}:{version}", *WAVES, "--seed", str(demo.seed), *core)
        penstock("fleet", "apply", plan["rollout_id"], "--yes", *core)
        shown = ""
        while True:
            rollout: dict[str, Any] = penstock_json("fleet", "status", plan["rollout_id"], *core)
            if rollout["status"] != shown:
                shown = rollout["status"]
                say(f"  {time.monotonic() - demo.began:5.1f} s  {shown}")
            if rollout["state"] not in ("PLANNED", "RUNNING"):
                return rollout, traffic
            time.sleep(0.2)


def _claim_no_failures(demo: Demo, traffic: Background, during: str) -> None:
    failures = [failure for per_agent in traffic.failures.values() for failure in per_agent]
    rows = sum(traffic.rows.values())
    evidence = f"{rows:,} rows answered, {len(failures)} refused" + (f" ({failures[0]})" if failures else "")
    demo.claim(f"no caller noticed {during}", not failures, evidence)


# --- the end -----------------------------------------------------------------------------------------------------


def _verdict(demo: Demo, json_file: Path | None) -> int:
    held = all(claim.holds for claim in demo.claims)
    say(f"\nVerdict: {'every claim held' if held else 'NOT every claim held'} ({time.monotonic() - demo.began:.1f} s)")
    for claim in demo.claims:
        say(f"  {'ok  ' if claim.holds else 'FAIL'} {claim.text}")
    demo.figures["claims"] = [asdict(claim) for claim in demo.claims]
    demo.figures["seconds"] = round(time.monotonic() - demo.began, 1)
    if json_file is not None:
        json_file.write_text(json.dumps(demo.figures, indent=2, default=str) + "\n")
        say(f"figures: {json_file}")
    return 0 if held else 1


def _stop(demo: Demo) -> None:
    for daemon in (*demo.agents.values(), demo.core):
        if daemon is not None:
            daemon.stop()
    shutil.rmtree(demo.runtime, ignore_errors=True)


def _what_next(demo: Demo) -> None:
    agent = f"{demo.runtime}/{AGENTS[0]}.sock"
    row = json.dumps(train.test_split(demo.directory / "models")[0][0].tolist()).replace(" ", "")
    body = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,64],"data":' + row + "}]}"
    pids = " ".join(str(d.process.pid) for d in (*demo.agents.values(), demo.core) if d and d.process)
    say(f"""
Everything is still running. Try:
  curl -s --unix-socket {agent} http://agent/v2/models/{MODEL}/infer -d '{body}'
  curl -s {demo.core_http}/v2/models/{MODEL}
  curl -s {demo.core_http}/metrics
  penstock agent status --socket {agent}
  penstock fleet devices --core {demo.core_grpc}
  penstock fleet status --core {demo.core_grpc}
  penstock artifact inspect {demo.directory / "v2"}
Stop it with:
  kill {pids} && rm -rf {demo.runtime}""")


if __name__ == "__main__":
    sys.exit(run())
