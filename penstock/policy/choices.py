"""How sure a model is of the option that it chose: log-probabilities of all options in, one score out. Pure.

The compiler certifies these scores and an agent decides by them. Options may be another number in every request, so
each request is scored by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.policy import confidence
from penstock.policy.confidence import SCORES

CHOICE_SCORES: Mapping[str, str] = {name: SCORES[name] for name in ("max_prob", "margin", "entropy")}
"""Scores that options can have, by name: those of a classifier whose classes they are. All lie in [0, 1]."""


def renormalised(logprobs: Sequence[float], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return how likely each option is, given that the answer is one of them; they sum to 1. NaN where one of the
    log-probabilities is not finite."""
    if len(logprobs) == 1:
        return np.array([1.0 if math.isfinite(logprobs[0]) else math.nan])
    return np.asarray(confidence.softmax([list(logprobs)], temperature)[0])


def choice_score(logprobs: Sequence[float], *, name: str, temperature: float = 1.0) -> float:
    """Compute how sure an answer among options is, in [0, 1]; NaN without options, or where one is not finite.

    Args:
        logprobs: of each option as a whole answer, natural logarithms.
        name: one of :data:`CHOICE_SCORES`.
        temperature: divides the log-probabilities first.

    Raises:
        InvalidInput: no such score, or a temperature that is not positive.
    """
    if len(logprobs) < 2:  # whatever was asked, a single option is what anybody answers
        return float(renormalised(logprobs)[0]) if logprobs else math.nan
    return float(confidence.score([list(logprobs)], kind="logits", name=name, temperature=temperature)[0])
