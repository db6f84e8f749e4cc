"""What models cost on this machine: the latency of a call, and the memory of a process of their own.

Nothing here is the same on two runs, so nothing here decides alone: see ``compiler.measure.gate`` for what is noise.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Interval, Speed
from penstock.errors import Internal
from penstock.runtime import Engine
from penstock.wire import tensors
from penstock.wire.tensors import Array

Floats = NDArray[np.float64]

LATENCY_BATCHES = (1, 32)
_LATENCY_BUDGET_S = 0.25
_LATENCY_MIN_ROUNDS = {1: 20, 32: 5}  # by batch: candidates are told apart by single rows, so those get more
_LATENCY_MAX_ROUNDS = 1000
_MEMORY_TIMEOUT_S = 300.0
_PAIRS_BUDGET_S = 2.0
_MIN_PAIRS, _MAX_PAIRS = 60, 2_000


def call_seconds(
    engines: Mapping[str, Engine], inputs: Mapping[str, Array], batches: Sequence[int] = LATENCY_BATCHES
) -> dict[str, dict[str, Floats]]:
    """Time calls by engine name and batch size: seconds [R], one call a round.

    The engines take turns call by call, so that whatever else the machine does slows all of them alike; every round
    begins with another one and every second goes the other way round, so that none always follows the same.
    """
    figures: dict[str, dict[str, Floats]] = {name: {} for name in engines}
    for size in batches:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
        for name, seconds in _interleaved(list(engines.items()), batch, _LATENCY_MIN_ROUNDS[size]).items():
            figures[name][str(size)] = np.array(seconds)
    return figures


def memory_bytes(model: Path, inputs: Mapping[str, Array], scratch: Path) -> int:
    """Measure the bytes that a fresh process grows by (peak resident set) to load an ONNX file and run one call.

    Raises:
        Internal: the process failed.
    """
    row = scratch / "row.msgpack"
    row.write_bytes(tensors.pack(inputs))
    done = subprocess.run(
        [sys.executable, "-m", "compiler.measure.memory", str(model), str(row)],
        capture_output=True,
        text=True,
        timeout=_MEMORY_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise Internal(f"measuring the memory of {model.name} failed: {done.stderr.strip()[-300:]}")
    return int(done.stdout)


def medians_ms(seconds: Mapping[str, Floats]) -> dict[str, float]:
    """Return the median milliseconds of a call by batch size."""
    return {size: 1e3 * float(np.median(calls)) for size, calls in seconds.items()}


def speed(p50_ms: Mapping[str, float], memory: int, at_sizes: Mapping[str, float] | None = None) -> Speed:
    """Round the figures to four significant digits, as the evaluation carries them."""
    return Speed(p50_ms=_rounded(p50_ms), memory_bytes=memory, at_sizes=_rounded(at_sizes or {}) or msgspec.UNSET)


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def _interleaved(
    engines: Sequence[tuple[str, Engine]], batch: Mapping[str, Array], least: int
) -> dict[str, list[float]]:
    for _, engine in engines:
        engine.run(batch)  # the first call of a shape allocates
    seconds: dict[str, list[float]] = {name: [] for name, _ in engines}
    ends_at = time.perf_counter() + _LATENCY_BUDGET_S
    for done in range(_LATENCY_MAX_ROUNDS):
        if done >= least and time.perf_counter() > ends_at:
            break
        first = done % len(engines)
        turns = [*engines[first:], *engines[:first]]
        for name, engine in turns if done % 2 == 0 else reversed(turns):
            began = time.perf_counter()
            engine.run(batch)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def added_share(before: Engine, after: Engine, inputs: Mapping[str, Array]) -> Interval:
    """Measure by what share a call with one row takes longer: the median over pairs of calls, with its 95% interval.

    The two take turns, and so does who begins: a machine that slows down slows both. Time is what this thread gets of
    the processor, since engines of one thread run in it: a fiftieth would drown in the turns of other programs. The
    interval is that of a median by order statistics (Conover, Practical Nonparametric Statistics, 3.2).
    """
    row = {name: array[:1] for name, array in inputs.items()}
    for engine in (before, after):
        engine.run(row)
    shares: list[float] = []
    ends_at = time.perf_counter() + _PAIRS_BUDGET_S
    while len(shares) < _MAX_PAIRS and (len(shares) < _MIN_PAIRS or time.perf_counter() < ends_at):
        took = {}
        for engine in (before, after) if len(shares) % 2 else (after, before):
            began = time.thread_time()
            engine.run(row)
            took[engine] = time.thread_time() - began
        shares.append(took[after] / took[before] - 1)
    ordered, n = sorted(shares), len(shares)
    spread = math.ceil(0.98 * math.sqrt(n))
    low, high = max(0, n // 2 - spread), min(n - 1, n // 2 + spread)
    return Interval(value=ordered[n // 2], low=ordered[low], high=ordered[high])
