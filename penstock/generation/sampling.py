"""Draw the next token of one request from a model's logits.

Decides in numpy: bias, penalties, temperature, which tokens stay, which one is drawn, and what is told about it. Draws
no random number itself: :func:`number_at` computes one from seed and position, so that a token depends on these and on
the logits, and never on who else is in the engine. Knows no engine and keeps no state.

Order and formulas are those of transformers' LogitsProcessors (``transformers/generation/logits_process.py``):
SequenceBias, RepetitionPenalty, TemperatureLogitsWarper, TopK, TopP, MinP. Presence and frequency penalties, which
transformers lacks, are OpenAI's (API reference, "Frequency and presence penalties"), taken off where vLLM takes them
off: after the repetition penalty, before the temperature. One thing differs: of tokens that are equally likely the
lowest ids stay, where transformers keeps all that equal the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import Internal, InvalidInput
from penstock.generation.values import Sampling

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

LARGEST = 1e4
"""Bound of temperature, penalties and bias: logits are far below it, and nothing overflows."""

_FIRST_LOOK = 64  # tokens that usually hold top_p; a whole vocabulary takes ten times as long to sort
_LOOK_FURTHER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A token and what the raw model thought of it.

    Attributes:
        token: its id.
        logprob: its natural logarithm of probability before bias, penalties and temperature.
        top: the likeliest tokens of the raw model with theirs, likeliest first, the lower id first among equals.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def check(sampling: Sampling, vocabulary: int) -> None:
    """Refuse numbers with which nothing can be drawn.

    Raises:
        InvalidInput: ``field`` is the wrong one; the message has its value and what would do.
    """
    size = f"from -{LARGEST:g} to {LARGEST:g}"
    bounds = {
        "temperature": (0 <= sampling.temperature <= LARGEST, f"from 0 to {LARGEST:g}"),
        "top_p": (0 < sampling.top_p <= 1, "above 0, at most 1"),
        "top_k": (sampling.top_k >= 0, "0 or more"),
        "min_p": (0 <= sampling.min_p <= 1, "from 0 to 1"),
        "repetition_penalty": (
            1 / LARGEST <= sampling.repetition_penalty <= LARGEST,
            f"from {1 / LARGEST:g} to {LARGEST:g}",
        ),
        "presence_penalty": (abs(sampling.presence_penalty) <= LARGEST, size),
        "frequency_penalty": (abs(sampling.frequency_penalty) <= LARGEST, size),
    }
    for field, (fits, expected) in bounds.items():
        if not fits:
            raise InvalidInput(f"{field} is {getattr(sampling, field)}; it has to be {expected}", field=field)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidInput(
                f"logit_bias names token {token}; the model has tokens 0 to {vocabulary - 1}", field="logit_bias"
            )
        if not abs(bias) <= LARGEST:  # NaN is not either
            raise InvalidInput(f"logit_bias of token {token} is {bias}; it has to be {size}", field="logit_bias")


def number_at(seed: int, position: int) -> float:
    """Return the random number in [0, 1) of one place in one answer, by Philox with the seed for a key and the position
    for a counter (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        position: tokens of the answer before this one.
    """
    raw = np.random.Philox(key=seed % 2**64, counter=position).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def sample(
    logits: Floats, sampling: Sampling, *, seen: tuple[Sequence[int], Sequence[int]], number: float, top: int = 0
) -> Drawn:
    """Draw one token.

    Args:
        logits: of every token in the vocabulary [V], as the model gave them; minus infinity where one is impossible.
        seen: ids of prompt and of answer so far; looked at where ``sampling`` has penalties.
        number: in [0, 1); not looked at by greedy sampling. Tokens that stay share [0, 1) in the order of their ids.
        top: as many alternatives are told.

    Raises:
        Internal: logits that are NaN or plus infinity, or none that is finite.
    """
    normalizer = _log_sum_exp(logits)
    changed = _changed(logits, sampling, seen)
    if sampling.is_greedy:
        token = int(np.argmax(changed))
    else:
        ids, shares = _distribution(changed, sampling)
        at = int(np.searchsorted(np.cumsum(shares), number, side="right"))
        token = int(ids[min(at, len(ids) - 1)])  # rounding may leave the sum below a number just under 1
    return Drawn(token=token, logprob=float(logits[token]) - normalizer, top=_alternatives(logits, normalizer, top))


def sample_greedy_rows(logits: Floats) -> tuple[Ids, NDArray[np.float64]]:
    """Take the likeliest token of each row, the lowest id among equals, for requests without bias and penalties.

    Args:
        logits: one row a request [B, V].

    Returns:
        Tokens [B] and their logarithms of probability [B].

    Raises:
        Internal: as :func:`sample`, for any row.
    """
    tokens = np.argmax(logits, axis=1)
    highest = np.take_along_axis(logits, tokens[:, None], axis=1).astype(np.float32, copy=False)
    if not np.isfinite(highest).all():  # a NaN is argmax's highest
        raise _not_finite(highest[:, 0])
    sums = np.exp(logits - highest, dtype=np.float32).sum(axis=1, dtype=np.float64)
    return tokens.astype(np.int64, copy=False), -np.log(sums)


def log_likelihoods(logits: Floats, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Return the natural logarithm of the raw model's probability of one token of each row.

    Args:
        logits: one row a place [T, V].
        tokens: what stands in each place [T].
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(wide)), np.asarray(tokens, dtype=np.int64)]
    likelihoods: NDArray[np.float64] = chosen - np.log(np.exp(wide).sum(axis=1))
    return likelihoods


def distribution(
    logits: Floats, sampling: Sampling, *, seen: tuple[Sequence[int], Sequence[int]]
) -> tuple[Ids, NDArray[np.float64]]:
    """Return the tokens that may be drawn, by id, and their probabilities, which add up to 1.

    Raises:
        Internal: as :func:`sample`.
    """
    _log_sum_exp(logits)
    changed = _changed(logits, sampling, seen)
    if sampling.is_greedy:
        return np.array([np.argmax(changed)]), np.ones(1)
    return _distribution(changed, sampling)


def _log_sum_exp(logits: Floats) -> float:
    highest = np.float32(logits[np.argmax(logits)])
    if not np.isfinite(highest):
        raise _not_finite(highest)
    return float(highest) + math.log(np.exp(logits - highest, dtype=np.float32).sum(dtype=np.float64))


def _not_finite(highest: Any) -> Internal:
    return Internal(f"the model's logits hold no largest number to choose by: {np.unique(highest).tolist()}")


def _changed(logits: Floats, sampling: Sampling, seen: tuple[Sequence[int], Sequence[int]]) -> Floats:
    """Apply bias and penalties; return the very same logits where there are none."""
    repeats = sampling.repetition_penalty != 1.0
    counts = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    if not (repeats or counts or sampling.logit_bias):
        return logits
    changed = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        changed[token] += bias
    prompt, answer = (np.asarray(ids, dtype=np.int64) for ids in seen)
    if repeats:
        both = np.unique(np.concatenate((prompt, answer)))
        values, penalty = changed[both], sampling.repetition_penalty
        changed[both] = np.where(values < 0, values * penalty, values / penalty)
    if counts:
        said, times = np.unique(answer, return_counts=True)
        changed[said] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return changed


def _distribution(changed: Floats, sampling: Sampling) -> tuple[Ids, NDArray[np.float64]]:
    ids = np.arange(len(changed))
    if 0 < sampling.top_k < len(changed):  # before the exponentials, which take longest, and leave the order as it is
        ids = _likeliest(changed, sampling.top_k)
        changed = changed[ids]
    scaled = changed.astype(np.float64)
    scaled -= scaled.max()  # before the division: a temperature near 0 makes no infinite minus infinite
    with np.errstate(over="ignore"):
        scaled /= sampling.temperature
    shares = np.exp(scaled, out=scaled)
    if not shares.all():
        ids, shares = _only(ids, shares, np.flatnonzero(shares))
    if sampling.top_p < 1.0:
        ids, shares = _only(ids, shares, _nucleus(shares, sampling.top_p))
    if sampling.min_p > 0.0:
        ids, shares = _only(ids, shares, shares >= sampling.min_p * shares.max())
    return ids, shares / shares.sum()


def _only(ids: Ids, shares: NDArray[np.float64], kept: Any) -> tuple[Ids, NDArray[np.float64]]:
    return ids[kept], shares[kept]


def _likeliest(shares: Floats, count: int) -> Ids:
    """Return the places of so many largest values in rising order; of equal ones those that come first."""
    if count >= len(shares):
        return np.arange(len(shares))
    last = np.partition(shares, len(shares) - count)[len(shares) - count]
    above = np.flatnonzero(shares > last)
    equal = np.flatnonzero(shares == last)[: count - len(above)]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(shares: NDArray[np.float64], top_p: float) -> Ids:
    """Return the places of the fewest largest values that hold a share of ``top_p`` of all, in rising order."""
    wanted, count = top_p * float(shares.sum()) * (1 - 1e-12), _FIRST_LOOK  # sums in another order round otherwise
    while True:
        places = _likeliest(shares, count)
        falling = places[np.argsort(-shares[places], kind="stable")]
        held = np.cumsum(shares[falling])
        if held[-1] >= wanted or len(places) == len(shares):
            return np.sort(falling[: int(np.searchsorted(held, wanted)) + 1])
        count *= _LOOK_FURTHER


def _alternatives(logits: Floats, normalizer: float, count: int) -> tuple[tuple[int, float], ...]:
    if count == 0:
        return ()
    places = _likeliest(logits, count)
    falling = places[np.argsort(-logits[places], kind="stable")]
    return tuple((int(token), float(logits[token]) - normalizer) for token in falling)
