"""One engine that runs one batch at a time, on the event loop or in a thread of its own.

Owns the engine and its thread. Holds no queue: ``batcher`` decides what runs together and when.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from penstock.artifact.manifests import VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import Internal, PenstockError
from penstock.hosting import loading
from penstock.policy.service_time import Timing
from penstock.process.telemetry import log
from penstock.runtime import Engine
from penstock.wire.tensors import Array

_log = logging.getLogger(__name__)
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
        self.max_batch = max_batch
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


def load_replica(spec: VariantSpec, files: VariantFiles, *, threads: int, inline_below_s: float) -> Replica:
    """Load one more copy of a variant. Blocks: call it from a thread.

    Raises:
        ArtifactError and others: as :func:`penstock.hosting.loading.load`.
    """
    loaded = loading.load(spec, files, threads=threads)
    thread = ThreadPoolExecutor(1, thread_name_prefix="replica")
    return Replica(
        loaded.engine, thread, timing=loaded.timing, max_batch=loaded.max_batch, inline_below_s=inline_below_s
    )


def run_batch(engine: Engine, chunks: Sequence[Chunk]) -> list[Outcome]:
    """Run chunks merged; if that fails, each alone, so that only the one to blame fails."""
    if len(chunks) == 1:
        return [_run_alone(engine, chunks[0])]
    try:
        return _run_merged(engine, chunks)
    except Exception as error:  # whatever it is, the members that are innocent get their answers
        log(_log, logging.WARNING, "batch failed, running each request alone", requests=len(chunks), error=error)
        return [_run_alone(engine, chunk) for chunk in chunks]


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
