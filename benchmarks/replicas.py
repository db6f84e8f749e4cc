"""``python -m benchmarks.replicas``: what it costs to run a model in a process of its own, and what it gives back.

The core's own replicas and queues, without HTTP before them: each model in this process (on the event loop or in
threads) and in worker processes, in turns. One caller tells what the way to a process costs; many callers tell what it
serves. ``--cycles`` loads and unloads a model so often and prints what this process then holds. Asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from benchmarks import models
from benchmarks.models import Model
from cloud_core.serving.replicas import Replicas
from cloud_core.serving.router import Served
from cloud_core.settings import ServingSettings
from penstock.artifact.layout import Layout
from penstock.artifact.variant_files import VariantFiles
from penstock.hosting.replica import Chunk
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.policy.replica_places import Placement
from penstock.process.machine import resident_bytes

PLACEMENTS: tuple[Placement, ...] = ("inline", "process")
MANY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one model in one place, in one round."""

    p50_ms: float
    p99_ms: float
    rows_per_s: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="in each of which every place has its turn (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default 2)")
    parser.add_argument("--cycles", type=int, default=0, help="of loading and unloading (default 0: left out)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        made = [
            models.digits(Path(scratch) / "digits"),
            models.peak(Path(scratch) / "peak"),
            models.resnet18(Path(scratch) / "small", size=112),
            models.resnet18(Path(scratch) / "resnet18"),
        ]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for model in made:
                runner.run(_compare(model, options.rounds, options.seconds))
            if options.cycles:
                runner.run(_cycles(made[-1], options.cycles))
    return 0


async def _compare(model: Model, rounds: int, seconds: float) -> None:
    places = {placement: await _loaded(model, placement) for placement in PLACEMENTS}
    found: dict[Placement, list[Figures]] = {placement: [] for placement in PLACEMENTS}
    for _ in range(rounds):
        for placement, served in places.items():
            alone, _ = await _asked(served, model, callers=1, seconds=seconds)
            _, rows_per_s = await _asked(served, model, callers=MANY, seconds=seconds)
            found[placement].append(
                Figures(
                    p50_ms=1e3 * alone[len(alone) // 2],
                    p99_ms=1e3 * alone[99 * len(alone) // 100],
                    rows_per_s=rows_per_s,
                )
            )
    for served in places.values():
        await served.close(10.0)
    _print(model, places, found)


async def _loaded(model: Model, placement: Placement) -> Served:
    # the MLP runs on the event loop, and all others in threads, also the one that is quick enough for the loop
    settings = ServingSettings(placement=placement, inline_below_s=0.0 if model.in_thread else 0.0003)
    layout = Layout(model.layout)
    variant = layout.artifact().variant("cloud")
    assert variant.golden is not None, "models of benchmarks have golden vectors"
    files = VariantFiles(weights=model.path, golden=layout.blobs.read(variant.golden.digest))
    with ThreadPoolExecutor(1) as loader:
        made = await Replicas(settings, lambda _: files, loader).load(variant)
    queues = tuple(ReplicaQueue(replica, max_queue_rows=settings.max_queue_rows) for replica in made.replicas)
    return Served(variant, queues, inputs=made.inputs, outputs=made.outputs, now=0.0)


async def _asked(served: Served, model: Model, *, callers: int, seconds: float) -> tuple[list[float], float]:
    """Ask for a row at a time, for so long; return how long answers took, in order, and how many came in a second."""
    took: list[float] = []
    began_at = time.perf_counter()
    until = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < until:
            answer = await served.pick().infer(Chunk(inputs={"x": model.row}, rows=1))
            took.append(time.perf_counter() - began)
            logits = np.asarray(answer["logits"], np.float32)
        assert np.allclose(logits, model.logits, atol=1e-2)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return sorted(took), len(took) / (time.perf_counter() - began_at)


async def _cycles(model: Model, cycles: int) -> None:
    held = []
    for _ in range(cycles):
        served = await _loaded(model, "process")
        await served.pick().infer(Chunk(inputs={"x": model.row}, rows=1))
        await served.close(10.0)
        del served
        gc.collect()
        held.append(resident_bytes())
    settled = held[min(4, cycles - 1)]
    settled_mb, last_mb = settled / 1e6, held[-1] / 1e6
    print(f"{cycles} times loaded and unloaded: {settled_mb:.1f} MB here after 5, {last_mb:.1f} MB at the end")


def _print(model: Model, places: Mapping[Placement, Served], found: Mapping[Placement, Sequence[Figures]]) -> None:
    print(f"{model.name} {list(model.row.shape[1:])}")
    for placement, figures in found.items():
        values = {
            "p50": median(one.p50_ms for one in figures),
            "p99": median(one.p99_ms for one in figures),
            "rows": median(one.rows_per_s for one in figures),
        }
        replicas = len(places[placement].queues)
        print(
            f"  {placement:8} {replicas} replicas: 1 caller p50 {values['p50']:.3f} ms, p99 {values['p99']:.3f} ms; "
            f"{MANY} callers {values['rows']:.0f} rows/s"
        )
    pairs = list(zip(found["inline"], found["process"], strict=True))
    added = [process.p50_ms - inline.p50_ms for inline, process in pairs]
    times = [process.rows_per_s / inline.rows_per_s for inline, process in pairs]
    print(
        f"  a process adds {median(added):+.3f} ms at one caller ({min(added):+.3f} to {max(added):+.3f}), and serves "
        f"{median(times):.2f} times the rows of {MANY} ({min(times):.2f} to {max(times):.2f})"
    )


if __name__ == "__main__":
    raise SystemExit(main())
