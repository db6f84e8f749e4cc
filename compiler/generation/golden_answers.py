"""Golden vectors of a language model: prompts as token ids, and the tokens that it continues them with.

Replayed on a device before the model may serve, where every token must be equal. Products of other instruction sets
differ in their last bits, and greedy decoding turns that into another token wherever two are nearly as likely; so
prompts are kept whose every step is clear, and cut before the first that is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.generation import built_model
from compiler.generation.built_model import Answers, BuiltModel
from compiler.recipe.generation_section import Generate
from penstock.artifact.golden import Golden
from penstock.errors import CompileError

PROMPT_IDS, TOKEN_IDS = "prompt_ids", "token_ids"
MAX_ROWS, MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 4, 16, 8
MIN_MARGIN = 0.05
"""Least probability by which each chosen token leads the next: tens of times what rounding moves an int4 model's."""

_CANDIDATES = 64


def vectors(model: BuiltModel, prompts: Sequence[str]) -> Golden:
    """Make golden vectors from some of ``prompts`` (never certifying ones: they travel to devices).

    Returns:
        inputs ``prompt_ids`` int64 [R, P] and outputs ``token_ids`` int64 [R, K]: greedy, R <= 4, P <= 16, K <= 8.

    Raises:
        CompileError: no prompt has a continuation that is clear enough. Others as ``built_model.answers``.
    """
    candidates = tuple(prompts[:_CANDIDATES])
    read = built_model.answers(model, candidates, Generate(max_new_tokens=1))
    length = min(MAX_PROMPT_TOKENS, int(np.median([len(ids) for ids in read.prompt_ids])))
    cut = [ids[:length] for ids in read.prompt_ids if len(ids) >= length]
    return choose(built_model.answers(model, [ids.tolist() for ids in cut], Generate(max_new_tokens=MAX_NEW_TOKENS)))


def choose(answers: Answers) -> Golden:
    """Choose the rows with the most tokens that are clear, cut to the number that all of them have. Pure.

    Args:
        answers: greedy, to prompts of one length.

    Raises:
        CompileError: as :func:`vectors`.
    """
    clear = [_clear(margins) for margins in answers.margins]
    order = sorted(range(len(clear)), key=lambda row: (-clear[row], row))
    best = [row for row in order if clear[row]][:MAX_ROWS]
    if not best:
        raise CompileError(
            f"golden vectors: for none of {len(clear)} prompts is the model sure of its next token by {MIN_MARGIN:g}; "
            "give prompts like those it will be asked"
        )
    best = [row for row in best if 2 * clear[row] >= clear[best[0]]]  # one vague row must not cut the others short
    tokens = min(clear[row] for row in best)
    return Golden(
        inputs={PROMPT_IDS: np.stack([answers.prompt_ids[row] for row in best]).astype(np.int64)},
        outputs={TOKEN_IDS: np.stack([answers.token_ids[row][:tokens] for row in best]).astype(np.int64)},
    )


def _clear(margins: NDArray[np.float64]) -> int:
    """Count the tokens before the first that leads by less than the margin."""
    return int(np.argmin(np.append(margins >= MIN_MARGIN, False)))
