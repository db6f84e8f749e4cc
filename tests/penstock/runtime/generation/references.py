"""What others' engines answer with the models of examples/codecomplete, and where an answer has to agree with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODELS = Path(__file__).parents[4] / "examples" / "codecomplete" / "models"
TRANSFORMERS = {"edge-fp32": "edge"}
GENAI = ("edge-fp32", "edge-int4", "cloud-int4")

NEAR_TIE = {"edge-fp32": 1e-3, "edge-int4": 0.02, "cloud-int4": 0.02}
"""Difference between the two largest logits below which rounding may choose either: sums in another order, and for
4-bit weights activations that are rounded to 8 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What greedy decoding answers to one prompt, whatever its end tokens.

    Attributes:
        logprobs: of each token of the answer.
        sure: so many tokens of the answer come before the first near tie.
    """

    ids: tuple[int, ...]
    new: tuple[int, ...]
    logprobs: tuple[float, ...]
    sure: int


@cache
def references(model: str, by: str = "genai") -> Sequence[Reference]:
    """Return the references of one built model, in the order of prompts from the shortest to the longest."""
    name = TRANSFORMERS[model] if by == "transformers" else model
    rows = json.loads((MODELS / "references.json").read_text(encoding="utf-8"))[by][name]
    return [
        Reference(
            ids=tuple(row["ids"]),
            new=tuple(row["new"]),
            logprobs=tuple(row["logprobs"]),
            sure=next((at for at, margin in enumerate(row["margins"]) if margin < NEAR_TIE[model]), len(row["new"])),
        )
        for row in rows
    ]
