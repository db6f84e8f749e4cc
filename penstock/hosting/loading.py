"""A variant proves itself before it may answer: loaded, compared with its spec, golden vectors replayed, measured.

The one way from verified files to a model that answers, for the device, the core and ``penstock certify``: what one of
them refuses, the others refuse too. Blocks: call it from a thread. What becomes of a variant that is refused is the
caller's decision. Takes files that ``penstock.artifact.variant_files`` has verified (invariant 3), and no others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from penstock.artifact import golden
from penstock.artifact.manifests import VariantSpec, decoder_of
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, InvalidInput, PenstockError
from penstock.hosting import row_independence
from penstock.policy import parallelism
from penstock.policy.service_time import ServiceTime, Timing, fitted
from penstock.process.telemetry import log
from penstock.runtime import Engine, EngineOptions, load_engine
from penstock.wire import tensors
from penstock.wire.tensors import Array, TensorSpec

_LOG = logging.getLogger(__name__)
_FREE_DIM = 1  # size of a free dimension (other than the batch) where no golden row says a better one
_WARM_UP_RUNS = 5
_SLOW_RUN_S = 1.0  # such a run is measured well enough by one
_Make = Callable[[int], Engine]  # with so many threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A variant that has proved itself.

    Attributes:
        engine: runs it; the caller closes it.
        timing: what it costs, and whether rows may be merged.
        max_batch: most rows of one run; 1 where rows cannot be merged, or change each other's answers.
        rows_mixed: why rows run one at a time although the spec allows more; "" where it says so itself, or they
            need not.
        threads: of one run.
    """

    engine: Engine
    timing: Timing
    max_batch: int
    rows_mixed: str = ""
    threads: int = 1


def load(
    spec: VariantSpec,
    files: VariantFiles,
    *,
    threads: int,
    cpus: int = 1,
    device_index: int = 0,
    rows_mixed: str | None = None,
) -> Loaded:
    """Load a variant, let it prove itself, warm it up and measure it.

    Args:
        threads: of one run of the engine; 0 for as many of ``cpus`` as make one row faster, found out by measuring.
        device_index: of several devices of a kind, the one that runs it.
        rows_mixed: what was seen of its rows when it was loaded before; None to look now.

    Raises:
        ArtifactError: not a model, not the one that its spec describes, it computes something else on this machine
            than where it was compiled, or it fails on inputs of its own shape.
        InvalidInput: an engine or provider that is not known here. MissingExtra: its library is not installed.
        Internal: the engine failed.
    """
    make = partial(_engine, spec, files, device_index=device_index)
    proved = _proved(spec, files, make, threads or 1, rows_mixed=rows_mixed)
    if threads or cpus == 1:
        return proved
    if files.golden is None and any(-1 in tensor.shape[1:] for tensor in spec.inputs):
        proved.engine.close()  # nobody knows how long the inputs of clients will be
        return _proved(spec, files, make, cpus, rows_mixed=proved.rows_mixed)
    if proved.timing.one_row_s < parallelism.WORTH_SHARING_S:
        return proved
    return _with_more_threads(spec, files, make, proved, cpus)


def _proved(
    spec: VariantSpec, files: VariantFiles, make: _Make, threads: int, *, rows_mixed: str | None = None
) -> Loaded:
    """Load and prove. ``rows_mixed``: what was seen of its rows with other threads; None to look now."""
    engine = make(threads)
    try:
        check_signature(spec, engine)
        samples = {} if files.is_golden_damaged else replay(spec, files.golden, engine)
        if rows_mixed is None:
            rows_mixed = _rows_mixed(spec, engine, samples)
        max_batch = 1 if rows_mixed else spec.max_batch
        timing = warm_up(engine, max_batch, samples, must_run=not files.is_golden_damaged)
    except ArtifactError as error:
        engine.close()
        raise ArtifactError(f"{spec.model}, {spec.role} variant for {spec.target}: {error.message}") from error
    except BaseException:
        engine.close()
        raise
    max_batch = max_batch if timing.is_batchable else 1
    return Loaded(engine=engine, timing=timing, max_batch=max_batch, rows_mixed=rows_mixed, threads=threads)


def _with_more_threads(spec: VariantSpec, files: VariantFiles, make: _Make, proved: Loaded, cpus: int) -> Loaded:
    """Load again with more threads while that makes one row faster. One engine is in memory at a time."""
    samples = {} if files.golden is None else golden.decode(files.golden).inputs
    chosen, best_s = proved.threads, proved.timing.one_row_s
    row = _batch(proved.engine.inputs, samples, 1)
    loaded: Loaded | None = proved
    for threads in parallelism.thread_counts(cpus):
        if loaded is not None:
            loaded.engine.close()
            loaded = None
        engine = make(threads)
        try:
            took_s = _measured_s(engine, row)
        finally:
            engine.close()
        if not parallelism.is_worth_it(best_s, took_s):
            break
        chosen, best_s = threads, took_s
    return loaded or _proved(spec, files, make, chosen, rows_mixed=proved.rows_mixed)


def _engine(spec: VariantSpec, files: VariantFiles, threads: int, *, device_index: int) -> Engine:
    options = EngineOptions(
        provider=spec.provider, threads=threads, usual_rows=spec.max_batch, device_index=device_index
    )
    return load_engine(spec.engine, files.weights, options)


def check_signature(spec: VariantSpec, engine: Engine) -> None:
    """Compare what the weights take and give with what the spec says, which clients and certificates were told.

    Names, datatypes and ranks must be equal; a dimension may be free on one side, since exporters differ in what they
    infer.

    Raises:
        ArtifactError: inputs or outputs differ, or there is no output to score.
    """
    for what, described, loaded in (("inputs", spec.inputs, engine.inputs), ("outputs", spec.outputs, engine.outputs)):
        if not tensors.is_compatible(described, loaded):
            raise ArtifactError(
                f"the weights are not what the spec describes: {what} are {tensors.listing(loaded)}, described "
                f"{tensors.listing(described)}"
            )
    score_output, *others = decoder_of(spec).answered_by
    named = [("score_output", score_output), *(("decoding", name) for name in others), ("probe_output", spec.probe)]
    for what, name in named if spec.probe else named[:-1]:
        if name not in {output.name for output in engine.outputs}:
            raise ArtifactError(f"{what} {name!r} is no output; there are {tensors.listing(engine.outputs)}")


def replay(spec: VariantSpec, vectors: bytes | None, engine: Engine) -> Mapping[str, Array]:
    """Give the golden inputs to an engine and compare what comes out, at every size that the variant is made for.

    Returns:
        the inputs of the first call; none without vectors.

    Raises:
        ArtifactError: the vectors do not fit the model, or it does not reproduce them. Internal: the engine failed.
    """
    if vectors is None:
        log(
            _LOG,
            logging.WARNING,
            "no golden vectors: nothing shows that this machine computes what was compiled",
            model=spec.model,
            role=spec.role,
            target=spec.target,
        )
        return {}
    expected = golden.decode(vectors)
    takes = tensors.with_sizes_of(engine.inputs, spec.inputs)
    for call in expected.calls:
        try:
            tensors.check_inputs(call.inputs, takes)
        except InvalidInput as error:
            raise ArtifactError(f"golden vectors do not fit the model: {error.message}") from error
        golden.check(call, engine.run(call.inputs), tolerance=spec.golden_tolerance, shares=(spec.probe,))
    return expected.inputs


def warm_up(engine: Engine, max_batch: int, samples: Mapping[str, Array], *, must_run: bool = True) -> Timing:
    """Run one row and a full batch, and measure both.

    Golden rows are repeated to fill the batch where there are any, since zeros may be far quicker than data and may
    not be data at all (a detector finds nothing in them, an embedding looks up one row). A model with free dimensions
    besides the batch may still refuse what is tried here; it is then served unmeasured.

    Args:
        samples: golden inputs; empty for zeros.
        must_run: False where the model has shown before that it runs: what zeros do to it says nothing.

    Raises:
        ArtifactError: it must run, and fails although every dimension but the batch is fixed.
    """
    can_grow = all(spec.shape[:1] == (-1,) for spec in (*engine.inputs, *engine.outputs))
    rows = max_batch if can_grow else 1
    try:
        one_row_s = _measured_s(engine, _batch(engine.inputs, samples, 1))
        full_s = _measured_s(engine, _batch(engine.inputs, samples, rows)) if rows > 1 else one_row_s
        is_batchable = can_grow and _keeps_rows(engine, samples)
    except PenstockError as error:
        if must_run and not any(-1 in spec.shape[1:] for spec in engine.inputs):
            what = "its golden rows, repeated to a full batch" if samples else "zeros"
            raise ArtifactError(f"the model fails on {what}: {error.message}") from error
        log(_LOG, logging.WARNING, "warm-up failed, serving unmeasured", error=error.message)
        return Timing(service=ServiceTime(), is_batchable=can_grow, one_row_s=0.0, full_batch_s=0.0)
    if not is_batchable:
        service = ServiceTime(fixed_s=one_row_s)
        return Timing(service=service, is_batchable=False, one_row_s=one_row_s, full_batch_s=one_row_s)
    service = fitted(one_row_s, full_rows=rows, full_s=full_s)
    return Timing(service=service, is_batchable=True, one_row_s=one_row_s, full_batch_s=full_s)


def _rows_mixed(spec: VariantSpec, engine: Engine, samples: Mapping[str, Array]) -> str:
    """Say why rows may not be merged, "" where they may: what is certified for a row holds whoever else asks."""
    found = row_independence.look(engine.run, engine, samples, precision=spec.precision, max_batch=spec.max_batch)
    if found.reason:
        log(
            _LOG,
            logging.WARNING,
            "rows are run one at a time: they were not seen to be independent of each other",
            model=spec.model,
            role=spec.role,
            target=spec.target,
            reason=found.reason,
        )
    return found.reason


def _measured_s(engine: Engine, inputs: Mapping[str, Array]) -> float:
    """Take the best of a few runs: what it costs when nothing else is in the way."""
    best = float("inf")
    for _ in range(_WARM_UP_RUNS):
        started_at = time.perf_counter()
        engine.run(inputs)
        best = min(best, time.perf_counter() - started_at)
        if best > _SLOW_RUN_S:
            break
    return best


def _keeps_rows(engine: Engine, samples: Mapping[str, Array]) -> bool:
    """Ask for two rows and see two come back: a free dimension 0 need not be the batch (a detector's is its boxes)."""
    return all(array.shape[:1] == (2,) for array in engine.run(_batch(engine.inputs, samples, 2)).values())


def _batch(specs: Sequence[TensorSpec], samples: Mapping[str, Array], rows: int) -> dict[str, Array]:
    return {spec.name: _filled(spec, samples.get(spec.name), rows) for spec in specs}


def _filled(spec: TensorSpec, sample: Array | None, rows: int) -> Array:
    has_batch = spec.shape[:1] == (-1,)
    if sample is not None and sample.size:
        return np.resize(sample, (rows, *sample.shape[1:])) if has_batch else sample
    shape = [_FREE_DIM if dim == -1 else dim for dim in spec.shape]
    if has_batch:
        shape[0] = rows
    dtype = tensors.numpy_dtype(spec.datatype)
    return np.full(shape, b"", dtype=object) if dtype.kind == "O" else np.zeros(shape, dtype=dtype)
