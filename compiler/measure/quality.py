"""What makes an answer good, by task: the one place that knows how outputs are compared.

Pure. With labels a row is good when it is right; without, when it is what the reference (the float parent, or the
cloud) says. Everything that is measured of a candidate comes from these rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Share
from compiler.certificate.binomial import clopper_pearson
from compiler.recipe.choices import Task
from penstock.errors import CompileError
from penstock.policy import confidence
from penstock.wire.tensors import Array, TensorSpec

Rows = NDArray[np.bool_]

REGRESSION_TOLERANCE = 0.05
"""A regression agrees with its reference within this share of the reference's own standard deviation."""

_ATTENTION_MASK = "attention_mask"
_INTERVAL_DELTA = 0.05


def check_output(task: Task, spec: TensorSpec) -> None:
    """Check that the scored output can be what the task needs.

    Raises:
        CompileError: the scored output has not the shape that the task needs.
    """
    floats = spec.datatype.startswith("FP")
    if task == "classification" and not (floats and len(spec.shape) == 2 and (spec.shape[1] >= 2)):
        raise CompileError(
            f"output {spec.name!r} is {spec.datatype}{list(spec.shape)}; a cascade scores floats of shape "
            '[batch, classes] with two classes or more. Name another in model.output, or set model.task = "regression" '
            'or "embedding", which are packed without a certificate'
        )
    if task == "embedding" and not (floats and len(spec.shape) in (2, 3)):
        raise CompileError(
            f"output {spec.name!r} is {spec.datatype}{list(spec.shape)}; embeddings are floats [batch, size], or "
            "[batch, tokens, size] which are averaged over the tokens"
        )
    if task == "regression" and not floats:
        raise CompileError(f"output {spec.name!r} is {spec.datatype}{list(spec.shape)}; a regression gives floats")


def metric_name(task: Task, *, has_labels: bool) -> str:
    """Return what the share of good rows is called."""
    if task == "classification":
        return "accuracy" if has_labels else "agreement"
    return {"embedding": "nearest neighbour kept", "regression": "within tolerance"}.get(task, "agreement")


def good_rows(
    task: Task,
    outputs: Array,
    reference: Array,
    *,
    labels: NDArray[np.int64] | None,
    inputs: Mapping[str, Array],
) -> Rows:
    """Return which rows were answered well, bool [N].

    Args:
        outputs: the scored output of the candidate [N, ...].
        reference: the same output of its reference [N, ...].
        labels: classes [N], for a classification that has them.
        inputs: by name; an embedding of tokens is averaged over those that ``attention_mask`` marks.
    """
    match task:
        case "classification":
            right = confidence.predicted(reference) if labels is None else labels
            return np.asarray(confidence.predicted(outputs) == right)
        case "embedding":
            mask = inputs.get(_ATTENTION_MASK)
            return np.asarray(nearest(pooled(outputs, mask)) == nearest(pooled(reference, mask)))
        case _:
            wide = outputs.astype(np.float64).reshape(len(outputs), -1)
            wanted = reference.astype(np.float64).reshape(len(reference), -1)
            allowed = REGRESSION_TOLERANCE * wanted.std(axis=0)
            return np.asarray((np.abs(wide - wanted) <= np.maximum(allowed, 1e-6)).all(axis=1))


def share(hits: Rows) -> Share:
    """Count how many rows are True, as a share with its exact 95% interval."""
    count, n = int(np.count_nonzero(hits)), len(hits)
    low, high = clopper_pearson(count, n, _INTERVAL_DELTA)
    return Share(value=count / n, low=low, high=high, n=n)


def pooled(outputs: Array, mask: Array | None) -> NDArray[np.float64]:
    """Return unit vectors [N, H] of embeddings [N, H], or of tokens [N, T, H] averaged where ``mask`` [N, T] is 1."""
    values = outputs.astype(np.float64)
    if values.ndim == 3:
        weights = np.ones(values.shape[:2]) if mask is None else mask.astype(np.float64)
        values = (values * weights[..., None]).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)[:, None]
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Find the most similar other row of each unit vector [N, H], int64 [N]; in blocks, so that N may be large."""
    found = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), 1024):
        similarity = vectors[start : start + 1024] @ vectors.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -np.inf
        found[start : start + 1024] = similarity.argmax(axis=1)
    return found


def ranking_kept(outputs: Array, reference: Array, mask: Array | None) -> float:
    """Correlate the ranks of all pairwise similarities of at most 512 rows (Spearman): 1 keeps every ranking."""
    ranks = []
    for values in (outputs[:512], reference[:512]):
        vectors = pooled(values, None if mask is None else mask[:512])
        pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        ranks.append(np.argsort(np.argsort(pairs)).astype(np.float64))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(ranks[0]) > 1 else 1.0
