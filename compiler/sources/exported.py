"""What exporting a model gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A model as ONNX, with what belongs to it.

    Attributes:
        model: the ONNX file; above 2 GiB its tensors are in ``NAME.data`` beside it.
        files: what travels along: tokenizer, preprocessing, configuration.
        how: in words, for people.
        facts: for the lock document, plain JSON: exporter, versions, opset, task, labels, and the columns of a
            table that make an input, where the model was fitted on one and knows their names.
        passthrough: no neural network: packed as it is, never quantized.
        parity: how far the export's answers are from the original's; empty where the original is ONNX itself.
    """

    model: Path
    how: str
    files: tuple[Path, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    passthrough: bool = False
    parity: Mapping[str, Any] = field(default_factory=dict)
