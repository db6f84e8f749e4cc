"""A loaded variant proves itself before it may answer: right signature, golden vectors reproduced, warmed up and timed.

Blocking: called in a thread while other models serve. What happens to one that does not prove itself is the updater's
decision.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from penstock.artifact import golden
from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError, InvalidInput
from penstock.runtime import Engine
from penstock.wire import tensors
from penstock.wire.tensors import Array, TensorSpec

_FREE_DIM = 1  # size of a free dimension (other than the batch) in a warm-up input
_WARM_UP_RUNS = 5


def check_signature(spec: VariantSpec, engine: Engine) -> None:
    """The weights must be of the model that the variant's spec describes.

    Raises:
        ArtifactError: inputs or outputs differ, or there is no output to score.
    """
    for what, described, loaded in (("inputs", spec.inputs, engine.inputs), ("outputs", spec.outputs, engine.outputs)):
        if not _same_signature(described, loaded):
            raise ArtifactError(
                f"the weights of {spec.model!r} are not what its spec describes: {what} are {_listing(loaded)}, "
                f"described {_listing(described)}"
            )
    if spec.score_output not in {output.name for output in engine.outputs}:
        raise ArtifactError(f"score_output {spec.score_output!r} is no output; there are {_listing(engine.outputs)}")


def _same_signature(described: tuple[TensorSpec, ...], loaded: tuple[TensorSpec, ...]) -> bool:
    """Equal names, datatypes and ranks; a dimension may be free on one side (exporters differ in what they infer)."""
    by_name = {spec.name: spec for spec in loaded}
    return set(by_name) == {spec.name for spec in described} and all(
        spec.datatype == by_name[spec.name].datatype
        and len(spec.shape) == len(by_name[spec.name].shape)
        and all(-1 in dims or dims[0] == dims[1] for dims in zip(spec.shape, by_name[spec.name].shape, strict=True))
        for spec in described
    )


def prove(spec: VariantSpec, vectors: bytes | None, engine: Engine) -> float:
    """Replay the golden vectors, warm up with a full batch; return the time of one full batch in seconds.

    Raises:
        ArtifactError: the vectors do not fit the model, or it does not reproduce them. Internal: the engine failed.
    """
    inputs: Mapping[str, Array] = {}
    if vectors is not None:
        expected = golden.decode(vectors)
        inputs = expected.inputs
        try:
            tensors.check_inputs(inputs, engine.inputs)
        except InvalidInput as error:
            raise ArtifactError(f"golden vectors do not fit the model: {error.message}") from error
        golden.check(expected, engine.run(inputs), tolerance=spec.golden_tolerance)
    batch = {tensor.name: _warm_up_input(tensor, inputs.get(tensor.name), spec.max_batch) for tensor in engine.inputs}
    took_s = []
    for _ in range(_WARM_UP_RUNS):
        started_at = time.perf_counter()
        engine.run(batch)
        took_s.append(time.perf_counter() - started_at)
    return min(took_s)


def _warm_up_input(spec: TensorSpec, sample: Array | None, rows: int) -> Array:
    """Golden rows repeated to a full batch where there are any (zeros may be far quicker than data), else zeros."""
    if sample is not None and sample.size and spec.shape[:1] == (-1,):
        return np.resize(sample, (rows, *sample.shape[1:]))
    shape = [_FREE_DIM if dim == -1 else dim for dim in spec.shape]
    if spec.shape[:1] == (-1,):
        shape[0] = rows
    dtype = tensors.numpy_dtype(spec.datatype)
    return np.full(shape, b"", dtype=object) if dtype.kind == "O" else np.zeros(shape, dtype=dtype)


def _listing(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in specs) or "none"
