"""The lock document: every step, version and digest that a compilation rests on, to repeat and compare it.

Holds nothing that changes between two runs on the same inputs: no dates, no durations, no paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from compiler.pipeline.cached_steps import machine_facts, made_by
from compiler.recipe.recipes import Recipe


def encode(recipe: Recipe, taken: Sequence[dict[str, Any]]) -> bytes:
    """Write the document as indented JSON with sorted keys.

    Args:
        taken: the steps in the order in which they were taken (``CachedSteps.taken``).
    """
    document = {
        "schema": 1,
        "model": recipe.reference,
        "seed": recipe.seed,
        "made_by": made_by(),
        "machine": machine_facts(),
        "steps": taken,
    }
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"
