"""What a score of generated answers costs a device: tokens of drafts that are then escalated. Pure.

A score of the whole answer is known when the answer is; the least probable token ends a draft as soon as it is made; a
score of the prompt decides before there is any draft. ``edge_agent.policy.text_cascade`` acts by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.policy.confidence import MONOTONE_SCORES, PROMPT_SCORES
from penstock.wire.tensors import Array


def tokens_for_nothing(
    probabilities: Sequence[Array], scores: NDArray[np.float64], name: str, threshold: float
) -> float:
    """Return the mean number of tokens a request, over all of them, that the device makes for answers that it does not
    keep at ``threshold``.

    Args:
        probabilities: of the answers' tokens, one array [tokens] an answer.
        scores: of the answers by this score [N].
        name: one of ``penstock.policy.confidence.TOKEN_SCORES``.
    """
    made = [_made(row, name, threshold) for row, score in zip(probabilities, scores, strict=True)
            if not score >= threshold]  # NaN is escalated, too  # fmt: skip
    return sum(made) / max(1, len(scores))


def words(chosen: str, drafted: Mapping[str, float]) -> str:
    """Say what a score of the prompt saves, or would; begins with a semicolon. "" where no answers are drafted."""
    before = [name for name in drafted if name in PROMPT_SCORES]
    others = [name for name in drafted if name not in PROMPT_SCORES]
    if not before or not others:
        return ""
    if chosen in PROMPT_SCORES:
        rival = min(others, key=lambda name: drafted[name])
        return f"; decided before generation, which saves {drafted[rival]:.1f} drafted tokens a request against {rival}"
    return f"; {drafted[chosen]:.1f} tokens a request are drafted for nothing"


def _made(row: Array, name: str, threshold: float) -> int:
    """Count the tokens of a draft until it is given up."""
    if name in PROMPT_SCORES:
        return 0  # its first token comes with the prompt, and no step is made for it
    if name not in MONOTONE_SCORES:
        return len(row)
    below = np.flatnonzero(~(np.asarray(row, np.float64) >= threshold))
    return int(below[0]) + 1 if len(below) else len(row)
