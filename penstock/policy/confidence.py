"""How sure a model is of each answer: logits or probabilities in, one score a row out.

Decides the score only: whether it is high enough is the cascade's decision, and the threshold is the certificate's.
A row that says nothing usable (NaN, infinite, not a distribution) scores NaN, and NaN is never at least a threshold:
malformed output is escalated, not mistaken for an easy case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.errors import CalibrationError, InvalidInput

Floats = NDArray[np.float64]
Kind = Literal["logits", "probabilities"]

SCORES: Mapping[str, str] = {
    "max_prob": "largest probability",
    "margin": "largest minus second largest probability",
    "entropy": "1 - entropy / log(classes)",
    "energy": "free energy of the logits, T * logsumexp(z / T), squashed into [0, 1]; logits only",
}
"""Every score's name and what it is. All lie in [0, 1]; larger is more confident."""

PROBE = "probe"

LEARNED_SCORES: Mapping[str, str] = {
    PROBE: "chance that keeping the answer does no harm, by a small head that was trained on the variant itself",
}
"""Scores that a variant computes: an output of its graph, never computed from its answers. In [0, 1] as well."""

TOKEN_SCORES: Mapping[str, str] = {
    "prompt_max_prob": "largest probability of the first token: known once the prompt is read, before generation",
    "token_min": "smallest probability of a chosen token",
    "token_q10": "probability that nine of ten chosen tokens reach (10% quantile)",
    "token_q50": "median probability of the chosen tokens",
    "token_mean": "geometric mean probability of the chosen tokens (likelihood, whatever the length)",
}
"""Scores of generated sequences, from the probability the model gave each token it chose. In [0, 1] as well."""

PROMPT_SCORES = frozenset({"prompt_max_prob"})
"""Of these, the scores of the prompt alone: they decide before anything is generated. What they look at is computed
with the last token of a prompt, which an engine never takes from what it has cached."""

MONOTONE_SCORES = frozenset({"token_min"})
"""Of these, the scores that can only fall while an answer grows: the first token below a threshold decides."""

_TOKEN_QUANTILES: Mapping[str, float] = {"token_min": 0.0, "token_q10": 0.1, "token_q50": 0.5}

DISTRIBUTION_TOLERANCE = 1e-2
"""How far a row of probabilities may be from [0, 1] and from summing to 1: FP16 and INT8 outputs are this coarse."""

_SMALLEST = float(np.finfo(np.float64).tiny)  # stands in for probability 0 where a logarithm is taken
_LOG_TEMPERATURE = (math.log(0.05), math.log(20.0))


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Compute probabilities ``softmax(logits / temperature)``; stable for logits of any finite size.

    Args:
        logits: real numbers [N, C].
        temperature: positive; above 1 flattens, below 1 sharpens.

    Returns:
        float64 [N, C]. A row with a non-finite logit is NaN throughout.

    Raises:
        InvalidInput: not of shape [N, C] with C >= 2, not numeric, or a temperature that is not positive.
    """
    shifted, _ = _shifted(_matrix(logits, field="logits"), _positive(temperature))
    weights: Floats = np.exp(shifted)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def score(outputs: ArrayLike, *, kind: Kind, name: str = "max_prob", temperature: float = 1.0) -> Floats:
    """Compute one confidence for each row.

    Args:
        outputs: logits or probabilities [N, C]; N may be 0. Probabilities of exactly 0 and 1 are fine. A single column
            is that of the second of two classes, as a sigmoid's.
        kind: what ``outputs`` are.
        name: one of :data:`SCORES`.
        temperature: divides the logits first; probabilities are turned into logits by their logarithm.

    Returns:
        float64 [N] in [0, 1], or NaN for a row with a non-finite entry or, for probabilities, no distribution.

    Raises:
        InvalidInput: wrong rank, no class, not numeric, unknown kind or name, a temperature that is not positive, or
            the energy of probabilities (normalising has removed it).
    """
    if name not in SCORES:
        raise InvalidInput(f"score: unknown score {name!r}; known: {', '.join(SCORES)}", field="score")
    temperature = _positive(temperature)
    matrix = _two_columns(_matrix(outputs, field="outputs", least=1), kind)
    if name == "energy":
        if kind != "logits":
            raise InvalidInput("score: energy needs logits; probabilities are normalised and have none", field="score")
        return _energy(matrix, temperature)
    if name == "max_prob" and kind == "logits":  # the largest weight is exp(0): a device scores every answer with this
        shifted, _ = _shifted(matrix, temperature)
        return np.asarray(1.0 / np.exp(shifted).sum(axis=1))
    return _OF_PROBABILITIES[name](_probabilities(matrix, kind, temperature))


def learned_score(values: ArrayLike, *, answers: ArrayLike) -> Floats:
    """Return the confidence that a variant gave each row itself, in an output of its own.

    Args:
        values: real numbers [N].
        answers: the scored output [N, ...]. How sure a head is says nothing of an answer that is no number.

    Returns:
        float64 [N] in [0, 1], or NaN for a row whose value is none of these, or whose answer is not finite.

    Raises:
        InvalidInput: wrong rank, not numeric, or not as many as there are answers.
    """
    array, scored = np.asarray(values), np.asarray(answers)
    if array.dtype.kind != "f" or array.shape != scored.shape[:1]:
        raise InvalidInput(
            f"confidence: {array.dtype} {list(array.shape)}, expected one real number for each of {scored.shape[:1]}",
            field="confidence",
        )
    usable = (array >= 0) & (array <= 1) & finite_rows(scored)  # False for NaN
    return np.where(usable, array.astype(np.float64), np.nan)


def token_score(probabilities: Sequence[ArrayLike], *, name: str = "token_q10") -> Floats:
    """Compute one confidence for each generated sequence, from the probabilities of its chosen tokens.

    A quantile is one of the values: the smallest that at least that share of the tokens is at or below; ``token_min``
    is the quantile 0. ``prompt_max_prob`` is the first one, the largest that there was, since certified answers are
    greedy. Sequence length biases a sum of log-probabilities, and quantiles defer better: Gupta et al., "Language Model
    Cascades: Token-level uncertainty and beyond", arXiv 2404.10136.

    Args:
        probabilities: one array [tokens] a sequence, of any lengths.
        name: one of :data:`TOKEN_SCORES`.

    Returns:
        float64 [N] in [0, 1], or NaN for a sequence of no tokens or with an entry that is no probability.

    Raises:
        InvalidInput: an unknown name, or an entry that is not a row of real numbers.
    """
    if name not in TOKEN_SCORES:
        raise InvalidInput(f"score: unknown token score {name!r}; known: {', '.join(TOKEN_SCORES)}", field="score")
    return np.array([_of_tokens(row, name) for row in probabilities], dtype=np.float64)


def predicted(outputs: ArrayLike, *, kind: Kind = "logits") -> NDArray[np.int64]:
    """Return the class with the largest output, int64 [N]; the first of equals. Rows with NaN give some class: score
    them too.

    Args:
        outputs: [N, C]; a single column is that of the second of two classes.
        kind: what that column holds; with two or more it makes no difference.

    Raises:
        InvalidInput: wrong rank, no class, or not numeric.
    """
    matrix = _two_columns(_matrix(outputs, field="outputs", least=1), kind)
    return np.asarray(np.argmax(matrix, axis=1), dtype=np.int64)


def two_columns(outputs: ArrayLike, *, kind: Kind) -> Floats:
    """Return outputs [N, C] with both columns where only that of the second of two classes is given.

    Raises:
        InvalidInput: wrong rank, no class, or not numeric.
    """
    return _two_columns(_matrix(outputs, field="outputs", least=1), kind)


def each(values: ArrayLike, *, kind: Kind) -> Floats:
    """Turn each number by itself, as a sigmoid does, into a probability; float64 of the same shape."""
    numbers = np.asarray(values, dtype=np.float64)
    if kind == "probabilities":
        return np.clip(numbers, 0.0, 1.0)
    with np.errstate(over="ignore"):  # exp(710) is infinite, and its probability 0
        return np.asarray(1.0 / (1.0 + np.exp(-numbers)))


def finite_rows(array: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Find the rows [N] of an array [N, ...] that hold finite numbers only; no other row is ever kept or learnt."""
    if array.dtype.kind != "f":
        return np.ones(len(array), dtype=np.bool_)
    return np.asarray(np.isfinite(array).all(axis=tuple(range(1, array.ndim))), dtype=np.bool_)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Fit the temperature in [0.05, 20] that minimises the negative log-likelihood of the labels.

    The loss has one minimum in log T (it is convex in 1/T), so golden-section search finds it. Fit on a split that is
    not used to certify. Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Args:
        logits: finite numbers [N, C].
        labels: integers [N] in [0, C).

    Raises:
        InvalidInput: wrong rank, fewer than 2 classes, or not numeric.
        CalibrationError: no rows, lengths that differ, labels that are not classes, or non-finite logits.
    """
    matrix = _matrix(logits, field="logits")
    classes = np.asarray(labels)
    _check_labels(matrix, classes)
    rows = np.arange(len(classes))

    def loss(log_temperature: float) -> float:
        shifted, _ = _shifted(matrix, math.exp(log_temperature))
        return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, classes]))

    return math.exp(_golden_section(loss, *_LOG_TEMPERATURE))


def _matrix(values: ArrayLike, *, field: str, least: int = 2) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"{field}: dtype {array.dtype} is not numeric; expected real numbers [N, C]", field=field)
    if array.ndim != 2 or array.shape[1] < least:
        raise InvalidInput(f"{field}: shape is {list(array.shape)}, expected [N, C] with C >= {least}", field=field)
    return array.astype(np.float64)


def _two_columns(matrix: Floats, kind: Kind) -> Floats:
    if matrix.shape[1] != 1:
        return matrix
    first = 1 - matrix if kind == "probabilities" else np.zeros_like(matrix)
    return np.concatenate([first, matrix], axis=1)


def _of_tokens(row: ArrayLike, name: str) -> float:
    given = np.asarray(row)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "fiu"):
        raise InvalidInput(
            f"probabilities: {given.dtype} {list(given.shape)}, expected real numbers [tokens]", field="probabilities"
        )
    values = given.astype(np.float64)[: 1 if name in PROMPT_SCORES else None]
    inside = (values >= -DISTRIBUTION_TOLERANCE) & (values <= 1 + DISTRIBUTION_TOLERANCE)  # False for NaN
    if not values.size or not inside.all():
        return math.nan
    values = np.clip(values, 0.0, 1.0)
    if name in PROMPT_SCORES:
        return float(values[0])
    if name == "token_mean":
        with np.errstate(divide="ignore"):  # a token of probability 0 makes the sequence impossible: exp(-inf) is 0
            return float(np.exp(np.log(values).mean()))
    return float(np.quantile(values, _TOKEN_QUANTILES[name], method="inverted_cdf"))


def _positive(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InvalidInput(f"temperature: {temperature!r} is not a positive number", field="temperature")
    return float(temperature)


def _shifted(logits: Floats, temperature: float) -> tuple[Floats, Floats]:
    """Return (logits - row maximum) / temperature, and the maxima [N]; rows with a non-finite logit are NaN
    throughout."""
    # a gap beyond the largest double is -inf, and its weight 0: right as it is
    with np.errstate(over="ignore", invalid="ignore"):
        # one sum tells in most cases that there is nothing to clean; a device scores one row at a time
        is_clean = math.isfinite(logits.sum())
        clean = logits if is_clean else np.where(finite_rows(logits)[:, None], logits, np.nan)
        highest = clean.max(axis=1, keepdims=True)
        return (clean - highest) / temperature, highest[:, 0]


def _probabilities(outputs: Floats, kind: Kind, temperature: float) -> Floats:
    match kind:
        case "logits":
            return softmax(outputs, temperature)
        case "probabilities":
            checked = _checked_distributions(outputs)
            return checked if temperature == 1 else softmax(np.log(np.maximum(checked, _SMALLEST)), temperature)
        case _:
            raise InvalidInput(f"kind: {kind!r} is neither 'logits' nor 'probabilities'", field="kind")


def _checked_distributions(rows: Floats) -> Floats:
    low, high = -DISTRIBUTION_TOLERANCE, 1 + DISTRIBUTION_TOLERANCE
    inside = (rows >= low) & (rows <= high)  # False for NaN
    total = np.where(inside, rows, np.inf).sum(axis=1)  # so that one entry outside is enough to be no distribution
    valid = np.abs(total - 1) <= DISTRIBUTION_TOLERANCE
    return np.where(valid[:, None], np.clip(rows, 0.0, 1.0), np.nan)


def _max_prob(p: Floats) -> Floats:
    return np.asarray(p.max(axis=1))


def _margin(p: Floats) -> Floats:
    top = np.partition(p, -2, axis=1)  # NaN counts as largest
    return np.asarray(top[:, -1] - top[:, -2])


def _entropy(p: Floats) -> Floats:
    nats = -(p * np.log(np.maximum(p, _SMALLEST))).sum(axis=1)
    return np.asarray(np.clip(1 - nats / math.log(p.shape[1]), 0.0, 1.0))


_OF_PROBABILITIES: Mapping[str, Callable[[Floats], Floats]] = {
    "max_prob": _max_prob,
    "margin": _margin,
    "entropy": _entropy,
}


def _energy(logits: Floats, temperature: float) -> Floats:
    """Score by energy (Liu et al., "Energy-based Out-of-distribution Detection", arXiv 2010.03759); softsign, since a
    sigmoid would round every energy above 37 to exactly 1 and lose their order.
    """
    shifted, highest = _shifted(logits, temperature)
    energy = highest + temperature * np.log(np.exp(shifted).sum(axis=1))
    return np.asarray(0.5 * (1 + energy / (1 + np.abs(energy))), dtype=np.float64)


def _check_labels(logits: Floats, labels: NDArray[np.generic]) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (len(logits),) or len(logits) == 0:
        raise CalibrationError(
            f"labels: {labels.dtype} {list(labels.shape)}, expected integers [{len(logits)}], at least one"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise CalibrationError(
            f"labels: classes are 0 to {logits.shape[1] - 1}, found {labels.min()} to {labels.max()}"
        )
    if not finite_rows(logits).all():
        raise CalibrationError("logits: some are NaN or infinite; a temperature cannot be fitted on them")


def _golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimiser of a function with one minimum in [low, high], to 1e-6."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2
