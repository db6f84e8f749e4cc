"""What a quantized language model lost: perplexity and agreement against its float parent, and whether it may ship.

Pure; randomness comes as a seed. Both models score the same tokens, so differences are paired token by token. Tokens of
one text are not independent, so intervals are by a bootstrap of whole blocks of consecutive tokens (Künsch, "The
Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics 17, 1989), percentile method.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.artifact.evaluation import Interval
from compiler.generation.built_model import Likelihoods
from penstock import wording
from penstock.errors import CompileError

Floats = NDArray[np.float64]

BLOCK_TOKENS = 64
RESAMPLES = 2000
_DELTA = 0.05
_LARGEST_LOG = 700.0  # exp of more is no double
_AT_ONCE = 4_000_000  # numbers drawn at once, so that memory stays small however long the texts are


class PerplexityChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A candidate against its reference on the same ``tokens`` tokens.

    Attributes:
        before: perplexity of the reference, exp(-mean log-probability).
        after: the candidate's.
        increase: after / before - 1.
        bound: what the gate compares with the budget; the increase is below it with probability 1 - ``level``, as far
            as a bootstrap knows.
        level: the candidate's share of ``quality.delta``.
        agreement: share of places where both hold the same token likeliest.
    """

    before: float
    after: float
    increase: Interval
    bound: float
    level: float
    agreement: Interval
    tokens: int


def perplexity(found: Likelihoods) -> float:
    """Compute exp(-mean log-probability), at most exp(700): a document holds no infinity."""
    return math.exp(min(-float(found.log_likelihood.mean()), _LARGEST_LOG))


def change(reference: Likelihoods, candidate: Likelihoods, *, seed: int = 0, level: float = _DELTA) -> PerplexityChange:
    """Compare the scores of two models for the same tokens.

    Args:
        level: chance that the bound does not hold.

    Raises:
        CompileError: the two did not score the same tokens, as when their tokenizers differ.
    """
    if not np.array_equal(reference.tokens, candidate.tokens) or not np.array_equal(reference.text, candidate.text):
        raise CompileError(
            "perplexity: the two models split the texts into different tokens, so they cannot be compared token by "
            "token; a quantized model is compared with the float model that it was made from"
        )
    lost = reference.log_likelihood - candidate.log_likelihood
    ratio, bound = _bootstrap(lost, reference.text, seed, level)
    same, _ = _bootstrap((reference.top1 == candidate.top1).astype(np.float64), reference.text, seed, level)
    return PerplexityChange(
        before=perplexity(reference),
        after=perplexity(candidate),
        increase=Interval(value=_increase(ratio.value), low=_increase(ratio.low), high=_increase(ratio.high)),
        bound=_increase(bound),
        level=level,
        agreement=same,
        tokens=len(lost),
    )


def refusal(found: PerplexityChange, *, max_increase: float) -> str:
    """Say why the candidate is not shown to keep the budget, with its figures; "" if it is.

    Args:
        max_increase: of perplexity, a share of the reference's (0.05 is 5%).
    """
    if found.bound <= max_increase:
        return ""
    seen = (
        f"perplexity {found.before:.4g} -> {found.after:.4g}: {wording.change(found.increase.value)} "
        f"({wording.change(found.increase.low)} to {wording.change(found.increase.high)}), "
        f"{wording.percent(max_increase)} allowed"
    )
    if found.increase.value <= max_increase:
        left = wording.change(found.bound)
        return f"{seen}. {found.tokens} tokens leave up to {left}: give more texts, or allow more"
    return f"{seen}. Use smaller blocks (block_size), another algorithm (k_quant) or int8, or allow more"


def _increase(mean_lost: float) -> float:
    return math.expm1(min(mean_lost, _LARGEST_LOG))


def _bootstrap(values: Floats, text: NDArray[np.int64], seed: int, level: float) -> tuple[Interval, float]:
    """Compute the mean of ``values`` [T], its interval, and its upper bound at ``level``, over blocks of consecutive
    tokens that never cross a text's end.
    """
    starts = _block_starts(text)
    sums, counts = np.add.reduceat(values, starts), np.diff(np.append(starts, len(values)))
    source, blocks = np.random.default_rng(seed), len(starts)
    means: list[Floats] = []
    step = max(1, _AT_ONCE // blocks)
    for begin in range(0, RESAMPLES, step):
        drawn = source.integers(0, blocks, (min(step, RESAMPLES - begin), blocks))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high, bound = np.quantile(np.concatenate(means), [_DELTA / 2, 1 - _DELTA / 2, 1 - level])
    return Interval(value=float(values.mean()), low=float(low), high=float(high)), float(bound)


def _block_starts(text: NDArray[np.int64]) -> NDArray[np.int64]:
    first = np.flatnonzero(np.diff(text, prepend=text[0] - 1))  # of each text
    lengths = np.diff(np.append(first, len(text)))
    return np.concatenate([np.arange(begin, begin + n, BLOCK_TOKENS) for begin, n in zip(first, lengths, strict=True)])
