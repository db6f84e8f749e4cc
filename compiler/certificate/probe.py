"""A learned confidence: a small head that says how likely it is that keeping an answer does harm.

Pure: numbers in, numbers out; the only randomness is a seed. Decides what the head sees, how strongly each part of it
is held back, and whether there is enough to learn from. What a variant computes for it, and how it becomes part of a
graph, is ``compiler.graph.confidence_head``; whether it is used is ``compiler.certificate.score_choice``.

The head is a logistic regression on harm (Platt, 1999, on more than one number). It sees, of each row,

- how far the largest logit is above the others, and the energy: what the scores of ``penstock.policy.confidence`` see;
- which class was answered: an offset, and a slope, for each. An answer "1" may be trusted less than an answer "0";
- what the variant knew when it answered: the mean of its penultimate features over places or tokens, turned to their
  main directions in these rows.

Each part has a ridge of its own, chosen by the deviance of rows left out. That needs one fit a choice: leaving a row
out moves a ridge regression by what its curvature says (Rad and Maleki, arXiv 1801.10243). A part that does not help
gets the largest ridge, or is left out, and what remains is about as good as the margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from penstock.errors import CalibrationError
from penstock.policy.confidence import Kind
from penstock.wire.tensors import Array

Floats = NDArray[np.float64]

FOLDS = 5
LEAST_HARMFUL = 20
"""Fewer harmful rows say nothing of where harm is."""

LEAST_PROBABILITY = 1e-30
NEAREST = 16
"""Classes that are looked at: what lies further below the first weighs nothing, and sorting thousands takes time."""

_DIRECTIONS = 32
_DIRECTION_ROWS = 1_000
_MAX_TRAINING_ROWS = 5_000
_MAX_CLASSES = 128
_LEAST_OF_CLASS = 5
_FREE = 1e-6
_BASE_RIDGE = 0.1
_RIDGES: tuple[tuple[float | None, ...], ...] = ((1.0, 10.0), (None, 3.0), (None, 30.0))
"""Choices for the offsets of the classes, for their slopes, and for the features; None leaves the part out."""
_MAX_STEPS = 50
_SETTLED = 1e-8
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What a variant computed for some rows, exactly as a device computes it.

    Attributes:
        outputs: the scored output [N, C], of this ``kind``.
        features: pooled penultimate features [N, D].
    """

    outputs: Array
    features: Array
    kind: Kind

    def rows(self, which: NDArray[np.int64]) -> Seen:
        """Return some of the rows."""
        return Seen(outputs=self.outputs[which], features=self.features[which], kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """A trained head, as the few numbers that a graph holds: harm has the log-odds

    ``bias + base @ base(z) + offsets[c] + slopes[c] * base(z)[0] + features @ weights``

    for logits z at the temperature, and the class c that is answered.

    Attributes:
        base: weights [4] of :func:`base_of`.
        offsets: [C].
        slopes: [C].
        weights: [D].
        ridges: that were chosen, for people.
        least_probability: what stands for smaller ones where a logarithm is taken.
        nearest: how many of the largest logits are looked at.
    """

    temperature: float
    kind: Kind
    bias: float
    base: Floats
    offsets: Floats
    slopes: Floats
    weights: Floats
    ridges: tuple[float | None, ...]
    least_probability: float = LEAST_PROBABILITY
    nearest: int = NEAREST

    def confidences(self, seen: Seen) -> Floats:
        """Return the chance [N] that keeping each answer does no harm."""
        logits = logits_of(seen.outputs, self.kind, self.temperature)
        base, answered = base_of(logits), logits.argmax(axis=1)
        harm = self.bias + base @ self.base + self.offsets[answered] + self.slopes[answered] * base[:, 0]
        return _sigmoid(-(harm + seen.features.astype(np.float64) @ self.weights))


def logits_of(outputs: Array, kind: Kind, temperature: float) -> Floats:
    """Return logits [N, C] divided by the temperature; of probabilities, their logarithms."""
    values = outputs.astype(np.float64)
    if kind == "probabilities":
        values = np.log(np.maximum(values, LEAST_PROBABILITY))
    return values / temperature


def base_of(logits: Floats) -> Floats:
    """Return what the head sees of the logits alone [N, 4], of the ``NEAREST`` largest: the log-odds of the first, its
    lead over the second and over the third (of two classes: over the second again), and the energy.

    Written so that float32, in which a graph computes it, loses nothing where an answer is very sure.
    """
    ordered = -np.sort(-logits, axis=1)[:, :NEAREST]
    first, second = ordered[:, 0], ordered[:, 1]
    odds = first - second - np.log(np.exp(ordered[:, 1:] - second[:, None]).sum(axis=1))
    third = ordered[:, min(2, logits.shape[1] - 1)]
    return np.stack([odds, first - second, first - third, first + np.log1p(np.exp(-odds))], axis=1)


def why_not(harmful: NDArray[np.bool_]) -> str:
    """Say why nothing can be learnt from these rows; "" where it can."""
    found, n = int(np.count_nonzero(harmful)), len(harmful)
    if min(found, n - found) >= LEAST_HARMFUL:
        return ""
    what = f"{found} of {n} tuning rows are harmful" if found < LEAST_HARMFUL else f"{n - found} of {n} are harmless"
    return f"{what}; a head needs {LEAST_HARMFUL} to learn from"


def fit(seen: Seen, harmful: NDArray[np.bool_], *, temperature: float, seed: int) -> Head:
    """Train a head on all rows given, or on a drawn part of very many.

    Raises:
        CalibrationError: too few harmful rows, or numbers that are not finite.
    """
    _check(seen, harmful)
    return _fitted(seen, harmful, temperature, seed)


def cross_fitted(
    seen: Seen,
    harmful: NDArray[np.bool_],
    *,
    temperature: float,
    seed: int,
    clusters: NDArray[np.integer] | None = None,
) -> Floats:
    """Return the confidence [N] of each row by a head that was trained on other rows.

    Rows that belong together, or else that the variant answers alike, are trained on or scored together: a copy of a
    row would tell the head about it.

    Args:
        clusters: integers [N], equal for rows that belong together, or None.

    Raises:
        CalibrationError: as :func:`fit`.
    """
    _check(seen, harmful)
    found = np.empty(len(harmful))
    for scored in _folds(seen, clusters, seed):
        others = np.setdiff1d(np.arange(len(harmful)), scored)
        head = _fitted(seen.rows(others), harmful[others], temperature, seed)
        found[scored] = head.confidences(seen.rows(scored))
    return found


def _check(seen: Seen, harmful: NDArray[np.bool_]) -> None:
    problem = why_not(harmful)
    if problem:
        raise CalibrationError(f"probe: {problem}")
    if not (np.isfinite(seen.outputs).all() and np.isfinite(seen.features).all()):
        raise CalibrationError("probe: what the variant computes for some tuning rows is not finite")


def _folds(seen: Seen, clusters: NDArray[np.integer] | None, seed: int) -> Iterator[NDArray[np.int64]]:
    """Deal rows to folds; those of a cluster, or equal ones, to the same."""
    _, alike = np.unique(seen.outputs if clusters is None else clusters, axis=0, return_inverse=True)
    kinds = int(alike.max()) + 1
    fold = np.random.default_rng(seed).permutation(kinds) % FOLDS
    for number in range(FOLDS):
        rows = np.flatnonzero(fold[alike.ravel()] == number)
        if len(rows):
            yield rows


def _fitted(seen: Seen, harmful: NDArray[np.bool_], temperature: float, seed: int) -> Head:
    """Fit every choice of ridges, and return the head of the best with all scaling folded into its weights."""
    if len(harmful) > _MAX_TRAINING_ROWS:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(harmful))[:_MAX_TRAINING_ROWS])
        seen, harmful = seen.rows(drawn), harmful[drawn]
    logits = logits_of(seen.outputs, seen.kind, temperature)
    base, answered, classes = base_of(logits), logits.argmax(axis=1), logits.shape[1]
    middle, scale = base.mean(axis=0), base.std(axis=0) + 1e-6
    scaled = (base - middle) / scale
    used = _usual(answered)
    one_of = (answered[:, None] == used[None, :]).astype(np.float64)
    features: Floats = seen.features.astype(np.float64)
    centre, turned = _main_directions(features)
    parts = [one_of, one_of * scaled[:, :1], (features - centre) @ turned]
    ridges, (bias, of_base, of_class, of_slope, of_features) = _best(scaled, parts, harmful)
    offsets, slopes = np.zeros(classes), np.zeros(classes)
    offsets[used] = of_class - of_slope * middle[0] / scale[0]
    slopes[used] = of_slope / scale[0]
    along = turned @ of_features
    return Head(
        temperature=temperature,
        kind=seen.kind,
        bias=float(bias[0] - (of_base / scale) @ middle - centre @ along),
        base=of_base / scale,
        offsets=offsets,
        slopes=slopes,
        weights=along,
        ridges=ridges,
    )


def _usual(answered: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes that were answered often enough to learn something of; of very many, the most frequent."""
    classes, counts = np.unique(answered, return_counts=True)
    often = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    return np.sort(classes[often[counts[often] >= _LEAST_OF_CLASS]])


def _main_directions(features: Floats) -> tuple[Floats, Floats]:
    """Return the centre [D] of features, and their main directions [D, K], scaled so that the first has variance 1.

    The others keep their proportions: a ridge then holds back what varies little. A thousand rows show them well.
    """
    centre = features.mean(axis=0)
    some = features[:: max(1, len(features) // _DIRECTION_ROWS)] - centre
    _, sizes, directions = np.linalg.svd(some, full_matrices=False)
    largest = max(float(sizes[0]) / np.sqrt(len(some)), 1e-12)
    return centre, directions[:_DIRECTIONS].T / largest


def _best(
    base: Floats, parts: Sequence[Floats], harmful: NDArray[np.bool_]
) -> tuple[tuple[float | None, ...], list[Floats]]:
    """Return the ridges whose rows left out are predicted best, with the weights: bias, base, and each part."""
    y = harmful.astype(np.float64)
    best: tuple[float, tuple[float | None, ...], list[Floats]] | None = None
    for ridges in product(*_RIDGES):
        blocks = [(np.ones((len(y), 1)), _FREE), (base, _BASE_RIDGE), *zip(parts, ridges, strict=True)]
        taken = [(columns, ridge) for columns, ridge in blocks if ridge is not None]
        x = np.concatenate([columns for columns, _ in taken], axis=1)
        held = np.concatenate([np.full(columns.shape[1], ridge) for columns, ridge in taken])
        weights, deviance = _ridge_logistic(x, y, held)
        if best is None or deviance < best[0]:
            left = iter(np.split(weights, np.cumsum([columns.shape[1] for columns, _ in taken])[:-1]))
            split = [np.zeros(columns.shape[1]) if ridge is None else next(left) for columns, ridge in blocks]
            best = (deviance, ridges, split)
    assert best is not None
    return best[1:]


def _ridge_logistic(x: Floats, y: Floats, ridge: Floats) -> tuple[Floats, float]:
    """Fit by Newton's method; return the weights, and the mean deviance of each row as if it had been left out."""
    weights = np.zeros(x.shape[1])
    loss = _loss(x, y, ridge, weights)
    for _ in range(_MAX_STEPS):
        p = _sigmoid(x @ weights)
        curvature = (x.T * (p * (1 - p))) @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, x.T @ (p - y) + ridge * weights)
        length = 1.0
        while (tried := _loss(x, y, ridge, weights - length * step)) > loss and length > 1e-4:
            length /= 2
        weights, gained, loss = weights - length * step, loss - tried, tried
        if gained <= _SETTLED * max(1.0, abs(loss)):
            break
    logits = x @ weights
    p = _sigmoid(logits)
    curvature = (x.T * (p * (1 - p))) @ x + np.diag(ridge)
    pull = np.einsum("ij,ji->i", x, np.linalg.solve(curvature, x.T))
    left_out = logits + pull * (p - y) / np.maximum(1 - p * (1 - p) * pull, 1e-2)
    return weights, float(np.mean(np.logaddexp(0, left_out) - y * left_out))


def _loss(x: Floats, y: Floats, ridge: Floats, weights: Floats) -> float:
    logits = x @ weights
    return float(np.sum(np.logaddexp(0, logits) - y * logits) + 0.5 * np.sum(ridge * weights * weights))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -_LARGEST_LOGIT, _LARGEST_LOGIT))))
