"""The words that a recipe may choose among where a setting is one of a few; the types that everything else shares."""

from __future__ import annotations

from typing import Literal

Task = Literal[
    "classification",
    "multilabel",
    "detection",
    "segmentation",
    "ocr",
    "ranking",
    "regression",
    "embedding",
    "seq2seq",
    "generation",
]
"""What a model is for, and therefore how its answers are read and judged."""

LabelForm = Literal["classes", "numbers", "array", "none"]
"""What labels look like: a class a row, a number or some a row, anything with an entry a row, or not there at all."""

Objective = Literal["speed", "size"]
"""Which candidate ships among those that keep the quality budget: the fastest, or the smallest."""
