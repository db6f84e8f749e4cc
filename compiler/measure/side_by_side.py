"""Variants side by side: answers, shares with their intervals, latency and memory on this machine.

Measures and compares; what a figure means for the artifact (gate, certificate) is decided elsewhere. Everything but
latency and memory is the same on every run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import CascadeFigures, ReliabilityBin, Share, Speed
from compiler.certificate.certify import CertifyData, clopper_pearson
from penstock.errors import CompileError, Internal
from penstock.policy import confidence
from penstock.policy.confidence import Kind
from penstock.runtime import Engine
from penstock.wire import tensors
from penstock.wire.tensors import Array

LATENCY_BATCHES = (1, 32)
_LATENCY_BUDGET_S = 0.25
_LATENCY_MIN_ROUNDS = {1: 20, 32: 5}  # by batch: candidates are told apart by single rows, so those get more
_LATENCY_MAX_ROUNDS = 200
_INTERVAL_DELTA = 0.05
_MEMORY_TIMEOUT_S = 300.0
_RELIABILITY_BINS = 10


def answers(engine: Engine, inputs: Mapping[str, Array], *, output: str, max_batch: int, what: str) -> Array:
    """The scored output [N, ...] for all rows.

    Raises:
        CompileError: it holds NaN or infinities.
    """
    rows = len(next(iter(inputs.values())))
    parts = [
        engine.run({name: array[start : start + max_batch] for name, array in inputs.items()}, [output])[output]
        for start in range(0, rows, max_batch)
    ]
    values: Array = np.concatenate(parts)
    if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
        raise CompileError(f"{what}: output {output!r} holds NaN or infinite values for some examples")
    return values


def share(hits: NDArray[np.bool_]) -> Share:
    """How many are True, with the interval."""
    count, n = int(np.count_nonzero(hits)), len(hits)
    low, high = clopper_pearson(count, n, _INTERVAL_DELTA)
    return Share(value=count / n, low=low, high=high, n=n)


def cascade(data: CertifyData, threshold: float) -> CascadeFigures:
    """What the cascade does to some examples at ``threshold``."""
    kept = np.asarray(data.scores >= threshold)  # never for a NaN score
    edge, cloud, labels = data.edge_predictions, data.cloud_predictions, data.labels
    differs = np.asarray(kept & (edge != cloud))
    harmful = differs if labels is None else np.asarray(kept & (edge != labels) & (cloud == labels))
    return CascadeFigures(
        coverage=share(kept),
        accuracy=None if labels is None else share(np.asarray(np.where(kept, edge, cloud) == labels)),
        harm=share(harmful),
        disagreement=share(differs),
    )


def reliability(
    outputs: Array, labels: NDArray[np.int64] | None, *, kind: Kind, temperature: float
) -> tuple[ReliabilityBin, ...]:
    """How often rows of similar confidence are right: the calibration curve (Guo et al., arXiv 1706.04599).

    Args:
        outputs: logits or probabilities [N, C]. ``labels``: [N]; without them there is nothing to compare with.
    """
    if labels is None:
        return ()
    sure = confidence.score(outputs, kind=kind, name="max_prob", temperature=temperature)
    right = confidence.predicted(outputs) == labels
    bins = np.minimum((sure * _RELIABILITY_BINS).astype(np.int64), _RELIABILITY_BINS - 1)
    return tuple(
        ReliabilityBin(
            confidence=float(sure[bins == index].mean()),
            accuracy=float(right[bins == index].mean()),
            rows=int(np.count_nonzero(bins == index)),
        )
        for index in range(_RELIABILITY_BINS)
        if (bins == index).any()
    )


def latencies_ms(engines: Mapping[str, Engine], inputs: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call by engine name and batch size.

    The engines take turns call by call, so that whatever else the machine does slows all of them alike.
    """
    figures: dict[str, dict[str, float]] = {name: {} for name in engines}
    for size in LATENCY_BATCHES:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
        for name, seconds in _interleaved(list(engines.items()), batch, _LATENCY_MIN_ROUNDS[size]).items():
            figures[name][str(size)] = 1e3 * float(np.median(seconds))
    return figures


def memory_bytes(model: Path, inputs: Mapping[str, Array], scratch: Path) -> int:
    """What a fresh process grows by (peak resident set) to load an ONNX file and run one row, in bytes.

    Raises:
        Internal: the process failed.
    """
    row = scratch / "row.msgpack"
    row.write_bytes(tensors.pack({name: array[:1] for name, array in inputs.items()}))
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


def speed(p50_ms: Mapping[str, float], memory: int) -> Speed:
    """The figures as the evaluation carries them: four significant digits."""
    return Speed(p50_ms={size: float(f"{value:.4g}") for size, value in p50_ms.items()}, memory_bytes=memory)


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
        for name, engine in engines:
            began = time.perf_counter()
            engine.run(batch)
            seconds[name].append(time.perf_counter() - began)
    return seconds
