"""Accuracy on the tested rows, and latencies by calls in turn: what slows one of them slows the rest as well."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.compiler.case import Case, good, kept
from compiler.artifact.evaluation import Drop
from compiler.data import calls
from compiler.measure.gate import paired_drop
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import Array

BATCHES = (1, 32)
_REAL_BATCHES = (1, 8)  # pictures of a detector: what 32 of them take says no more, and takes minutes
_ANSWER_BATCH = 32
_MIN_ROUNDS, _MAX_ROUNDS = 5, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What one model does on the tested rows: share of good answers, what it lost against float, what it kept of it."""

    accuracy: float
    drop: Drop
    kept: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How fast one model is at one batch size: milliseconds, and speed against float.

    Attributes:
        speedup: median over rounds of float's time by this one's in the same round.
        low, high: the quartiles.
    """

    p50_ms: float
    speedup: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one model; ``problem`` says why it was not."""

    quality: Quality | None = None
    latency: dict[str, Latency] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A loaded model. ``max_batch``: rows that it may answer together, or 0 for any number (``Made.max_batch``)."""

    engine: Engine
    max_batch: int = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[dict[str, Array]]:
        """Answer the rows, in as many calls as it takes."""
        rows = len(next(iter(inputs.values())))
        size = min(self.max_batch or rows, rows)
        return [
            self.engine.run({name: values[start : start + size] for name, values in inputs.items()}, outputs)
            for start in range(0, rows, size)
        ]


def load(path: Path, *, max_batch: int = 0) -> Model:
    """Load a model under onnxruntime with one thread, as a device has it."""
    return Model(engine=calls.by_rows(load_engine("onnx", path, EngineOptions(threads=1))), max_batch=max_batch)


def figures(case: Case, files: Mapping[str, tuple[Path, int]], reference: str, seconds: float) -> dict[str, Figures]:
    """Measure models by their files and the rows of a call that each may answer together (0 for any number).

    Args:
        seconds: of calls in turn for each batch size.
    """
    models = {name: load(path, max_batch=max_batch) for name, (path, max_batch) in files.items()}
    good_ones = qualities(case, models, reference)
    fast_ones = latencies(case, models, reference, budget_s=seconds)
    return {name: Figures(quality=good_ones[name], latency=fast_ones[name]) for name in models}


def qualities(case: Case, models: Mapping[str, Model], reference: str) -> dict[str, Quality]:
    """Judge the answers of every model to the tested rows against those of ``reference``."""
    rows, labels = case.rows("test"), case.labels("test")
    answers = {name: _answers(model, rows, case.output) for name, model in models.items()}
    right = {name: good(case, given, answers[reference], labels) for name, given in answers.items()}
    return {
        name: Quality(
            accuracy=float(right[name].mean()),
            drop=paired_drop(right[reference], right[name]),
            kept=kept(case, answers[name], answers[reference]),
        )
        for name in models
    }


def latencies(
    case: Case, models: Mapping[str, Model], reference: str, *, budget_s: float
) -> dict[str, dict[str, Latency]]:
    """Measure latencies by model and batch size; ``budget_s`` of calls for each size."""
    found: dict[str, dict[str, Latency]] = {name: {} for name in models}
    for size in _REAL_BATCHES if case.kind == "real" else BATCHES:
        batch = {name: np.resize(values, (size, *values.shape[1:])) for name, values in case.rows("test").items()}
        seconds = _in_turn(models, batch, budget_s)
        for name, times in seconds.items():
            low, middle, high = np.quantile(seconds[reference] / times, [0.25, 0.5, 0.75])
            found[name][str(size)] = Latency(
                p50_ms=1e3 * float(np.median(times)), speedup=float(middle), low=float(low), high=float(high)
            )
    return found


def _in_turn(
    models: Mapping[str, Model], batch: Mapping[str, Array], budget_s: float
) -> dict[str, NDArray[np.float64]]:
    for model in models.values():
        model.run(batch)  # the first call of a shape allocates
    seconds: dict[str, list[float]] = {name: [] for name in models}
    ends_at = time.perf_counter() + budget_s
    for done in range(_MAX_ROUNDS):
        if done >= _MIN_ROUNDS and time.perf_counter() > ends_at:
            break
        for name, model in models.items():
            began = time.perf_counter()
            model.run(batch)
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(times) for name, times in seconds.items()}


def _answers(model: Model, rows: Mapping[str, Array], output: str) -> Array:
    total = len(next(iter(rows.values())))
    parts: list[Array] = []
    for start in range(0, total, _ANSWER_BATCH):
        batch = {name: values[start : start + _ANSWER_BATCH] for name, values in rows.items()}
        parts += [found[output] for found in model.run(batch, [output])]
    return np.concatenate(parts)
