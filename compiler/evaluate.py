"""Variants side by side: answers, accuracy with its interval, agreement, latency on this machine, size.

Measures and compares; what a figure means for the artifact (gate, certificate) is decided elsewhere. Everything but the
latencies is the same on every run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.calibrate import batches
from compiler.certify import CertifyData, clopper_pearson
from penstock.errors import CompileError
from penstock.runtime import Engine
from penstock.tensors import Array

Classes = NDArray[np.int64]

LATENCY_BATCHES = (1, 32)
_LATENCY_BUDGET_S = 0.25
_LATENCY_MIN_ROUNDS, _LATENCY_MAX_ROUNDS = 5, 200
_INTERVAL_DELTA = 0.05


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of ``n`` rows with its exact 95% interval (Clopper-Pearson)."""

    value: float
    low: float
    high: float
    n: int


class VariantFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the table.

    Attributes:
        accuracy: on the test split; None without labels.
        agreement_fp32, agreement_cloud: share of test rows answered as the float student and as the cloud do.
        latency_p50_ms: median of interleaved calls by batch size, one thread, on the machine that compiled.
    """

    name: str
    role: str
    precision: str
    size_bytes: int
    accuracy: Share | None
    agreement_fp32: Share
    agreement_cloud: Share
    latency_p50_ms: dict[str, float]


class CascadeFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cascade at its certified threshold, measured on the test split, which neither chose nor certified it.

    Attributes:
        coverage: share answered on the device. ``accuracy``: None without labels.
        harm: what the certificate bounds by ``max_harm``. ``disagreement``: what an audit sees of it.
    """

    coverage: Share
    accuracy: Share | None
    harm: Share
    disagreement: Share


def answers(engine: Engine, inputs: Mapping[str, Array], *, output: str, max_batch: int, what: str) -> Array:
    """The scored output [N, C] for all rows.

    Raises:
        CompileError: it holds NaN or infinities.
    """
    parts = [engine.run(batch, [output])[output] for batch in batches(inputs, max_batch)]
    values: Array = np.concatenate(parts)
    if not np.isfinite(values.astype(np.float64)).all():
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


def latencies_ms(engines: Mapping[str, Engine], inputs: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call by engine name and batch size.

    The engines take turns call by call, so that whatever else the machine does slows all of them alike.
    """
    figures: dict[str, dict[str, float]] = {name: {} for name in engines}
    for size in LATENCY_BATCHES:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
        for name, seconds in _interleaved(list(engines.items()), batch).items():
            figures[name][str(size)] = 1e3 * float(np.median(seconds))
    return figures


def _interleaved(engines: Sequence[tuple[str, Engine]], batch: Mapping[str, Array]) -> dict[str, list[float]]:
    for _, engine in engines:
        engine.run(batch)  # the first call of a shape allocates
    seconds: dict[str, list[float]] = {name: [] for name, _ in engines}
    ends_at = time.perf_counter() + _LATENCY_BUDGET_S
    for done in range(_LATENCY_MAX_ROUNDS):
        if done >= _LATENCY_MIN_ROUNDS and time.perf_counter() > ends_at:
            break
        for name, engine in engines:
            began = time.perf_counter()
            engine.run(batch)
            seconds[name].append(time.perf_counter() - began)
    return seconds
