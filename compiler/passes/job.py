"""What every pass is given and what it gives back: files in, files out, and facts about them as plain data.

A pass is a function ``run(job: PassJob) -> PassResult`` in a module of its own, named in ``compiler.passes.table``. It
reads ``job.source``, writes only below ``job.out``, reads no clock and draws randomness from ``job.seed``: the same job
gives the same bytes, which is what lets its result be cached by content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from compiler.progress import Progress, unwatched
from compiler.recipe.targets import Target
from penstock.wire.tensors import Array

MODEL_FILE = "model.onnx"
"""What a pass that writes one graph calls it."""

Batches = Callable[[], Iterator[dict[str, Array]]]
"""Calibration examples from the beginning at each call: batches by input name, never all in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassJob:
    """One application of a pass.

    Attributes:
        source: the model: an ONNX file (external data beside it), or a directory where the pass takes one.
        out: an empty directory of the pass's own.
        options: what the recipe sets for this pass, checked by the pass against a Struct of its own.
        calibration: examples for passes that need ranges, else None.
        keep_float: names of nodes that the accuracy gate has sent back to float.
        memo: what a pass found out that holds for other jobs on the same model and examples; it only saves time.
        work: a directory that outlives an interruption of this very job, for checkpoints; None if nothing is kept.
    """

    source: Path
    out: Path
    target: Target
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Batches | None = None
    keep_float: frozenset[str] = frozenset()
    seed: int = 0
    progress: Progress = unwatched
    work: Path | None = None
    memo: MutableMapping[Any, Any] = field(default_factory=dict)


class PassResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a pass made.

    Attributes:
        model: the main file's name, relative to ``PassJob.out``; every other file there belongs to it.
        summary: one line for people, e.g. "int8 u8s8 per channel, entropy ranges from 512 rows".
        facts: figures for the report and the lock document, as plain JSON.
    """

    model: str
    summary: str
    facts: dict[str, Any] = {}
