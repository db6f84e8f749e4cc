"""Accuracy on the tested rows, and latencies by calls in turn: what slows one of them slows the rest as well."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiler.case import Case, good, kept
from compiler.gate import Drop, paired_drop
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.tensors import Array

BATCHES = (1, 32)
_ANSWER_BATCH = 32
_MIN_ROUNDS, _MAX_ROUNDS = 5, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of one model on the tested rows: share of good answers, what it lost against float, what it kept of it."""

    accuracy: float
    drop: Drop
    kept: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of one model at one batch size: milliseconds, and speed against float.

    Attributes:
        speedup: median over rounds of float's time by this one's in the same round; ``low``, ``high``: the quartiles.
    """

    p50_ms: float
    speedup: float
    low: float
    high: float


def load(models: Mapping[str, Path]) -> dict[str, Engine]:
    """Under onnxruntime with one thread: what a device has."""
    return {name: load_engine("onnx", path, EngineOptions(threads=1)) for name, path in models.items()}


def qualities(case: Case, engines: Mapping[str, Engine], reference: str) -> dict[str, Quality]:
    """Answers of every model to the tested rows, against those of ``reference``."""
    rows, labels = case.rows("test"), case.labels("test")
    answers = {name: _answers(engine, rows, case.output) for name, engine in engines.items()}
    right = {name: good(case, given, labels) for name, given in answers.items()}
    return {
        name: Quality(
            accuracy=float(right[name].mean()),
            drop=paired_drop(right[reference], right[name]),
            kept=kept(case, answers[name], answers[reference]),
        )
        for name in engines
    }


def latencies(
    case: Case, engines: Mapping[str, Engine], reference: str, *, budget_s: float
) -> dict[str, dict[str, Latency]]:
    """By model and batch size; ``budget_s`` of calls for each size."""
    found: dict[str, dict[str, Latency]] = {name: {} for name in engines}
    for size in BATCHES:
        batch = {name: np.resize(values, (size, *values.shape[1:])) for name, values in case.rows("test").items()}
        seconds = _in_turn(engines, batch, budget_s)
        for name, times in seconds.items():
            low, middle, high = np.quantile(seconds[reference] / times, [0.25, 0.5, 0.75])
            found[name][str(size)] = Latency(
                p50_ms=1e3 * float(np.median(times)), speedup=float(middle), low=float(low), high=float(high)
            )
    return found


def _in_turn(
    engines: Mapping[str, Engine], batch: Mapping[str, Array], budget_s: float
) -> dict[str, NDArray[np.float64]]:
    for engine in engines.values():
        engine.run(batch)  # the first call of a shape allocates
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    ends_at = time.perf_counter() + budget_s
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() > ends_at:
            break
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.run(batch)
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(times) for name, times in seconds.items()}


def _answers(engine: Engine, rows: Mapping[str, Array], output: str) -> Array:
    total = len(next(iter(rows.values())))
    parts = [
        engine.run({name: values[start : start + _ANSWER_BATCH] for name, values in rows.items()}, [output])[output]
        for start in range(0, total, _ANSWER_BATCH)
    ]
    found: Array = np.concatenate(parts)
    return found
