"""The spec of a model that nobody compiled: what an engine says of its file, and no promise. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.artifact.manifests import VariantSpec
from penstock.errors import ArtifactError
from penstock.wire.tensors import TensorSpec

MAX_BATCH = 64
"""Rows that are run together where a model has a free first dimension; whether they may be is found out at load."""


def plain_spec(
    model: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, max_batch: int = MAX_BATCH
) -> VariantSpec:
    """Describe a model for the cloud alone: no device gets it, and there is nothing to certify.

    Raises:
        ArtifactError: it has no inputs or no outputs.
    """
    if not inputs or not outputs:
        raise ArtifactError(f"{model}: the model has no {'outputs' if inputs else 'inputs'}; there is nothing to serve")
    grows = all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
    return VariantSpec(
        model=model,
        role="cloud",
        engine="onnx",
        target="any",
        provider="cpu",
        precision="as given",
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        score_output=_scored(outputs).name,
        max_batch=max_batch if grows else 1,
    )


def _scored(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Choose the output by which two versions are compared: the first that looks like classes, or the first at all."""
    fitting = (one for one in outputs if len(one.shape) == 2 and one.datatype.startswith("FP") and one.shape[1] != 1)
    return next(fitting, outputs[0])
