"""Steps of the demo in which something is taken away: the cloud, the power, a device of three."""

from __future__ import annotations

from . import train
from .processes import penstock, penstock_json, wait_for
from .stage import AGENTS, Demo, heading, runs, say, start_core
from .traffic import MODEL, stream

_CUTS = 3


def cut_the_cloud(demo: Demo) -> None:
    with heading(5, "Cut the cloud (kill -9 the core), keep asking, bring it back"):
        assert demo.core is not None
        x, y = train.test_split(demo.directory / "models")
        demo.core.kill()
        answers = stream(demo.socket(AGENTS[0]), x[:200])
        demo.sent_rows[AGENTS[0]] += 201
        flagged = answers.reasons.count("cloud_unreachable")
        wait_for("outcome records on disk", lambda: _queued(demo) > 0)
        queued = _queued(demo)
        say(f"  {len(x[:200])} answers, {flagged} flagged cloud_unreachable, {queued} outcome records on disk")
        accuracy = answers.accuracy(y[:200])
        demo.claim("every request is answered without the cloud", flagged > 0, f"{accuracy:.1%} right, none refused")
        start_core(
            demo,
            demo.core.data_dir,
            http_port=demo.core_http.rsplit(":", 1)[1],
            grpc_port=demo.core_grpc.rsplit(":", 1)[1],
        )
        wait_for(
            "outcome records delivered", lambda: _queued(demo) == 0 and _counted(demo) >= demo.sent_rows[AGENTS[0]]
        )
        sent, counted = demo.sent_rows[AGENTS[0]], _counted(demo)
        demo.claim("no outcome was lost", sent == counted, f"{sent:,} rows sent, {counted:,} counted by the core")
        demo.figures["outage"] = {
            "answered": 200,
            "flagged": flagged,
            "queued": queued,
            "sent": sent,
            "counted": counted,
        }


def _queued(demo: Demo) -> int:
    return int(demo.status(AGENTS[0])["outbox"]["records"])


def _counted(demo: Demo) -> int:
    """Count the rows of the first agent that the core knows of."""
    for device in penstock_json("fleet", "devices", "--core", demo.core_grpc):
        if device["device_id"] == AGENTS[0]:
            return sum(int(outcomes["counts"]["requests"]) for outcomes in device["outcomes"])
    return 0


def cut_the_power(demo: Demo) -> None:
    """Cut a device's power again and again; then roll out with that device switched off, and bring it back."""
    with heading(8, f"Cut the power of a device {_CUTS} times, then roll out while it is off"):
        last = AGENTS[-1]
        x, y = train.test_split(demo.directory / "models")
        for _ in range(_CUTS):
            demo.agents[last].kill()
            demo.agents[last].start()
        wait_for(f"{last} serving", lambda: runs(demo, last, "v2"))
        answers = stream(demo.socket(last), x[:100], parameters={"local_only": True})
        demo.claim(
            "a device whose power was cut keeps its version and answers",
            answers.accuracy(y[:100]) > 0.5,
            f"{_CUTS} cuts, v2 still committed, {answers.accuracy(y[:100]):.0%} right",
        )
        demo.agents[last].kill()
        core = ("--core", demo.core_grpc)
        # back to v1, over everything that is there: two devices run it, one is off
        limits = ("--max-unreached", "1", "--max-wave", "4", "--max-silence", "30")
        penstock("fleet", "apply", f"{MODEL}:v1", "--at-once", "--yes", *limits, *core)
        wait_for("the gate", lambda: penstock_json("fleet", "status", *core)["state"] != "RUNNING")
        paused = penstock_json("fleet", "status", *core)
        say(f"  {paused['status']}")
        devices = [device for wave in paused["waves"] for device in wave["devices"]]
        others = [device["device_id"] for device in devices if device["device_id"] != last]
        demo.claim(
            "a gate over three devices holds for the one that is off, and sends nobody back",
            paused["state"] == "PAUSED" and all(runs(demo, name, "v1") for name in others),
            f"{paused['state'].lower()}; on v1: {', '.join(others)}",
        )
        penstock("fleet", "resume", "--accept", last, "--reason", "it is off, and takes it later", *core)
        demo.agents[last].start()
        wait_for(f"{last} on v1", lambda: runs(demo, last, "v1"))
        wait_for("the end of the rollout", lambda: penstock_json("fleet", "status", *core)["state"] == "SUCCEEDED")
        demo.claim("the device takes the version when it is back", True, f"{last} {MODEL}:v1, rollout succeeded")
        demo.figures["power"] = {"cuts": _CUTS, "status_while_off": paused["status"]}
