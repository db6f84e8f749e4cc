"""One engine: loaded, warmed up, measured, and run one batch at a time, on the event loop or in a thread of its own.

Owns the engine and its thread. Holds no queue: ``batcher`` decides what runs together and when.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud_core.policy.admission import ServiceTime, fitted
from penstock.artifact.blobs import digest_of_file
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError, DigestMismatch, Internal, PenstockError
from penstock.process.telemetry import log
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire.tensors import Array, TensorSpec, numpy_dtype

_log = logging.getLogger(__name__)
_WARM_UP_RUNS = 5
_IMMEDIATE_BELOW_S = 15e-6
"""What a turn through queue, planner and two wake-ups costs a request. A batch cannot save more than it costs here."""

Inputs = Mapping[str, Array]
Outcome = dict[str, Array] | PenstockError
"""Outputs of one chunk, or why it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The rows of one request, and the outputs it wants (None: all). Chunks that run together want the same."""

    inputs: Inputs
    rows: int
    outputs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What warm-up found; 0.0 for what could not be measured.

    ``is_batchable`` False: rows cannot be merged, so every chunk runs alone.
    """

    service: ServiceTime
    is_batchable: bool
    one_row_s: float
    full_batch_s: float


class Replica:
    """One loaded engine.

    Attributes:
        inline_rows: batches up to this size are so short that they run on the event loop.
        is_immediate: a row costs less than putting it into a queue; see :data:`_IMMEDIATE_BELOW_S`.
        thread: runs what is not inline, one batch at a time.
    """

    def __init__(
        self, engine: Engine, thread: Executor, *, timing: Timing, max_batch: int, inline_below_s: float
    ) -> None:
        self.engine, self.thread, self.timing = engine, thread, timing
        self.max_batch = max_batch if timing.is_batchable else 1
        self.inline_rows = self.max_batch if 0.0 < timing.full_batch_s < inline_below_s else 0
        self.is_immediate = self.inline_rows > 0 and timing.one_row_s < _IMMEDIATE_BELOW_S

    def __repr__(self) -> str:
        where = "immediate" if self.is_immediate else "inline" if self.inline_rows else "in a thread"
        return f"Replica(max_batch={self.max_batch}, {where}, full batch {self.timing.full_batch_s * 1e3:.2f} ms)"

    def run(self, chunks: Sequence[Chunk]) -> list[Outcome]:
        """Run one batch; from one thread at a time."""
        return run_batch(self.engine, chunks)

    def close(self) -> None:
        """Release thread and engine. Waits for the batch that runs, if any."""
        self.thread.shutdown(wait=True, cancel_futures=True)
        self.engine.close()


def load_replica(spec: VariantSpec, weights: Path, digest: str, *, threads: int, inline_below_s: float) -> Replica:
    """Verify, load, check against its spec, and warm up. Blocks: call it from a thread.

    Raises:
        DigestMismatch: the weights are not the ones the manifest names (invariant 3). ArtifactError: not a model, or
        not the one its spec describes. MissingExtra: the engine's library is not installed.
    """
    found = digest_of_file(weights)
    if found != digest:
        raise DigestMismatch(f"weights hash to {found}, expected {digest}: corrupt, truncated or tampered with")
    engine = load_engine(spec.engine, weights, EngineOptions(provider=spec.provider, threads=threads))
    try:
        for what, declared, have in (("input", spec.inputs, engine.inputs), ("output", spec.outputs, engine.outputs)):
            _check_specs(what, declared, have)
        timing = warm_up(engine, spec.max_batch)
        thread = ThreadPoolExecutor(1, thread_name_prefix="replica")
        return Replica(engine, thread, timing=timing, max_batch=spec.max_batch, inline_below_s=inline_below_s)
    except BaseException:
        engine.close()
        raise


def run_batch(engine: Engine, chunks: Sequence[Chunk]) -> list[Outcome]:
    """Run chunks merged; if that fails, each alone, so that only the one to blame fails."""
    if len(chunks) == 1:
        return [_run_alone(engine, chunks[0])]
    try:
        return _run_merged(engine, chunks)
    except Exception as error:  # whatever it is, the members that are innocent get their answers
        log(_log, logging.WARNING, "batch failed, running each request alone", requests=len(chunks), error=error)
        return [_run_alone(engine, chunk) for chunk in chunks]


def warm_up(engine: Engine, max_batch: int) -> Timing:
    """Run zeros of one row and of a full batch, and measure both.

    A model with free dimensions besides the batch may refuse what is tried here; it is then served unmeasured, one
    chunk at a time on its thread's clock.

    Raises:
        ArtifactError: fails although every dimension but the batch is fixed.
    """
    is_batchable = all(spec.shape and spec.shape[0] == -1 for spec in (*engine.inputs, *engine.outputs))
    rows = max_batch if is_batchable else 1
    try:
        one_row_s = _measured_s(engine, 1)
        full_s = _measured_s(engine, rows)
        is_batchable = is_batchable and _keeps_rows(engine)
    except PenstockError as error:
        if not any(-1 in spec.shape[1:] for spec in engine.inputs):
            raise ArtifactError(f"the model fails on zeros: {error.message}") from error
        log(_log, logging.WARNING, "warm-up failed, serving unmeasured", error=error.message)
        return Timing(service=ServiceTime(), is_batchable=is_batchable, one_row_s=0.0, full_batch_s=0.0)
    if not is_batchable:
        service = ServiceTime(fixed_s=one_row_s)
        return Timing(service=service, is_batchable=False, one_row_s=one_row_s, full_batch_s=one_row_s)
    service = fitted(one_row_s, full_rows=rows, full_s=full_s)
    return Timing(service=service, is_batchable=True, one_row_s=one_row_s, full_batch_s=full_s)


def _run_alone(engine: Engine, chunk: Chunk) -> Outcome:
    try:
        return engine.run(chunk.inputs, chunk.outputs)
    except PenstockError as error:
        return error
    except Exception as error:  # an engine's library may raise anything; its caller still gets an answer
        log(_log, logging.ERROR, "engine failed", exc_info=error)
        return Internal(f"the model failed: {type(error).__name__}: {str(error)[:500]}")


def _run_merged(engine: Engine, chunks: Sequence[Chunk]) -> list[Outcome]:
    merged = {name: np.concatenate([chunk.inputs[name] for chunk in chunks]) for name in chunks[0].inputs}
    outputs = engine.run(merged, chunks[0].outputs)
    total = sum([chunk.rows for chunk in chunks])
    for name, array in outputs.items():
        if array.shape[:1] != (total,):
            raise Internal(f"output {name!r} has shape {list(array.shape)} for a batch of {total} rows")
    split: list[Outcome] = []
    start = 0
    for chunk in chunks:
        end = start + chunk.rows
        split.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return split


def _measured_s(engine: Engine, rows: int) -> float:
    """The best of a few runs: what it costs when nothing else is in the way."""
    inputs = _zeros(engine.inputs, rows)
    best = float("inf")
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        engine.run(inputs)
        best = min(best, time.perf_counter() - start)
        if best > 1.0:
            break
    return best


def _keeps_rows(engine: Engine) -> bool:
    return all(array.shape[:1] == (2,) for array in engine.run(_zeros(engine.inputs, 2)).values())


def _zeros(specs: Sequence[TensorSpec], rows: int) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for spec in specs:
        shape = tuple(1 if dim == -1 else dim for dim in spec.shape)
        if spec.shape and spec.shape[0] == -1:
            shape = (rows, *shape[1:])
        dtype = numpy_dtype(spec.datatype)
        tensors[spec.name] = np.full(shape, b"", dtype=object) if spec.datatype == "BYTES" else np.zeros(shape, dtype)
    return tensors


def _check_specs(what: str, declared: Sequence[TensorSpec], have: Sequence[TensorSpec]) -> None:
    """The spec is what clients and certificates were told; the engine is what would run."""
    said = {spec.name: (spec.datatype, len(spec.shape)) for spec in declared}
    found = {spec.name: (spec.datatype, len(spec.shape)) for spec in have}
    if said != found:
        raise ArtifactError(f"the model's {what}s are {found} (datatype, rank), but its variant spec says {said}")
